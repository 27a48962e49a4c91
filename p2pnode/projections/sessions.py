"""Sessions: the newest requests, how each went and what it cost; older ones are in the log only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from p2pnode import limits
from p2pnode.events import types as facts
from p2pnode.events.codec import Record
from p2pnode.projections.fold import Handlers, JsonObject, forget_oldest, in_order


class Request(msgspec.Struct, array_like=True):
    index: int
    caller: str
    model: str
    mode: str
    plan_id: str
    prompt_tokens: int
    max_tokens: int
    accepted_ms: int
    state: str = "running"
    """running, finished or failed."""
    ended_ms: int = 0
    reason: str = ""
    """Finish reason, or the code of the error."""
    message: str = ""
    completion_tokens: int = 0
    cached_tokens: int = 0
    prefill_ms: int = 0
    decode_ms: int = 0
    stages: tuple[tuple[str, int, int], ...] = ()
    cost_microunits: int = 0
    stages_lost: int = 0
    stages_recovered: int = 0
    end_index: int = -1
    served_by: str = ""
    """The member that was asked for all of it; empty for those this node runs itself."""
    served_mesh: str = ""
    """Id of the mesh that member is of, where that is another than this node's."""


class Sessions(msgspec.Struct):
    requests: dict[str, Request] = {}
    accepted: int = 0
    finished: int = 0
    failed: int = 0
    stages_lost: int = 0
    stages_recovered: int = 0
    forwarded: int = 0

    def __post_init__(self) -> None:
        self.requests = in_order(self.requests)


def initial() -> Sessions:
    return Sessions()


def running(state: Sessions) -> list[str]:
    """Ids of requests that have neither ended nor been forgotten, oldest first."""
    return [request_id for request_id, entry in state.requests.items() if entry.state == "running"]


def _request_accepted(state: Sessions, record: Record, event: facts.RequestAccepted) -> None:
    state.accepted += 1
    state.requests.pop(event.request_id, None)
    state.requests[event.request_id] = Request(
        record.index,
        event.caller,
        event.model,
        event.mode,
        event.plan_id,
        event.prompt_tokens,
        event.max_tokens,
        record.wall_ms,
    )
    forget_oldest(state.requests, limits.REQUESTS_KEPT_MAX)


def _request_finished(state: Sessions, record: Record, event: facts.RequestFinished) -> None:
    state.finished += 1
    entry = state.requests.get(event.request_id)
    if entry is not None:
        entry.state, entry.ended_ms, entry.reason = "finished", record.wall_ms, event.reason
        entry.end_index = record.index
        entry.completion_tokens, entry.cached_tokens = event.completion_tokens, event.cached_tokens
        entry.prompt_tokens = event.prompt_tokens
        entry.prefill_ms, entry.decode_ms, entry.stages = event.prefill_ms, event.decode_ms, event.stages


def _request_failed(state: Sessions, record: Record, event: facts.RequestFailed) -> None:
    state.failed += 1
    entry = state.requests.get(event.request_id)
    if entry is not None:
        entry.state, entry.ended_ms, entry.reason = "failed", record.wall_ms, event.code
        entry.end_index = record.index
        entry.message, entry.completion_tokens = event.message, event.completion_tokens


def _request_forwarded(state: Sessions, record: Record, event: facts.RequestForwarded) -> None:
    state.forwarded += 1
    state.requests.pop(event.request_id, None)
    entry = Request(
        record.index, event.caller, event.model, "forwarded", "", 0, event.max_tokens, record.wall_ms
    )
    entry.served_by, entry.served_mesh = event.peer, event.mesh
    state.requests[event.request_id] = entry
    forget_oldest(state.requests, limits.REQUESTS_KEPT_MAX)


def _forwarded_ended(state: Sessions, record: Record, event: facts.ForwardedRequestEnded) -> None:
    entry = state.requests.get(event.request_id)
    if entry is not None:
        entry.state, entry.ended_ms, entry.reason = "finished", record.wall_ms, event.reason
        entry.end_index = record.index
        entry.prompt_tokens, entry.completion_tokens = event.prompt_tokens, event.completion_tokens
        entry.cost_microunits = event.cost_microunits


def _credit_settled(state: Sessions, record: Record, event: facts.CreditSettled) -> None:
    entry = state.requests.get(event.request_id)
    if entry is not None:
        entry.cost_microunits += event.amount_microunits


def _unit_settled(state: Sessions, record: Record, event: facts.UnitSettled) -> None:
    entry = state.requests.get(event.request_id)
    if entry is not None:
        entry.cost_microunits += event.amount_microunits


def _stage_lost(state: Sessions, record: Record, event: facts.StageLost) -> None:
    state.stages_lost += 1
    entry = state.requests.get(event.request_id)
    if entry is not None:
        entry.stages_lost += 1


def _stage_recovered(state: Sessions, record: Record, event: facts.StageRecovered) -> None:
    state.stages_recovered += 1
    entry = state.requests.get(event.request_id)
    if entry is not None:
        entry.stages_recovered += 1
        entry.plan_id = event.plan_id


def view(
    state: Sessions,
    now_ms: int,
    *,
    names: Mapping[str, str],
    models: Mapping[str, tuple[str, int, int]],
    meshes: Mapping[str, str],
) -> JsonObject:
    """{"sessions": [{"request_id", "caller", "model", "mode", "plan_id", "state", "reason", "message",
    "accepted_ms", "duration_ms", "prompt_tokens", "completion_tokens", "cached_tokens", "prefill_ms",
    "decode_ms", "tokens_per_s", "cost_microunits", "stages_lost", "stages_recovered", "stages": [{"peer",
    "name", "layers"}], "served_by", "served_by_name", "served_mesh", "index", "end_index"}], "running", "accepted",
    "finished", "failed", "forwarded"}, newest first.
    """
    return {
        "sessions": [
            _request_view(request_id, entry, now_ms, names, models, meshes)
            for request_id, entry in reversed(state.requests.items())
        ],
        "running": len(running(state)),
        "accepted": state.accepted,
        "finished": state.finished,
        "failed": state.failed,
        "forwarded": state.forwarded,
    }


def _request_view(
    request_id: str,
    entry: Request,
    now_ms: int,
    names: Mapping[str, str],
    models: Mapping[str, tuple[str, int, int]],
    meshes: Mapping[str, str],
) -> JsonObject:
    mesh = meshes.get(entry.served_mesh, entry.served_mesh[-8:])
    rate = (entry.completion_tokens - 1) * 1000 / entry.decode_ms if entry.decode_ms else None
    return {
        "request_id": request_id,
        "caller": entry.caller,
        "model": models.get(entry.model, (entry.model, 0, 0))[0],
        "mode": entry.mode,
        "plan_id": entry.plan_id,
        "state": entry.state,
        "reason": entry.reason,
        "message": entry.message,
        "accepted_ms": entry.accepted_ms,
        "duration_ms": max((entry.ended_ms or now_ms) - entry.accepted_ms, 0),
        "prompt_tokens": entry.prompt_tokens,
        "completion_tokens": entry.completion_tokens,
        "cached_tokens": entry.cached_tokens,
        "prefill_ms": entry.prefill_ms,
        "decode_ms": entry.decode_ms,
        "tokens_per_s": None if rate is None else max(round(rate, 3), 0.0),
        "cost_microunits": entry.cost_microunits,
        "stages_lost": entry.stages_lost,
        "stages_recovered": entry.stages_recovered,
        "stages": [
            {"peer": peer, "name": names.get(peer, peer[-8:]), "layers": [first, end]}
            for peer, first, end in entry.stages
        ],
        "served_by": entry.served_by or None,
        "served_by_name": names.get(entry.served_by, entry.served_by[-8:]) or None,
        "served_mesh": mesh or None,
        "index": entry.index,
        "end_index": entry.end_index if entry.end_index >= 0 else None,
    }


HANDLERS: Final[Handlers] = {
    facts.RequestAccepted: _request_accepted,
    facts.RequestFinished: _request_finished,
    facts.RequestFailed: _request_failed,
    facts.RequestForwarded: _request_forwarded,
    facts.ForwardedRequestEnded: _forwarded_ended,
    facts.CreditSettled: _credit_settled,
    facts.UnitSettled: _unit_settled,
    facts.StageLost: _stage_lost,
    facts.StageRecovered: _stage_recovered,
}
