"""Plans: which devices run which layers, what was promised and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from p2pnode import limits
from p2pnode.events import types as facts
from p2pnode.events.codec import Record
from p2pnode.projections.fold import Handlers, JsonObject, forget_oldest, in_order, plus


class Plan(msgspec.Struct, array_like=True):
    index: int
    model: str
    mode: str
    stages: tuple[tuple[str, int, int], ...]
    predicted_milli: int
    """Promised tokens per second, in thousandths."""
    why: str
    proposed_ms: int
    state: str = "proposed"
    """proposed, active, rejected or abandoned."""
    changed_ms: int = 0
    activation_ms: int = 0
    reason: str = ""
    rejected_by: str = ""
    requests: int = 0
    decode_tokens: int = 0
    decode_ms: int = 0
    stages_lost: int = 0

    @property
    def has_ended(self) -> bool:
        """For good, unless it is proposed again."""
        return self.state in ("rejected", "abandoned")


class Run(msgspec.Struct, array_like=True):
    index: int
    plan_id: str


class Plans(msgspec.Struct):
    plans: dict[str, Plan] = {}
    running: dict[str, Run] = {}
    """Request to the plan it runs under; plans of forgotten requests lose a measurement, no more."""

    def __post_init__(self) -> None:
        self.plans = in_order(self.plans)
        self.running = in_order(self.running)


def initial() -> Plans:
    return Plans()


def measured_milli(plan: Plan) -> int | None:
    """Measured tokens per second in thousandths over all answers of this plan; None before the first."""
    return plan.decode_tokens * 1_000_000 // plan.decode_ms if plan.decode_ms else None


def _plan_proposed(state: Plans, record: Record, event: facts.PlanProposed) -> None:
    state.plans.pop(event.plan_id, None)
    state.plans[event.plan_id] = Plan(
        record.index,
        event.model,
        event.mode,
        event.stages,
        event.tokens_per_s_milli,
        event.why,
        record.wall_ms,
    )
    while len(state.plans) > limits.PLANS_KEPT_MAX:
        _forget_one(state)


def _forget_one(state: Plans) -> None:
    """The oldest that does not serve, or else the oldest."""
    oldest = next(iter(state.plans))
    del state.plans[next((i for i, plan in state.plans.items() if plan.state != "active"), oldest)]


def _plan_activated(state: Plans, record: Record, event: facts.PlanActivated) -> None:
    plan = state.plans.get(event.plan_id)
    if plan is not None:
        plan.state, plan.changed_ms, plan.activation_ms = "active", record.wall_ms, event.duration_ms


def _plan_rejected(state: Plans, record: Record, event: facts.PlanRejected) -> None:
    plan = state.plans.get(event.plan_id)
    if plan is not None:
        plan.state, plan.changed_ms = "rejected", record.wall_ms
        plan.reason, plan.rejected_by = event.reason, event.peer


def _plan_abandoned(state: Plans, record: Record, event: facts.PlanAbandoned) -> None:
    plan = state.plans.get(event.plan_id)
    if plan is not None:
        plan.state, plan.changed_ms, plan.reason = "abandoned", record.wall_ms, event.reason


def _request_accepted(state: Plans, record: Record, event: facts.RequestAccepted) -> None:
    plan = state.plans.get(event.plan_id)
    if plan is not None:
        plan.requests += 1
        state.running.pop(event.request_id, None)
        state.running[event.request_id] = Run(record.index, event.plan_id)
        forget_oldest(state.running, limits.REQUESTS_KEPT_MAX)


def _request_finished(state: Plans, record: Record, event: facts.RequestFinished) -> None:
    run = state.running.pop(event.request_id, None)
    plan = None if run is None else state.plans.get(run.plan_id)
    if plan is not None and event.completion_tokens > 1:  # the first token belongs to prefill
        plan.decode_tokens = plus(plan.decode_tokens, event.completion_tokens - 1)
        plan.decode_ms = plus(plan.decode_ms, event.decode_ms)


def _request_failed(state: Plans, record: Record, event: facts.RequestFailed) -> None:
    state.running.pop(event.request_id, None)


def _stage_lost(state: Plans, record: Record, event: facts.StageLost) -> None:
    plan = state.plans.get(event.plan_id)
    if plan is not None:
        plan.stages_lost += 1


def _node_started(state: Plans, record: Record, event: facts.NodeStarted) -> None:
    """No engine outlives its node: what was active has to be activated again."""
    for plan in state.plans.values():
        if plan.state == "active":
            plan.state, plan.changed_ms = "proposed", record.wall_ms
    state.running = {}


def view(
    state: Plans,
    now_ms: int,
    *,
    names: Mapping[str, str],
    models: Mapping[str, tuple[str, int, int]],
) -> JsonObject:
    """{"plans": [{"plan_id", "model", "mode", "state", "reason", "rejected_by", "why", "proposed_ms",
    "changed_ms", "activation_ms", "predicted_tokens_per_s", "measured_tokens_per_s", "requests",
    "stages_lost", "stages": [{"peer", "name", "layers", "bytes", "memory_bytes"}]}]}, newest first.

    `models` maps a content id to (name, size_bytes, layers); bytes of a stage are its share by layers.
    """
    return {
        "plans": [_plan_view(plan_id, plan, names, models) for plan_id, plan in reversed(state.plans.items())]
    }


def _plan_view(
    plan_id: str, plan: Plan, names: Mapping[str, str], models: Mapping[str, tuple[str, int, int]]
) -> JsonObject:
    name, size_bytes, layer_count = models.get(plan.model, (plan.model, 0, 0))
    measured = measured_milli(plan)
    stages: list[JsonObject] = []
    for peer, first, end in plan.stages:
        share = size_bytes * (end - first) // layer_count if layer_count else 0
        stages.append(
            {
                "peer": peer,
                "name": names.get(peer, peer[-8:]),
                "layers": [first, end],
                "bytes": share,
                "memory_bytes": share,
            }
        )
    return {
        "plan_id": plan_id,
        "model": name,
        "mode": plan.mode,
        "state": plan.state,
        "reason": plan.reason,
        "rejected_by": plan.rejected_by,
        "why": plan.why,
        "proposed_ms": plan.proposed_ms,
        "changed_ms": plan.changed_ms,
        "activation_ms": plan.activation_ms,
        "predicted_tokens_per_s": plan.predicted_milli / 1000,
        "measured_tokens_per_s": None if measured is None else measured / 1000,
        "requests": plan.requests,
        "stages_lost": plan.stages_lost,
        "stages": stages,
    }


HANDLERS: Final[Handlers] = {
    facts.PlanProposed: _plan_proposed,
    facts.PlanActivated: _plan_activated,
    facts.PlanRejected: _plan_rejected,
    facts.PlanAbandoned: _plan_abandoned,
    facts.RequestAccepted: _request_accepted,
    facts.RequestFinished: _request_finished,
    facts.RequestFailed: _request_failed,
    facts.StageLost: _stage_lost,
    facts.NodeStarted: _node_started,
}
