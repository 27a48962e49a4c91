"""A stored log opened: proved whole, its keys found, its state folded, before anything is written again.

Source: specs/08-log.md#store
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Generic

from p2pnode.errors import CorruptRecord
from p2pnode.events.assembler import Position
from p2pnode.events.block import GENESIS
from p2pnode.events.codec import Record, decode_trusted
from p2pnode.events.ids import IdState, state_after
from p2pnode.events.keys import LogKeys, is_binding_valid
from p2pnode.events.log import Fold, State
from p2pnode.events.merkle import Edge, leaf_hash, root_at
from p2pnode.events.rebuild import PartedFold, Rebuild
from p2pnode.events.tables import SnapshotRow, Tables
from p2pnode.events.types import KeysBound
from p2pnode.identity import Identity
from p2pnode.limits import LOG_REBUILD_EVENTS_MIN
from p2pnode.units import EventIndex

_CHUNK: Final = 5_000


class StoredTree:
    """Tiles from the tables, the unfinished upper ones from the edge."""

    def __init__(self, tables: Tables, edge: Edge) -> None:
        self._tables, self._edge = tables, edge

    def tile(self, level: int, index: int) -> bytes:
        return self._tables.tile(level, index) or self._edge.partial(level, index)


@dataclass(frozen=True, slots=True)
class Folded(Generic[State]):
    """The state decisions begin with."""

    state: State
    first: int
    """The size of the snapshot it was folded from."""
    replayed_count: int
    rebuild: Rebuild[State] | None = None
    """What is still to be folded beside it."""


def record_at(tables: Tables, index: int) -> Record:
    return decode_trusted(tables.bodies(index, index + 1)[0], EventIndex(index))


def position_of(tables: Tables, size: int, now_ms: int) -> Position:
    """Rebuild the right edge and check it against the newest seal, before anything is signed again."""
    edge = Edge.load(StoredTree(tables, Edge()), size)
    block = tables.last_block()
    sealed = 0 if block is None else block.header.end
    if sealed > size:
        raise CorruptRecord(f"the log ends at {size}, but {sealed} events were sealed", index=size)
    if block is not None and root_at(StoredTree(tables, edge), sealed) != block.header.log_root:
        raise CorruptRecord(
            f"the first {sealed} events are not those that were sealed",
            hint="p2pnode log verify names the first one that differs",
            index=block.header.first,
        )
    unsealed = []
    for index, body, leaf in tables.events(sealed, size):
        if leaf_hash(body) != leaf:
            raise CorruptRecord(f"event {index} is not what was written", index=index)
        unsealed.append(leaf)
    last_id = tables.last_event_id()
    return Position(
        edge=edge,
        ids=IdState() if last_id is None else state_after(last_id),
        lamport=record_at(tables, size - 1).lamport if size else 0,
        block_number=0 if block is None else block.header.number + 1,
        previous_hash=GENESIS if block is None else block.hash,
        unsealed=unsealed,
        unsealed_since_ms=now_ms,
    )


def bound_keys(tables: Tables, identity: Identity, size: int) -> tuple[LogKeys, str]:
    """The newest keys bound in the log, which must be this node's; and its name before a refused rollback."""
    if size == 0:
        return LogKeys.derive(identity), ""
    index = max(tables.bindings(), default=0)
    event = record_at(tables, index).event
    if not isinstance(event, KeysBound) or not is_binding_valid(event):
        raise CorruptRecord(f"event {index} does not bind this log's keys", index=index)
    keys = LogKeys.derive(identity, event.generation, event.origin)
    if keys.bound(event.previous_origin) != event:
        raise CorruptRecord(
            f"the log belongs to {event.peer}, the identity key to {identity.peer_id}",
            hint="put the identity key and the log of one node together",
            index=index,
        )
    return keys, event.previous_origin


def fold_stored(
    tables: Tables, fold: Fold[State], beside: PartedFold[State] | None, size: int, edge: Edge
) -> Folded[State]:
    """From the newest good snapshot, or from the beginning: at once, or what is much of it beside the old state."""
    row = _whole_snapshot(tables, size, edge)
    state, first = _load_snapshot(fold, row)
    if first or beside is None or size < LOG_REBUILD_EVENTS_MIN:
        return Folded(_fold_on(tables, fold, state, first, size), first, size - first)
    rebuild = Rebuild(beside, row)
    if rebuild.has_current:
        rebuild.shown = _fold_on(tables, rebuild.current, rebuild.shown, rebuild.as_of, size)
    return Folded(rebuild.decided_on(), 0, size - rebuild.as_of if rebuild.has_current else 0, rebuild)


def _fold_on(tables: Tables, fold: Fold[State], state: State, first: int, size: int) -> State:
    """Over what is stored from `first` on; every replayed body is checked."""
    while first < size:
        end = min(first + _CHUNK, size)
        for index, body, leaf in tables.events(first, end):
            if index != first or leaf_hash(body) != leaf:
                raise CorruptRecord(f"event {first} is not what was written", index=first)
            state = fold.apply(state, decode_trusted(body, EventIndex(index)))
            first += 1
        if first != end:
            raise CorruptRecord(f"event {first} is missing", index=first)
    return state


def _whole_snapshot(tables: Tables, size: int, edge: Edge) -> SnapshotRow | None:
    """The kept snapshot, of whatever code, if log and hash agree with it; else as if there were none."""
    row = tables.snapshot()
    if row is None or not 0 < row.size <= size or sha256(row.state).digest() != row.state_hash:
        return None
    return row if root_at(StoredTree(tables, edge), row.size) == row.log_root else None


def _load_snapshot(fold: Fold[State], row: SnapshotRow | None) -> tuple[State, int]:
    if row is not None and row.version == fold.version:
        with suppress(CorruptRecord):
            return fold.load(row.state), row.size
    return fold.initial(), 0
