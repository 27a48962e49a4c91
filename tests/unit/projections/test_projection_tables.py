"""What each projection keeps, forgets and shows."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnode import limits
from p2pnode.commands import ActivatePlan, StartNode
from p2pnode.events import types as facts
from p2pnode.events.types import Event
from p2pnode.projections import federation, models, peers, sessions, usage, views
from tests.kit.story import HASH, SELF, Story, finish, folded, serve


def view(story: Story, name: str) -> dict[str, Any]:
    return views.view(story.state, name, story.now_ms)


def seen(peer: str, name: str = "") -> facts.PeerSeen:
    return facts.PeerSeen(peer=peer, device_name=name, path="lan")


def admitted(peer: str) -> facts.PeerAdmitted:
    return facts.PeerAdmitted(peer=peer, device_name=peer, role="worker", admitted_by=SELF, grant=b"g")


def model(content: str = "bafk1", name: str = "tiny") -> facts.ModelAdded:
    return facts.ModelAdded(
        model=content,
        name=name,
        architecture="llama",
        quantisation="Q8_0",
        size_bytes=800,
        layer_count=8,
        source="file",
    )


def shard(first: int, end: int, content: str, of: str = "bafk1") -> facts.ShardStored:
    return facts.ShardStored(
        model=of, content=content, layer_first=first, layer_end=end, size_bytes=10, source=SELF
    )


def plan(plan_id: str = "plan", of: str = "bafk1") -> facts.PlanProposed:
    return facts.PlanProposed(
        plan_id=plan_id,
        model=of,
        mode="pipeline",
        stages=((SELF, 0, 6), ("12D3KooOther", 6, 8)),
        tokens_per_s_milli=12_500,
        why="fits",
    )


@pytest.mark.parametrize(
    "event",
    [
        facts.PeerLost(peer="x", reason=""),
        facts.PeerForgotten(peer="x"),
        facts.BlobRefused(content="c", peer="x", reason=""),
        facts.PlanActivated(plan_id="x"),
        facts.PlanRejected(plan_id="x", peer="", reason=""),
        facts.PlanAbandoned(plan_id="x", reason=""),
        facts.InviteUsed(invite_id="x", peer="y", uses_left=0),
        facts.InviteRevoked(invite_id="x"),
        facts.ApiKeyRevoked(key_id="x"),
        facts.RequestFailed(request_id="x", code="c", message=""),
        facts.ModelRemoved(model="x", name="x"),
        facts.EngineRestarted(model="x", attempt=1, duration_ms=1),
        facts.RequestFinished(
            request_id="x",
            reason="stop",
            prompt_tokens=1,
            completion_tokens=1,
            cached_tokens=0,
            answer_commitment=HASH,
            prefill_ms=1,
            decode_ms=1,
        ),
        facts.StageLost(
            request_id="x", plan_id="x", peer="x", layer_first=0, layer_end=1, position=0, reason=""
        ),
        facts.StageRecovered(
            request_id="x",
            plan_id="x",
            detected_ms=1,
            replanned_ms=1,
            refilled_ms=1,
            resumed_ms=1,
            refilled_tokens=1,
        ),
    ],
)
def test_facts_about_what_was_forgotten_do_no_harm(event: Event) -> None:
    assert Story().tell(event).state.size == 2


# --- peers -----------------------------------------------------------------------------------------
def test_strangers_are_forgotten_before_members_and_members_only_by_newer_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "PEERS_KEPT_MAX", 3)
    story = Story().tell(admitted("member"), seen("stranger"), seen("newer"))
    assert list(story.state.peers.peers) == [SELF, "member", "newer"]
    story.tell(admitted("newer"), seen("newest"))
    assert list(story.state.peers.peers) == ["member", "newer", "newest"]


def test_nobody_is_online_after_a_stop_and_names_stay() -> None:
    story = Story().tell(admitted("p1"), seen("p1", "desk"), seen("p1"))
    story.do(StartNode(version="1", platform="linux", device_name="me"))
    entries = {entry["peer"]: entry for entry in view(story, "peers")["peers"]}
    assert (entries[SELF]["state"], entries[SELF]["name"], entries[SELF]["self"]) == ("online", "me", True)
    assert (entries["p1"]["state"], entries["p1"]["name"]) == ("offline", "desk")
    story.tell(facts.NodeStopped(reason=""))
    assert view(story, "peers")["peers"][0]["state"] == "offline"
    assert peers.name_of(story.state.peers, "12D3KooUnknown") == "oUnknown"


def test_a_start_before_the_keys_has_no_own_entry() -> None:
    story = Story(bound=False).tell(
        facts.NodeStarted(version="1", platform="linux", device_name="me"), seen("p1")
    )
    assert list(story.state.peers.peers) == ["p1"]


def test_trust_shows_in_a_peers_state() -> None:
    story = Story().tell(seen("p1"))
    assert peers.state_of(story.state.peers.peers["p1"]) == "unadmitted"
    story.tell(admitted("p1"))
    assert peers.state_of(story.state.peers.peers["p1"]) == "online"
    story.tell(facts.PeerEquivocated(peer="p1", origin="o", size_first=1, size_second=1, proof=b""))
    assert peers.state_of(story.state.peers.peers["p1"]) == "equivocated"
    story.tell(facts.PeerRevoked(peer="p1", reason=""))
    assert peers.state_of(story.state.peers.peers["p1"]) == "revoked"


# --- models ----------------------------------------------------------------------------------------
def test_layers_kept_are_joined_where_they_touch() -> None:
    story = Story().tell(model(), shard(4, 6, "c"), shard(0, 2, "a"), shard(2, 3, "b"), shard(2, 3, "b"))
    assert models.layers_kept(story.state.models, "bafk1") == [[0, 3], [4, 6]]
    assert view(story, "models")["models"][0]["holders"] == [{"peer": SELF, "layers": [[0, 3], [4, 6]]}]


def test_the_newest_model_of_a_name_is_meant_and_the_default_is_marked() -> None:
    story = Story().tell(model("old", "tiny"), model("new", "tiny"))
    found = models.find(story.state.models, "tiny")
    assert found is not None
    assert found[0] == "new"
    assert models.find(story.state.models, "old") is not None
    assert models.find(story.state.models, "none") is None
    assert [entry["default"] for entry in view(story, "models")["models"]] == [False, False]
    story.tell(facts.SettingChanged(key="model.default", value="tiny"))
    assert [entry["default"] for entry in view(story, "models")["models"]] == [False, True]


def test_models_and_shards_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MODELS_KEPT_MAX", 2)
    monkeypatch.setattr(limits, "SHARDS_PER_MODEL_KEPT_MAX", 2)
    story = Story().tell(
        model("m1"),
        shard(0, 1, "a", "m1"),
        model("m2"),
        model("m3"),
        *(shard(0, 1, f"s{n}", "m3") for n in range(3)),
    )
    assert list(story.state.models.models) == ["m2", "m3"]
    assert {k: list(v) for k, v in story.state.models.shards.items()} == {"m3": ["s1", "s2"]}
    story.tell(shard(0, 1, "x", "elsewhere"), shard(0, 1, "x", "another"))
    assert set(story.state.models.shards) == {"another", "m3"}


# --- plans -----------------------------------------------------------------------------------------
def test_a_plans_promise_stands_beside_what_was_measured() -> None:
    story = Story().tell(model(), plan())
    story.do(ActivatePlan(plan_id="plan", duration_ms=9))
    story.do(serve("r1", caller="local"))
    story.do(finish("r1", completion_tokens=101, decode_ms=4000))
    story.do(serve("r2", caller="local"))
    story.do(finish("r2", completion_tokens=1, decode_ms=0))
    entry = view(story, "plans")["plans"][0]
    assert (entry["predicted_tokens_per_s"], entry["measured_tokens_per_s"]) == (12.5, 25.0)
    assert (entry["model"], entry["state"], entry["requests"]) == ("tiny", "active", 2)
    assert entry["stages"][0] == {
        "peer": SELF,
        "name": SELF[-8:],
        "layers": [0, 6],
        "bytes": 600,
        "memory_bytes": 600,
    }
    assert story.state.plans.plans["plan"].state == "active"
    story.do(StartNode(version="1", platform="linux", device_name="me"))
    assert story.state.plans.plans["plan"].state != "active"


def test_idle_plans_are_forgotten_before_serving_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PLANS_KEPT_MAX", 2)
    story = Story().tell(plan("a"), facts.PlanActivated(plan_id="a"), plan("b"), plan("c"))
    assert list(story.state.plans.plans) == ["a", "c"]
    story.tell(facts.PlanActivated(plan_id="c"), plan("d"))
    assert list(story.state.plans.plans) == ["a", "c"], "the newest gives way when all others serve"
    unknown = view(Story().tell(plan(of="nobody")), "plans")["plans"][0]
    assert unknown["stages"][0]["bytes"] == 0


def test_a_plan_forgotten_while_it_serves_loses_a_measurement_no_more() -> None:
    story = Story().tell(plan())
    story.do(serve("r1", caller="local"))
    del story.state.plans.plans["plan"]
    story.do(finish("r1"))
    assert story.state.plans.running == {}


# --- usage -----------------------------------------------------------------------------------------
def test_usage_is_kept_by_day_caller_and_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "USAGE_ROWS_PER_DAY_MAX", 2)
    monkeypatch.setattr(limits, "USAGE_DAYS_KEPT_MAX", 2)
    story = Story().tell(model("bafkmodel", "tiny"))
    for number, caller in enumerate(("local", "a", "b", "c", "a")):
        story.do(serve(f"r{number}", caller=caller, path="lan"))
        story.do(finish(f"r{number}"))
    rows = view(story, "usage")["usage"]
    assert [(row["caller"], row["model"], row["requests"]) for row in rows] == [
        (usage.OTHERS, usage.OTHERS, 2),
        ("a", "tiny", 2),
        ("local", "tiny", 1),
    ]
    assert rows[0]["day"] == "2027-01-15"
    for _ in range(2):
        story.now_ms += usage.DAY_MS
        story.do(serve(f"d{story.now_ms}", caller="a", path="wan"))
        story.do(finish(f"d{story.now_ms}"))
    shown = view(story, "usage")
    assert [row["day"] for row in shown["usage"]] == ["2027-01-17", "2027-01-16"]
    assert shown["total"]["requests"] == 7
    assert shown["total"]["cost_microunits"] == 2_000_000


# --- the rest --------------------------------------------------------------------------------------
def test_an_invites_state_is_shown_and_its_peers() -> None:
    created = facts.InviteCreated(invite_id="i", label="guest", role="client", uses=1, expires_ms=2**60)
    story = Story().tell(created)
    assert view(story, "invites")["invites"][0]["state"] == "open"
    story.tell(facts.InviteUsed(invite_id="i", peer="p", uses_left=0))
    shown = view(story, "invites")["invites"][0]
    assert (shown["state"], shown["peers"], shown["role"]) == ("used", ["p"], "client")


def test_other_meshes_are_kept_by_their_newest_grant_until_they_are_ended() -> None:
    def joined(name: str, grant: bytes) -> facts.MeshFederated:
        return facts.MeshFederated(mesh_id="m", mesh_name="office", name=name, gateway="g", grant=grant)

    story = Story().tell(joined("office", b"1"))
    first_ms = story.state.federation.meshes["m"].since_ms
    story.now_ms += 5000
    story.tell(joined("work", b"2"))
    entry = story.state.federation.meshes["m"]
    assert (entry.name, entry.mesh_name, entry.grant, entry.since_ms) == ("work", "office", b"2", first_ms)
    assert federation.called(story.state.federation, "work") == "m"
    assert federation.called(story.state.federation, "office") is None
    story.tell(facts.MeshFederationEnded(mesh_id="m"), facts.MeshFederationEnded(mesh_id="never"))
    assert story.state.federation.meshes == {}
    assert folded(story.records) == story.state


def test_a_session_says_which_mesh_served_it() -> None:
    def forwarded(request_id: str, mesh: str) -> facts.RequestForwarded:
        return facts.RequestForwarded(
            request_id=request_id, caller="local", model="tiny@work", peer="12D3KooOther", mesh=mesh,
            prompt_commitment=bytes(32), max_tokens=9,
        )  # fmt: skip

    story = Story().tell(
        facts.MeshFederated(mesh_id="12D3KooMesh", mesh_name="o", name="work", gateway="g", grant=b""),
        forwarded("r1", "12D3KooMesh"),
        forwarded("r2", "12D3KooEnded"),
        forwarded("r3", ""),
    )
    shown = {row["request_id"]: row["served_mesh"] for row in view(story, "sessions")["sessions"]}
    assert shown == {"r1": "work", "r2": "KooEnded", "r3": None}


def test_the_node_shows_its_engine_and_uptime() -> None:
    story = Story()
    story.do(StartNode(version="1.0", platform="linux", device_name="desk"))
    story.tell(facts.EngineDied(model="m", exit_code=-9, reason="killed"))
    story.now_ms += 5000
    shown = view(story, "node")
    assert (shown["uptime_ms"], shown["engine"]["down"], shown["name"]) == (5000, {"m": "killed"}, "desk")
    story.tell(facts.EngineRestarted(model="m", attempt=1, duration_ms=3), facts.NodeStopped(reason=""))
    shown = view(story, "node")
    assert (shown["uptime_ms"], shown["engine"]["down"], shown["running"]) == (0, {}, False)


def test_metrics_are_counted_from_the_log() -> None:
    story = Story().tell(seen("p1"))
    story.do(serve())
    metrics = {metric["name"]: metric for metric in view(story, "metrics")["metrics"]}
    assert metrics["p2pnode_credit_held_microunits"]["samples"][0]["value"] == 1_000_000
    assert metrics["p2pnode_credit_minted_microunits"]["samples"][0]["value"] == 5_000_000
    assert {"labels": {"state": "unadmitted"}, "value": 1} in metrics["p2pnode_peers"]["samples"]
    assert metrics["p2pnode_requests_running"]["samples"][0]["value"] == 1


def test_sessions_show_rate_cost_and_who_computed() -> None:
    story = Story().tell(model("bafkmodel", "tiny"), seen("12D3KooOther", "lap"))
    story.do(serve())
    story.do(finish(completion_tokens=101, decode_ms=4000))
    story.do(serve("r2"))
    shown = view(story, "sessions")
    assert (shown["running"], shown["accepted"], shown["finished"]) == (1, 2, 1)
    running, done = shown["sessions"]
    assert (running["tokens_per_s"], running["end_index"]) == (None, None)
    assert (done["model"], done["tokens_per_s"], done["cost_microunits"]) == ("tiny", 25.0, 1_000_000)
    assert done["stages"][1] == {"peer": "12D3KooOther", "name": "lap", "layers": [4, 8]}
    assert folded(story.records) == story.state


def test_a_settled_unit_of_a_request_nobody_knows_changes_no_usage() -> None:
    """Its request began before what this log holds; money is the ledger's, these tables only count."""
    unit = facts.UnitSettled(
        hold_id="h", payer="a", request_id="gone", unit=1, amount_microunits=5, shares=(("b", 5),)
    )
    record = Story("self").tell(facts.NodeStopped(reason="only for a record's frame")).records[-1]
    requests, costs = sessions.initial(), usage.initial()
    sessions.HANDLERS[facts.UnitSettled](requests, record, unit)
    usage.HANDLERS[facts.UnitSettled](costs, record, unit)
    assert requests.requests == {}
    assert costs.total.cost_microunits == 0
