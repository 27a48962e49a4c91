"""How the leader of a tensor group tells its other ranks what to compute next (specs/16-lane.md#the-leaders-word).

Every batch is announced on the way the partial sums take. So all ranks run the same batches in the same order,
whoever hears what first from its node, and steps that no node carried reach every rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from p2pnode.compute.engine_protocol import frame_fields, frame_of
from p2pnode.compute.engine_step import Step
from p2pnode.compute.reduce import AllReduce
from p2pnode.errors import P2PNodeError, StageLost
from p2pnode.frame import Frame


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one step in an announced batch; `frame` when no node brings it."""

    session: int
    epoch: int
    position_first: int
    rows: int
    count: int
    frame: Frame | None = None

    def is_of(self, step: Step) -> bool:
        frame = step.frame
        return (frame.session, frame.epoch, frame.position_first, frame.rows) == (
            self.session, self.epoch, self.position_first, self.rows,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Announcement:
    """What happens to sessions and prefixes, then one batch; either may be empty."""

    orders: Sequence[Sequence[Any]] = ()
    """Names and numbers: free session, keep session count, reuse session prefix count, forget prefix."""
    parts: Sequence[Part] = ()


def part_of(step: Step, count: int) -> Part:
    """A step that came by a lane is told whole, once: later chunks of it are known by then."""
    frame = step.frame
    inline = frame if step.then is not None and not step.done else None
    return Part(frame.session, frame.epoch, frame.position_first, frame.rows, count, inline)


def encode(announced: Announcement) -> bytes:
    parts = [
        [
            part.session,
            part.epoch,
            part.position_first,
            part.rows,
            part.count,
            *([frame_fields(part.frame), bytes(part.frame.payload)] if part.frame is not None else []),
        ]
        for part in announced.parts
    ]
    packed: bytes = msgpack.packb([[list(order) for order in announced.orders], parts])
    return packed


def decode(data: bytes) -> Announcement:
    """Raises StageLost: a leader that sends nonsense leads no longer."""
    try:
        orders, parts = msgpack.unpackb(data)
        return Announcement(tuple(map(_order, orders)), tuple(map(_part, parts)))
    except (ValueError, TypeError, LookupError, msgpack.UnpackException) as exc:
        raise StageLost(f"the leader's word cannot be read: {exc}") from None


_ORDERS = {"free": 1, "keep": 2, "reuse": 3, "forget": 1}
"""How many numbers each order has."""


def _order(values: Sequence[Any]) -> tuple[Any, ...]:
    name, *numbers = values
    if _ORDERS.get(name) != len(numbers) or not all(type(number) is int for number in numbers):
        raise ValueError("an order is a name and its numbers")
    return (name, *numbers)


def _part(values: Sequence[Any]) -> Part:
    numbers, inline = values[:5], values[5:]
    if not all(type(number) is int for number in numbers) or len(inline) not in (0, 2):
        raise ValueError("a part of a batch has five numbers, and a frame or none")
    session, epoch, position, rows, count = numbers
    if not 0 < count <= rows:
        raise ValueError(f"{count} of {rows} rows")
    return Part(session, epoch, position, rows, count, frame_of(inline[0], inline[1]) if inline else None)


class Lead:
    """One rank's end of it: rank 0 announces, the others follow."""

    def __init__(self, rank: int, group: AllReduce) -> None:
        self.rank = rank
        self.group = group
        self._next: Announcement | None = None
        self._orders: list[tuple[Any, ...]] = []
        if self.follows:
            group.listen()

    @property
    def follows(self) -> bool:
        return self.rank > 0

    # rank 0
    def announce(self, chosen: Sequence[tuple[Step, int]]) -> None:
        """Tell what runs now, and what happens before it. Raises StageLost when a rank does not listen."""
        orders, self._orders = self._orders, []
        self.group.announce(encode(Announcement(orders, [part_of(step, count) for step, count in chosen])))

    def order(self, name: str, *numbers: int) -> None:
        """Let it happen on all ranks, after all batches announced before."""
        if self.follows:
            return
        self._orders.append((name, *numbers))
        with contextlib.suppress(P2PNodeError):  # a broken group has nothing left to keep or free
            self.announce([])

    # the others
    def hear(self) -> None:
        if self.follows and self._next is None:
            word = self.group.heard()
            try:
                self._next = None if word is None else decode(word)
            except StageLost as exc:
                self.group.give_up(exc)

    def ready(self, waiting: Sequence[Step]) -> bool:
        """Whether something was announced of which every frame is there, or nothing ever will be again."""
        self.hear()
        if self._next is None:
            return self.group.broken is not None and bool(waiting)
        return all(part.frame is not None or find(part, waiting) for part in self._next.parts)

    def take(self) -> Announcement | None:
        """What was announced; None when the group broke."""
        announced, self._next = self._next, None
        return announced

    def done(self) -> None:
        self.group.listen()


def find(part: Part, waiting: Sequence[Step]) -> Step | None:
    return next((step for step in waiting if part.is_of(step)), None)
