"""Models, plans, settings, keys, the device's work, top-ups."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from p2pnode import decide as decide_package
from p2pnode import limits
from p2pnode.commands import (
    AbandonPlan,
    ActivatePlan,
    AddModel,
    ChangeSetting,
    Command,
    CreateApiKey,
    DrainDevice,
    PauseDevice,
    ProposePlan,
    RecordFact,
    RejectPlan,
    RemoveModel,
    ResumeDevice,
    RevokeApiKey,
    SetQuota,
    StoreShard,
    TopUp,
)
from p2pnode.errors import IdempotencyConflict, ModelUnknown, NoPlan, NotFound, PlanError, RequestError
from p2pnode.events import types as facts
from p2pnode.projections import billing
from tests.kit.story import SELF, Story, serve


def names_of(story: Story, command: Any) -> list[str]:
    return [type(event).__name__ for event in story.events_of(command)]


def model(content: str = "bafk1", name: str = "tiny") -> AddModel:
    return AddModel(
        model=facts.ModelAdded(
            model=content,
            name=name,
            architecture="llama",
            quantisation="Q8_0",
            size_bytes=800,
            layer_count=8,
            source="file",
        )
    )


def shard(first: int = 0, end: int = 4, content: str = "bafks") -> StoreShard:
    return StoreShard(
        shard=facts.ShardStored(
            model="bafk1", content=content, layer_first=first, layer_end=end, size_bytes=400, source=SELF
        )
    )


def plan(plan_id: str = "p1", peer: str = SELF) -> ProposePlan:
    return ProposePlan(
        plan=facts.PlanProposed(
            plan_id=plan_id, model="bafk1", mode="local", stages=((peer, 0, 8),), tokens_per_s_milli=5000
        )
    )


def test_every_command_has_its_decision() -> None:
    assert set(decide_package._TABLE) == set(get_args(Command))


def test_a_model_is_added_once_under_each_name() -> None:
    story = Story()
    story.do(model())
    assert story.events_of(model()) == []
    assert names_of(story, model(name="renamed")) == ["ModelAdded"]
    story.do(RemoveModel(model="tiny"))
    with pytest.raises(ModelUnknown):
        story.do(RemoveModel(model="bafk1"))


def test_a_shard_is_stored_once() -> None:
    story = Story()
    story.do(shard())
    assert story.events_of(shard()) == []
    with pytest.raises(RequestError):
        story.do(shard(4, 3, "other"))


def test_a_plan_is_proposed_then_active_rejected_or_abandoned() -> None:
    story = Story()
    story.do(plan())
    with pytest.raises(PlanError, match="exists"):
        story.do(plan())
    with pytest.raises(NoPlan) as refused:
        story.do(plan("p2", "12D3KooStranger"))
    assert refused.value.details["rejections"] == ["12D3KooStranger is no member"]
    story.do(ActivatePlan(plan_id="p1", duration_ms=7))
    assert story.events_of(ActivatePlan(plan_id="p1")) == []
    with pytest.raises(PlanError, match="active"):
        story.do(RejectPlan(plan_id="p1", peer=SELF, reason=""))
    story.do(AbandonPlan(plan_id="p1", reason="better one"))
    assert story.events_of(AbandonPlan(plan_id="p1", reason="")) == []
    with pytest.raises(PlanError, match="better one"):
        story.do(ActivatePlan(plan_id="p1"))
    assert names_of(story, plan()) == ["PlanProposed"], "what ended may stand again"
    story.do(plan())
    story.do(ActivatePlan(plan_id="p1"))
    story.do(plan("p3"))
    story.do(RejectPlan(plan_id="p3", peer=SELF, reason="no memory"))
    assert story.events_of(RejectPlan(plan_id="p3", peer=SELF, reason="")) == []
    assert story.events_of(AbandonPlan(plan_id="p3", reason="")) == []
    with pytest.raises(NotFound):
        story.do(ActivatePlan(plan_id="unknown"))


def test_the_device_changes_its_work_only_when_it_changes() -> None:
    story = Story()
    assert story.events_of(ResumeDevice()) == []
    story.do(PauseDevice(reason="on  battery\nnow"))
    assert story.events_of(PauseDevice()) == []
    assert story.records[-1].event == facts.DevicePaused(reason="on battery now")
    story.do(serve(caller="local"))
    story.do(DrainDevice())
    assert story.events_of(DrainDevice()) == []
    assert story.records[-1].event == facts.DeviceDrained(requests_left=1)
    story.do(ResumeDevice())
    assert story.state.node.work == "taking"


def test_a_setting_remembers_what_it_was() -> None:
    story = Story()
    assert story.do(ChangeSetting(key="a.b", value="")) == {"key": "a.b", "value": "", "previous": ""}
    assert story.events_of(ChangeSetting(key="a.b", value="")) == []
    assert story.do(ChangeSetting(key="a.b", value="x"))["previous"] == ""
    assert story.do(ChangeSetting(key="a.b", value="y"))["previous"] == "x"
    with pytest.raises(RequestError):
        story.do(ChangeSetting(key="a.b", value="x" * 513))


def test_a_key_is_made_used_and_revoked() -> None:
    story = Story()
    key = CreateApiKey(key_id="k1", label="phone", scopes=("use", "admin", "use"))
    assert story.do(key) == {"key_id": "k1", "scopes": ["admin", "use"]}
    assert not story.state.node.api_keys["k1"].revoked
    for wrong in (
        key,
        CreateApiKey(key_id="k2", label="", scopes=()),
        CreateApiKey(key_id="k2", label="", scopes=("god",)),
    ):
        with pytest.raises(RequestError):
            story.do(wrong)
    story.do(RevokeApiKey(key_id="k1"))
    assert story.events_of(RevokeApiKey(key_id="k1")) == []
    assert story.state.node.api_keys["k1"].revoked
    assert "k2" not in story.state.node.api_keys
    with pytest.raises(NotFound):
        story.do(RevokeApiKey(key_id="k2"))


def test_a_fact_without_a_choice_is_recorded_as_it_is() -> None:
    story = Story()
    fact = facts.StageLost(
        request_id="r1", plan_id="p1", peer=SELF, layer_first=0, layer_end=4, position=3, reason="killed"
    )
    story.do(RecordFact(fact=fact))
    assert (story.records[-1].event, story.records[-1].correlation) == (fact, "r1")
    story.do(RecordFact(fact=facts.EngineDied(model="m", exit_code=-9, reason="killed")))
    assert story.records[-1].correlation is None


# --- credit ----------------------------------------------------------------------------------------
def top_up(**changes: Any) -> TopUp:
    fields: dict[str, Any] = {"account": "key1", "amount_microunits": 5, "idempotency_key": "once"}
    return TopUp(**{**fields, **changes})


def test_a_top_up_happens_once_for_each_key() -> None:
    story = Story()
    assert story.do(top_up(), key="once") == {"account": "key1", "available_microunits": 5}
    assert story.do(top_up(), key="once") == {"account": "key1", "available_microunits": 5}
    assert story.events_of(top_up()) == []
    for other in (top_up(amount_microunits=6), top_up(account="key2")):
        with pytest.raises(IdempotencyConflict):
            story.do(other)
    story.do(top_up(idempotency_key="twice"), key="twice")
    assert billing.available(story.state.billing, "key1") == 10


@pytest.mark.parametrize(
    "changes",
    [
        {"account": "mint/topup"},
        {"account": "held/x"},
        {"amount_microunits": 0},
        {"amount_microunits": -1},
        {"amount_microunits": limits.TOPUP_MICROUNITS_MAX + 1},
        {"idempotency_key": ""},
    ],
)
def test_a_top_up_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Story().do(top_up(**changes))


def test_balances_have_a_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ACCOUNT_MICROUNITS_MAX", 9)
    story = Story()
    story.do(top_up(), key="once")
    with pytest.raises(RequestError, match="given out"):
        story.do(top_up(idempotency_key="twice"))


def test_a_quota_is_recorded_when_it_changes_something() -> None:
    story = Story()
    lift = SetQuota(account="key1", limit_microunits=0, period_ms=0, unlimited=True)
    quota = SetQuota(account="key1", limit_microunits=5, period_ms=1000)
    assert story.events_of(lift) == []
    story.do(quota)
    assert story.events_of(quota) == []
    story.do(lift)
    assert story.events_of(lift) == []
    for wrong in (
        SetQuota(account="key1", limit_microunits=-1, period_ms=1000),
        SetQuota(account="key1", limit_microunits=1, period_ms=0),
        SetQuota(account="a/b", limit_microunits=1, period_ms=1),
    ):
        with pytest.raises(RequestError):
            story.do(wrong)
