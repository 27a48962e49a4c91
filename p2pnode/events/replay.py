"""Fold a stored log up to a size (time travel), and compare the kept snapshot with a fold from the beginning."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Generic

from p2pnode.errors import CorruptRecord, NotFound
from p2pnode.events.codec import decode_trusted
from p2pnode.events.log import Fold, State
from p2pnode.events.merkle import leaf_hash
from p2pnode.events.tables import Tables
from p2pnode.units import EventIndex

_CHUNK = 5_000


@dataclass(frozen=True, slots=True)
class Replayed(Generic[State]):
    """A state, the size it is of, and its hash."""

    size: int
    state: State
    state_hash: bytes


@dataclass(frozen=True, slots=True)
class SnapshotCheck:
    """A kept snapshot beside the fold of the same events."""

    size: int
    version: str
    is_current: bool
    """Whether this code would use it; one of other code is rebuilt when the node starts."""
    kept_hash: bytes
    folded_hash: bytes

    @property
    def ok(self) -> bool:
        return not self.is_current or self.kept_hash == self.folded_hash


def replay(tables: Tables, fold: Fold[State], size: int | None = None) -> Replayed[State]:
    """The state after the first `size` events (all, by default); every entry's hash is checked."""
    total = tables.size()
    end = total if size is None else size
    if not 0 <= end <= total:
        raise NotFound(f"the log has {total} events, not {end}")
    state, expected = fold.initial(), 0
    while expected < end:
        first = expected
        for index, body, leaf in tables.events(first, min(first + _CHUNK, end)):
            if index != expected or leaf_hash(body) != leaf:
                raise CorruptRecord(f"event {expected} is not what was written", index=expected)
            state = fold.apply(state, decode_trusted(body, EventIndex(index)))
            expected += 1
        if expected == first:
            raise CorruptRecord(f"event {expected} is missing", index=expected)
    return Replayed(end, state, sha256(fold.dump(state)).digest())


def check_snapshot(tables: Tables, fold: Fold[State]) -> SnapshotCheck | None:
    """Fold the events a snapshot stands for and compare; None when none is kept."""
    row = tables.snapshot()
    if row is None:
        return None
    folded = replay(tables, fold, min(row.size, tables.size()))
    return SnapshotCheck(
        row.size, row.version, row.version == fold.version, sha256(row.state).digest(), folded.state_hash
    )
