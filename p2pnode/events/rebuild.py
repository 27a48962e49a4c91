"""Newer code folds the record beside the old state, slice by slice, and takes its place when it has caught up.

All of it happens in the writer's thread, between commits: nobody waits longer than for one slice, and the swap
falls between two events. What decisions need waits; what is only shown is shown as it was, with its age.
Nothing is written before the swap, so a crash in the middle starts over. Source: specs/08-log.md#rebuilding
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol

from p2pnode.errors import CorruptRecord
from p2pnode.events.codec import decode_trusted
from p2pnode.events.log import Fold, State
from p2pnode.events.merkle import leaf_hash
from p2pnode.events.tables import SnapshotRow, Tables
from p2pnode.limits import LOG_REBUILD_SLICE_EVENTS
from p2pnode.units import EventIndex


class PartedFold(Fold[State], Protocol[State]):
    """A fold whose state has parts that never look at each other, each with a version of its own."""

    @property
    def parts(self) -> frozenset[str]: ...
    @property
    def deciding(self) -> frozenset[str]:
        """Parts that decisions look at: while one is rebuilt, nothing is decided."""
        ...

    def stale(self, version: str) -> frozenset[str]:
        """Parts that code of that version folded otherwise than this code does."""
        ...

    def revive(self, raw: bytes) -> tuple[State, frozenset[str]]:
        """A state with what can be read of a snapshot of any code, and the parts that can not."""
        ...

    def only(self, parts: frozenset[str]) -> Fold[State]:
        """A fold that changes those parts alone."""
        ...

    def hide(self, state: State, parts: frozenset[str]) -> None:
        """Put something in place of those parts that raises `StateRebuilding` when it is looked at."""
        ...

    def join(self, state: State, rebuilt: State, parts: frozenset[str]) -> None:
        """Put those parts of a rebuilt state in their place."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild is, for faces."""

    folded: int
    size: int
    parts: frozenset[str]
    as_of: int
    """How many events the old answers of those parts know."""
    unreadable: frozenset[str]
    """Parts without any old answer: what was kept of them can not be read by this code."""


class Rebuild(Generic[State]):
    """One rebuild: what is shown meanwhile, what is folded, how far."""

    def __init__(self, fold: PartedFold[State], old: SnapshotRow | None) -> None:
        self.fold = fold
        self.parts, self.unreadable, self.as_of = fold.parts, fold.parts, 0
        self.shown: State = fold.initial()
        """For faces: parts that are good, and the others as the old code left them."""
        if old is not None:
            self.shown, self.unreadable = fold.revive(old.state)
            self.parts, self.as_of = fold.stale(old.version) | self.unreadable, old.size
        self.current: Fold[State] = fold.only(fold.parts - self.parts)
        """Folds what needs no rebuild."""
        self._stale = fold.only(self.parts)
        self._new: State = fold.initial()
        self.folded = 0

    @property
    def may_decide(self) -> bool:
        """Whether all that decisions look at is exact."""
        return not self.parts & self.fold.deciding

    @property
    def has_current(self) -> bool:
        return self.parts != self.fold.parts

    def step(self, tables: Tables, size: int) -> bool:
        """Fold the next slice, each entry's hash checked; whether the end was reached."""
        end = min(self.folded + LOG_REBUILD_SLICE_EVENTS, size)
        for index, body, leaf in tables.events(self.folded, end):
            if index != self.folded or leaf_hash(body) != leaf:
                raise CorruptRecord(f"event {self.folded} is not what was written", index=self.folded)
            self._new = self._stale.apply(self._new, decode_trusted(body, EventIndex(index)))
            self.folded += 1
        if self.folded != end:
            raise CorruptRecord(f"event {self.folded} is missing", index=self.folded)
        return self.folded == size

    def decided_on(self) -> State:
        """A state of its own for the writer; what is rebuilt can not be looked at there."""
        state = self.fold.load(self.fold.dump(self.shown))
        self.fold.hide(state, self.parts)
        return state

    def finish(self, state: State) -> State:
        """The rebuilt parts in the writer's state; answers a copy for those who read."""
        self.fold.join(state, self._new, self.parts)
        return self.fold.load(self.fold.dump(state))

    def progress(self, size: int) -> Progress:
        return Progress(self.folded, size, self.parts, self.as_of, self.parts & self.unreadable)
