"""A second fold for readers: what is committed, on the event loop's thread, while the writer's runs ahead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from p2pnode.events.codec import Record
from p2pnode.projections.fold import JsonObject
from p2pnode.projections.state import MeshState, apply, restore, snapshot
from p2pnode.projections.views import view

T = TypeVar("T")


class Followed(Protocol):
    """What a follower needs of an event log that folds a MeshState."""

    def subscribe(self, callback: Callable[[Record], None]) -> Callable[[], None]: ...
    def query(self, ask: Callable[[MeshState], T]) -> Awaitable[T]: ...


class Follower:
    """Holds a `MeshState` of its own and keeps it up with a log's committed events."""

    def __init__(self, state: MeshState) -> None:
        self.state = state
        self._early: list[Record] | None = None

    @classmethod
    async def start(cls, log: Followed) -> Follower:
        """Copy the log's state and follow from there; no event is missed or taken twice."""
        follower = cls(MeshState())
        early: list[Record] = []
        follower._early = early
        log.subscribe(follower.feed)
        follower.state = restore(await log.query(snapshot))
        follower._early = None
        for record in early:
            follower.feed(record)
        return follower

    def feed(self, record: Record) -> None:
        """Take in the next committed event; those the state already holds are passed over."""
        if self._early is not None:
            self._early.append(record)
        elif record.index >= self.state.size:
            apply(self.state, record)

    def view(self, name: str, now_ms: int) -> JsonObject:
        """One of `views.VIEWS`."""
        return view(self.state, name, now_ms)
