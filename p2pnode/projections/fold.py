"""What every projection is made of: a table from fact to handler, and dictionaries that forget the oldest.

A projection's state is a mutable `msgspec.Struct` owned by one fold in one thread: replaying a million
facts must not copy a million tables. Handlers are deterministic: they read nothing but their state and the
record. Views build new dicts of plain values, so nothing mutable leaves a fold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

from p2pnode.events.codec import Record
from p2pnode.events.types import Event

JsonObject = dict[str, Any]
Handler = Callable[[Any, Record, Any], None]
"""(state of the projection, record, its event): changes the state."""
Handlers = Mapping[type[Event], Handler]


class Indexed(Protocol):
    """An entry that knows the record that made it."""

    @property
    def index(self) -> int: ...


EntryT = TypeVar("EntryT", bound=Indexed)
ValueT = TypeVar("ValueT")


COUNT_MAX: Final = 2**63 - 1


def plus(sum_so_far: int, more: int) -> int:
    """Sums for people to read stop at the largest number a field can hold; a record can say anything."""
    return min(sum_so_far + more, COUNT_MAX)


def in_order(entries: dict[str, EntryT]) -> dict[str, EntryT]:
    """Oldest first again: a snapshot sorts its maps by key, and eviction goes by age."""
    return dict(sorted(entries.items(), key=lambda item: (item[1].index, item[0])))


def forget_oldest(entries: dict[str, ValueT], count_max: int) -> None:
    """Keep the newest `count_max` entries; one insertion needs one removal."""
    while len(entries) > count_max:
        del entries[next(iter(entries))]
