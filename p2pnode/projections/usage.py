"""Usage: tokens per day, caller and model; the oldest days are forgotten, sums over all time are kept."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Final

import msgspec

from p2pnode import limits
from p2pnode.events import types as facts
from p2pnode.events.codec import Record
from p2pnode.projections.fold import Handlers, JsonObject, forget_oldest, in_order, plus

DAY_MS: Final = 86_400_000
EPOCH: Final = datetime.date(1970, 1, 1)
DAYS_MAX: Final = (datetime.date.max - EPOCH).days
OTHERS: Final = "(others)"
SEPARATOR: Final = "\n"
"""Between caller and model in a row's key; a caller of ours cannot contain it."""


class Open(msgspec.Struct, array_like=True):
    index: int
    caller: str
    model: str


class Row(msgspec.Struct, array_like=True):
    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    compute_ms: int = 0
    cost_microunits: int = 0

    def count(self, event: facts.RequestFinished | facts.ForwardedRequestEnded) -> None:
        self.requests += 1
        self.prompt_tokens = plus(self.prompt_tokens, event.prompt_tokens)
        self.completion_tokens = plus(self.completion_tokens, event.completion_tokens)


class Usage(msgspec.Struct):
    open: dict[str, Open] = {}
    days: dict[str, dict[str, Row]] = {}
    """Day since 1970, six digits, to caller and model to sums."""
    total: Row = msgspec.field(default_factory=Row)

    def __post_init__(self) -> None:
        self.open = in_order(self.open)
        self.days = dict(sorted(self.days.items()))


def initial() -> Usage:
    return Usage()


def _row(state: Usage, record: Record, entry: Open) -> Row:
    day = f"{record.wall_ms // DAY_MS:06d}"
    rows = state.days.get(day)
    if rows is None:
        rows = state.days[day] = {}
        while len(state.days) > limits.USAGE_DAYS_KEPT_MAX:
            del state.days[min(state.days)]
    key = f"{entry.caller}{SEPARATOR}{entry.model}"
    if key not in rows and len(rows) >= limits.USAGE_ROWS_PER_DAY_MAX:
        key = f"{OTHERS}{SEPARATOR}{OTHERS}"
    row = rows.get(key)
    if row is None:
        row = rows[key] = Row()
    return row


def _request_accepted(
    state: Usage, record: Record, event: facts.RequestAccepted | facts.RequestForwarded
) -> None:
    state.open.pop(event.request_id, None)
    state.open[event.request_id] = Open(record.index, event.caller, event.model)
    forget_oldest(state.open, limits.REQUESTS_KEPT_MAX)


def _request_finished(state: Usage, record: Record, event: facts.RequestFinished) -> None:
    entry = state.open.get(event.request_id)
    if entry is None:
        return
    for row in (_row(state, record, entry), state.total):
        row.count(event)
        row.cached_tokens = plus(row.cached_tokens, event.cached_tokens)
        row.compute_ms = plus(row.compute_ms, event.prefill_ms + event.decode_ms)


def _forwarded_ended(state: Usage, record: Record, event: facts.ForwardedRequestEnded) -> None:
    entry = state.open.pop(event.request_id, None)
    if entry is None:
        return
    for row in (_row(state, record, entry), state.total):
        row.count(event)
        row.cost_microunits = plus(row.cost_microunits, event.cost_microunits)


def _request_failed(state: Usage, record: Record, event: facts.RequestFailed) -> None:
    entry = state.open.pop(event.request_id, None)
    if entry is None:
        return
    for row in (_row(state, record, entry), state.total):
        row.requests += 1
        row.failed += 1
        row.completion_tokens = plus(row.completion_tokens, event.completion_tokens)


def _credit_settled(state: Usage, record: Record, event: facts.CreditSettled) -> None:
    entry = state.open.pop(event.request_id, None)
    if entry is not None and event.amount_microunits:
        for row in (_row(state, record, entry), state.total):
            row.cost_microunits = plus(row.cost_microunits, event.amount_microunits)


def _unit_settled(state: Usage, record: Record, event: facts.UnitSettled) -> None:
    entry = state.open.get(event.request_id)
    if entry is not None:
        for row in (_row(state, record, entry), state.total):
            row.cost_microunits = plus(row.cost_microunits, event.amount_microunits)


def _rows(state: Usage) -> list[JsonObject]:
    rows: list[JsonObject] = []
    for day, entries in sorted(state.days.items(), reverse=True):
        for key, row in sorted(entries.items()):
            caller, _, model = key.partition(SEPARATOR)
            date = EPOCH + datetime.timedelta(days=min(int(day), DAYS_MAX))
            rows.append(
                {"day": date.isoformat(), "caller": caller, "model": model, **msgspec.structs.asdict(row)}
            )
    return rows


def view(state: Usage, now_ms: int, *, models: Mapping[str, tuple[str, int, int]]) -> JsonObject:
    """{"usage": [{"day", "caller", "model", "requests", "failed", "prompt_tokens", "completion_tokens",
    "cached_tokens", "compute_ms", "cost_microunits"}], "total": {the same sums}}, newest day first.
    """
    rows = _rows(state)
    for row in rows:
        row["model"] = models.get(row["model"], (row["model"], 0, 0))[0]
    return {"usage": rows, "total": msgspec.structs.asdict(state.total)}


HANDLERS: Final[Handlers] = {
    facts.RequestAccepted: _request_accepted,
    facts.RequestFinished: _request_finished,
    facts.RequestFailed: _request_failed,
    facts.RequestForwarded: _request_accepted,
    facts.ForwardedRequestEnded: _forwarded_ended,
    facts.CreditSettled: _credit_settled,
    facts.UnitSettled: _unit_settled,
}
