"""The leader's word: what it says comes back, and what it cannot mean ends the group."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.compute.engine_lead import Announcement, Part, decode, encode, find, part_of
from p2pnode.compute.engine_step import Step
from p2pnode.errors import StageLost
from tests.kit.engine_units import tokens_frame

NUMBERS, COUNTS = st.integers(0, 2**31), st.integers(1, 2**31)


def step_of(session: int, position: int, *, by_lane: bool = False) -> Step:
    step = Step(1, tokens_frame([7], position, session=session), False, [7], None, (), 0)
    step.then = (lambda _: None) if by_lane else None
    return step


def _part(session: int, epoch: int, position: int, one: int, other: int) -> Part:
    return Part(session, epoch, position, max(one, other), min(one, other))


@given(
    orders=st.lists(st.tuples(st.sampled_from(["free", "forget"]), NUMBERS), max_size=3),
    parts=st.lists(st.builds(_part, NUMBERS, NUMBERS, NUMBERS, COUNTS, COUNTS), max_size=5),
)
def test_words_come_back(orders: list[tuple[str, int]], parts: list[Part]) -> None:
    assert decode(encode(Announcement(tuple(orders), tuple(parts)))) == Announcement(
        tuple(orders), tuple(parts)
    )


def test_frames_of_lanes_are_told_whole_and_once() -> None:
    by_stream, by_lane = step_of(1, 5), step_of(2, 9, by_lane=True)
    parts = decode(encode(Announcement((), [part_of(by_stream, 1), part_of(by_lane, 1)]))).parts
    assert parts[0].frame is None
    assert parts[1].frame is not None
    assert bytes(parts[1].frame.payload) == bytes(by_lane.frame.payload)
    by_lane.done = 1
    assert part_of(by_lane, 1).frame is None


def test_parts_find_their_steps() -> None:
    waiting = [step_of(1, 5), step_of(1, 6), step_of(2, 5)]
    assert find(part_of(waiting[1], 1), waiting) is waiting[1]
    assert find(Part(3, 0, 5, 1, 1), waiting) is None
    assert find(Part(1, 1, 5, 1, 1), waiting) is None


@pytest.mark.parametrize(
    "word",
    [
        b"",
        b"\xc1",
        msgpack.packb(7),
        msgpack.packb([[], []])[:-1],
        msgpack.packb([[["free", "x"]], []]),
        msgpack.packb([[[]], []]),
        msgpack.packb([[["free"]], []]),
        msgpack.packb([[["explode", 1]], []]),
        msgpack.packb([[[[], 1]], []]),
        msgpack.packb([[], [[1, 0, 0, 4, 0]]]),
        msgpack.packb([[], [[1, 0, 0, 4, 5]]]),
        msgpack.packb([[], [[1, 0, 0, 4, -1]]]),
        msgpack.packb([[], [[1, 2, 3, 4]]]),
        msgpack.packb([[], [[1, 2, 3, 4, 5, 6]]]),
        msgpack.packb([[], [[1, 2, 3, 4, 5, [], b""]]]),
        msgpack.packb([[], [[1, 2, 3, 4, "5"]]]),
    ],
)
def test_nonsense_ends_the_group(word: bytes) -> None:
    with pytest.raises(StageLost):
        decode(word)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_that(word: bytes) -> None:
    try:
        decode(word)
    except StageLost:
        return
