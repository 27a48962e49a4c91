"""Everything a node knows, folded from its log: one state, one `apply`, one snapshot form.

`MeshState` belongs to one fold in one thread and changes in place; `apply` returns the same object. The
log's writer has one (decisions are made against it), the node has another, fed with what is committed.
`snapshot` and `restore` go through bytes, so no two folds ever share a table.
"""

from __future__ import annotations

import hashlib
from types import ModuleType
from typing import Any, Final

import msgspec

from p2pnode.errors import CorruptRecord
from p2pnode.events.codec import Record
from p2pnode.events.types import EVENT_TYPES, Event, UnknownEvent
from p2pnode.projections import (
    audit,
    billing,
    federation,
    invites,
    models,
    node,
    peers,
    plans,
    sessions,
    settings,
    usage,
)
from p2pnode.projections.fold import Handler

VERSIONS: Final[dict[str, int]] = {
    "audit": 4,
    "billing": 5,
    "federation": 1,
    "invites": 4,
    "models": 4,
    "node": 5,
    "peers": 4,
    "plans": 4,
    "sessions": 5,
    "settings": 4,
    "usage": 4,
}
"""Of each part of the state; raised whenever the same log would fold to another such part, which is then rebuilt.
tests/unit/projections/test_projection_replay.py fails when a fold changes and this does not."""


class MeshState(msgspec.Struct):
    size: int = 0
    """Events applied so far; the next must have this index."""
    audit: audit.Audit = msgspec.field(default_factory=audit.initial)
    billing: billing.Billing = msgspec.field(default_factory=billing.initial)
    federation: federation.Federation = msgspec.field(default_factory=federation.initial)
    invites: invites.Invites = msgspec.field(default_factory=invites.initial)
    models: models.Models = msgspec.field(default_factory=models.initial)
    node: node.Node = msgspec.field(default_factory=node.initial)
    peers: peers.Peers = msgspec.field(default_factory=peers.initial)
    plans: plans.Plans = msgspec.field(default_factory=plans.initial)
    sessions: sessions.Sessions = msgspec.field(default_factory=sessions.initial)
    settings: settings.Settings = msgspec.field(default_factory=settings.initial)
    usage: usage.Usage = msgspec.field(default_factory=usage.initial)


_MODULES: Final[dict[str, ModuleType]] = {
    "audit": audit,
    "billing": billing,
    "federation": federation,
    "invites": invites,
    "models": models,
    "node": node,
    "peers": peers,
    "plans": plans,
    "sessions": sessions,
    "settings": settings,
    "usage": usage,
}


def _handlers_of(event_type: type[Event]) -> tuple[tuple[str, Handler], ...]:
    own = [
        (name, module.HANDLERS[event_type])
        for name, module in _MODULES.items()
        if event_type in module.HANDLERS
    ]
    return (("audit", audit.count), *own)


TABLE: Final[dict[type[Any], tuple[tuple[str, Handler], ...]]] = {
    event_type: _handlers_of(event_type) for event_type in (*EVENT_TYPES.values(), UnknownEvent)
}
"""Which parts of the state a fact changes; no part looks at another."""


def all_projections() -> tuple[str, ...]:
    """Names of the parts of the state, in order."""
    return tuple(_MODULES)


def initial() -> MeshState:
    return MeshState()


def apply(state: MeshState, record: Record) -> MeshState:
    """Fold one more fact in, in place; facts come in the order of the log."""
    if record.index != state.size:
        raise CorruptRecord(f"event {record.index} came when {state.size} was next", index=state.size)
    event = record.event
    for part, handler in TABLE[type(event)]:
        handler(getattr(state, part), record, event)
    state.size += 1
    return state


_encode: Final = msgspec.msgpack.Encoder(order="sorted").encode
_decode: Final = msgspec.msgpack.Decoder(MeshState).decode


def snapshot(state: MeshState) -> bytes:
    """The one encoding of a state: the same log gives the same bytes on every machine."""
    return _encode(state)


def state_hash(state: MeshState) -> bytes:
    """SHA-256 of the snapshot."""
    return hashlib.sha256(snapshot(state)).digest()


def restore(raw: bytes, expected_hash: bytes | None = None) -> MeshState:
    """A state from its snapshot; CorruptRecord when the bytes are not what was hashed."""
    if expected_hash is not None and hashlib.sha256(raw).digest() != expected_hash:
        raise CorruptRecord("a snapshot does not have the hash it was stored with", index=0)
    try:
        return _decode(raw)
    except msgspec.MsgspecError as error:
        raise CorruptRecord(f"not a snapshot: {error}", index=0) from error
