"""A node's record without a log: commands in, records out, state beside them; every record goes through bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from p2pnode import projections
from p2pnode.commands import Command, FinishRequest, ServeRequest
from p2pnode.decide import decide
from p2pnode.events import codec
from p2pnode.events import types as facts
from p2pnode.events.codec import Record
from p2pnode.events.ids import IdState, next_id
from p2pnode.events.types import Event
from p2pnode.projections import MeshState
from p2pnode.units import EventIndex, UnixMs

NOW_MS = 1_800_000_000_000
HASH = bytes(range(32))
SELF = "12D3KooSelf"
STRANGER = "12D3KooStranger"


def keys_bound(peer: str = SELF) -> facts.KeysBound:
    return facts.KeysBound(
        peer=peer,
        identity_key=HASH,
        origin=f"p2pnode/{peer}",
        generation=0,
        log_key=HASH,
        witness_key=HASH,
        receipt_key=HASH,
        signature=bytes(64),
    )


class Story:
    """`do` decides and records; `tell` records a fact as it is."""

    def __init__(self, peer: str = SELF, *, bound: bool = True) -> None:
        self.state: MeshState = projections.initial()
        self.records: list[Record] = []
        self.now_ms = NOW_MS
        self._ids = IdState()
        if bound:
            self.tell(keys_bound(peer))

    def do(self, command: Command, *, actor: str = "local", key: str | None = None) -> dict[str, Any]:
        """The answer; what was decided is recorded."""
        decision = decide(self.state, command, self.now_ms)
        for new in decision.events:
            self._record(new.event, actor, new.correlation, key)
        answer: dict[str, Any] = decision.result
        return answer

    def events_of(self, command: Command) -> list[Event]:
        """What would be recorded."""
        return [new.event for new in decide(self.state, command, self.now_ms).events]

    def tell(self, *events: Event, actor: str = "local", key: str | None = None) -> Story:
        for event in events:
            self._record(event, actor, None, key)
        return self

    def _record(self, event: Event, actor: str, correlation: str | None, key: str | None) -> None:
        event_id, self._ids = next_id(self._ids, self.now_ms, bytes)
        index = EventIndex(len(self.records))
        record = Record(index, event_id, actor, UnixMs(self.now_ms), index + 1, correlation, None, key, event)
        record = codec.decode(codec.encode(record), index)
        projections.apply(self.state, record)
        self.records.append(record)


def folded(records: Iterable[Record]) -> MeshState:
    """The state after these records, from nothing."""
    state = projections.initial()
    for record in records:
        projections.apply(state, record)
    return state


def serve(request_id: str = "r1", caller: str = STRANGER, **changes: Any) -> ServeRequest:
    fields: dict[str, Any] = {
        "request_id": request_id,
        "caller": caller,
        "path": "wan",
        "network": "net",
        "model": "bafkmodel",
        "mode": "pipeline",
        "plan_id": "plan",
        "prompt_commitment": HASH,
        "prompt_tokens": 7,
        "max_tokens": 256,
    }
    return ServeRequest(**{**fields, **changes})


def finish(request_id: str = "r1", **changes: Any) -> FinishRequest:
    fields: dict[str, Any] = {
        "request_id": request_id,
        "reason": "stop",
        "prompt_tokens": 7,
        "completion_tokens": 100,
        "cached_tokens": 2,
        "answer_commitment": HASH,
        "prefill_ms": 50,
        "decode_ms": 2000,
        "stages": ((SELF, 0, 4), ("12D3KooOther", 4, 8)),
        "work": ((SELF, 400), ("12D3KooOther", 400)),
    }
    return FinishRequest(**{**fields, **changes})
