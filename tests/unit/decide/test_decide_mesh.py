"""The node's life, its mesh, invites and members."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnode import limits
from p2pnode.commands import (
    AdmitPeer,
    CreateInvite,
    CreateMesh,
    EndFederation,
    Federate,
    ForgetPeer,
    JoinMesh,
    RecordMeasurement,
    RecordPeerLost,
    RecordPeerSeen,
    RevokeInvite,
    RevokePeer,
    StartNode,
    StopNode,
)
from p2pnode.errors import (
    InviteExpired,
    InviteRevoked,
    InviteUsed,
    NotAdmitted,
    NotFound,
    RequestError,
    TicketInvalid,
    WrongMesh,
)
from p2pnode.events import types as facts
from p2pnode.projections import billing, peers
from tests.kit.story import NOW_MS, SELF, STRANGER, Story, finish, serve

START = StartNode(version="1", platform="linux", device_name="desk")
PEER = "12D3KooPeer"


def names_of(story: Story, command: Any) -> list[str]:
    return [type(event).__name__ for event in story.events_of(command)]


def invite(**changes: Any) -> CreateInvite:
    fields: dict[str, Any] = {"invite_id": "i1", "uses": 1, "expires_ms": NOW_MS + 1000}
    return CreateInvite(**{**fields, **changes})


def admit(peer: str = PEER, **changes: Any) -> AdmitPeer:
    fields: dict[str, Any] = {"device_name": "lap", "grant": b"g", "admitted_by": SELF, "invite_id": "i1"}
    return AdmitPeer(peer=peer, **{**fields, **changes})


# --- life ------------------------------------------------------------------------------------------
def test_a_start_after_a_stop_is_clean_and_one_without_is_a_crash() -> None:
    story = Story()
    assert story.do(START) == {"crashed": False, "interrupted": []}
    story.do(StopNode(reason="bye"))
    assert story.events_of(StopNode(reason="again")) == []
    assert story.do(START)["crashed"] is False
    assert story.do(START)["crashed"] is True
    assert (story.state.node.starts, story.state.node.crashes) == (3, 1)


def test_a_start_after_a_crash_fails_what_ran_and_gives_the_credit_back() -> None:
    story = Story()
    story.do(START)
    story.do(serve("r1"))
    story.do(serve("r2", caller="local"))
    story.do(serve("done"))
    story.do(finish("done"))
    assert story.do(START)["interrupted"] == ["r1", "r2"]
    assert story.state.billing.holds == {}
    assert billing.available(story.state.billing, STRANGER) == 4_000_000
    assert story.state.sessions.requests["r1"].reason == "interrupted"
    assert [r.correlation for r in story.records[-4:]] == ["r1", None, "r2", None]


def test_a_start_gives_back_holds_whose_request_is_over_or_forgotten() -> None:
    story = Story()
    story.do(serve("r1"))
    story.do(serve("r2", caller="local"))
    failed = facts.RequestFailed(request_id="r1", code="x", message="")
    story.tell(failed)
    del story.state.sessions.requests["r2"]
    story.do(START)
    assert story.state.billing.holds == {}


# --- mesh ------------------------------------------------------------------------------------------
def test_a_device_belongs_to_one_mesh() -> None:
    story = Story()
    story.do(CreateMesh(mesh_id="m1", mesh_name="home"))
    assert story.events_of(CreateMesh(mesh_id="m1", mesh_name="home")) == []
    join = JoinMesh(mesh_id="m1", mesh_name="home", admitted_by=PEER, grant=b"g")
    assert story.events_of(join) == []
    for other in (
        CreateMesh(mesh_id="m2", mesh_name="work"),
        JoinMesh(mesh_id="m2", mesh_name="work", admitted_by=PEER, grant=b"g"),
    ):
        with pytest.raises(WrongMesh, match="home"):
            story.do(other)
    joined = Story()
    joined.do(join)
    assert (joined.state.node.mesh_id, joined.state.node.role) == ("m1", "member")


@pytest.mark.parametrize(
    "changes",
    [
        {"invite_id": ""},
        {"uses": 0},
        {"uses": 100_000},
        {"role": "king"},
        {"expires_ms": NOW_MS},
    ],
)
def test_an_invite_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Story().do(invite(**changes))


def test_an_invite_is_used_up_expires_or_is_revoked() -> None:
    story = Story()
    assert story.do(invite(label="x" * 200))["role"] == "worker"
    with pytest.raises(RequestError, match="exists"):
        story.do(invite())
    assert names_of(story, admit()) == ["InviteUsed", "PeerAdmitted"]
    assert story.do(admit()) == {"grant": b"g", "role": "worker", "already": False}
    with pytest.raises(InviteUsed):
        story.do(admit("another"))
    story.do(invite(invite_id="i2"))
    story.now_ms += 1000
    with pytest.raises(InviteExpired):
        story.do(admit("another", invite_id="i2"))
    story.do(invite(invite_id="i3", expires_ms=story.now_ms + 1))
    story.do(RevokeInvite(invite_id="i3"))
    assert story.events_of(RevokeInvite(invite_id="i3")) == []
    with pytest.raises(InviteRevoked):
        story.do(admit("another", invite_id="i3"))
    with pytest.raises(TicketInvalid):
        story.do(admit("another", invite_id="unknown"))
    with pytest.raises(NotFound):
        story.do(RevokeInvite(invite_id="unknown"))


def test_a_member_that_asks_again_gets_its_first_grant_and_uses_nothing() -> None:
    story = Story()
    story.do(invite(uses=2))
    story.do(admit())
    assert story.do(admit(grant=b"new")) == {"grant": b"g", "role": "worker", "already": True}
    assert story.state.invites.invites["i1"].uses_left == 1


def test_the_owner_can_admit_without_a_ticket_and_a_ticket_decides_the_role() -> None:
    story = Story()
    assert story.do(admit(invite_id="", role="client"))["role"] == "client"
    assert story.do(admit("b", invite_id=""))["role"] == "worker"
    story.do(invite(role="client"))
    assert story.do(admit("c", role="worker"))["role"] == "client"


def test_who_asks_to_be_a_guest_is_one_whatever_the_ticket_is_good_for() -> None:
    story = Story()
    story.do(invite(role="worker"))
    assert story.do(admit("g", role="guest"))["role"] == "guest"
    assert story.state.peers.peers["g"].role == "guest"


# --- other meshes ----------------------------------------------------------------------------------
def federate(mesh_id: str = "m2", name: str = "office", **changes: Any) -> Federate:
    fields: dict[str, Any] = {"mesh_name": "their-mesh", "gateway": PEER, "grant": b"g"}
    return Federate(mesh_id=mesh_id, name=name, **{**fields, **changes})


def test_a_guest_of_another_mesh_is_told_once_more_when_it_renews_its_grant() -> None:
    story = Story()
    story.do(CreateMesh(mesh_id="m1", mesh_name="home"))
    assert story.do(federate()) == {"mesh_id": "m2", "mesh": "their-mesh", "name": "office"}
    assert names_of(story, federate(grant=b"new")) == ["MeshFederated"]
    assert story.do(EndFederation(mesh_id="m2"))["name"] == "office"
    with pytest.raises(NotFound, match="there is no mesh m2"):
        story.do(EndFederation(mesh_id="m2"))


def test_a_mesh_is_no_guest_of_itself_and_names_are_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story()
    story.do(CreateMesh(mesh_id="m1", mesh_name="home"))
    with pytest.raises(WrongMesh, match="the mesh this device is in"):
        story.do(federate("m1"))
    for name in ("a@b", " office"):
        with pytest.raises(RequestError, match="cannot be called"):
            story.do(federate(name=name))
    story.do(federate())
    with pytest.raises(RequestError, match="another mesh is called 'office'"):
        story.do(federate("m3"))
    monkeypatch.setattr(limits, "FEDERATED_MESHES_MAX", 1)
    with pytest.raises(RequestError, match="1 meshes are known already"):
        story.do(federate("m3", "friends"))


def test_a_removed_member_stays_out_until_it_is_forgotten() -> None:
    story = Story()
    story.do(admit(invite_id=""))
    story.do(RevokePeer(peer=PEER, reason="stolen"))
    assert story.events_of(RevokePeer(peer=PEER, reason="again")) == []
    assert not peers.is_member(story.state.peers, PEER)
    with pytest.raises(NotAdmitted, match="stolen"):
        story.do(admit(invite_id=""))
    story.do(ForgetPeer(peer=PEER))
    story.do(admit(invite_id=""))
    story.do(RevokePeer(peer=PEER, reason=""))
    assert story.state.peers.peers[PEER].revoked == "revoked"
    for command in (ForgetPeer(peer=SELF), RevokePeer(peer="unknown", reason="")):
        with pytest.raises(NotFound):
            story.do(command)


# --- presence --------------------------------------------------------------------------------------
def seen(**changes: Any) -> RecordPeerSeen:
    fields: dict[str, Any] = {"peer": PEER, "device_name": "lap", "path": "lan", "version": "1"}
    return RecordPeerSeen(**{**fields, **changes})


def test_only_a_change_of_presence_is_a_fact() -> None:
    story = Story()
    assert story.events_of(RecordPeerLost(peer=PEER, reason="")) == []
    story.do(seen())
    for same in (seen(), seen(device_name="", version="")):
        assert story.events_of(same) == []
    for change in (seen(path="wan"), seen(device_name="new"), seen(version="2")):
        assert names_of(story, change) == ["PeerSeen"]
    story.do(RecordPeerLost(peer=PEER, reason="gone"))
    assert story.events_of(RecordPeerLost(peer=PEER, reason="")) == []
    assert names_of(story, seen()) == ["PeerSeen"]
    with pytest.raises(RequestError):
        story.do(seen(peer=""))


def measured(rtt_us: int = 1000, peer: str = PEER) -> RecordMeasurement:
    return RecordMeasurement(
        measured=facts.PeerMeasured(
            peer=peer,
            rtt_us=rtt_us,
            bytes_per_s=1,
            memory_bytes=1,
            memory_free_bytes=1,
            flops_mega=1,
            memory_bytes_per_s=0,
        )
    )


def test_measurements_are_recorded_when_they_changed_much_and_not_too_often() -> None:
    story = Story()
    with pytest.raises(NotFound):
        story.do(measured())
    story.do(seen())
    story.do(measured())
    assert story.events_of(measured(9000)) == [], "within the same minute"
    story.now_ms += 60_000
    assert story.events_of(measured(1200)) == [], "a fifth is little"
    assert names_of(story, measured(1300)) == ["PeerMeasured"]
    assert names_of(story, measured(0)) == ["PeerMeasured"]
