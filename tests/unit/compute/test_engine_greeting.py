"""Lanes of a ring that are greeted beside everything else: each call is answered once, whatever happens meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from p2pnode.compute.engine_greeting import Greeting
from p2pnode.compute.engine_rings import EngineRings
from p2pnode.errors import StageLost
from p2pnode.limits import LANE_HELLO_TIMEOUT_S


class Lane:
    """One whose other side answers when the test says so."""

    def __init__(self, *, is_met: bool = False) -> None:
        self.is_met = is_met
        self.hellos = 0
        self.is_closed = False

    def listen(self, now: float) -> None:
        assert not self.is_closed

    def hello(self) -> None:
        self.hellos += 1

    def fileno(self) -> int:
        return 0

    def close(self) -> None:
        self.is_closed = True


def rings() -> tuple[EngineRings, list[dict[str, Any]]]:
    sent: list[dict[str, Any]] = []
    return EngineRings(lambda message, _: sent.append(dict(message))), sent


def greet(of: EngineRings, call: int, unit: int, lane: Lane, place: Callable[[], dict[str, Any]]) -> None:
    of.greet(call, [unit], cast(Any, [lane]), place)


def test_a_place_is_taken_when_all_its_lanes_are_met() -> None:
    here, sent = rings()
    one, other = Lane(is_met=True), Lane()
    here.greet(7, [1], cast(Any, [one, other]), lambda: {"ring": 3})
    here.service()
    assert (sent, one.hellos, other.hellos) == ([], 0, 1)
    assert here.filenos == [0, 0]
    wait_s = here.wait_s()
    assert wait_s is not None
    assert wait_s <= LANE_HELLO_TIMEOUT_S
    other.is_met = True
    here.service()
    assert sent == [{"id": 7, "ring": 3}]
    assert (one.hellos, other.hellos) == (1, 2), "the last one says that the other side was heard"
    here.service()
    assert len(sent) == 1


def test_a_unit_that_goes_ends_its_greeting() -> None:
    here, sent = rings()
    lane = Lane()
    greet(here, 8, 1, lane, lambda: {})
    here.drop(2)
    assert sent == []
    here.drop(1)
    assert lane.is_closed
    assert [(message["id"], message["error"]["code"]) for message in sent] == [(8, "stage_lost")]
    here.service()
    assert len(sent) == 1


def test_two_places_for_one_unit_are_both_answered() -> None:
    """The one that is taken first ends the other, in the turn in which both could be."""
    here, sent = rings()
    first, second = Lane(is_met=True), Lane(is_met=True)

    def place() -> dict[str, Any]:
        here.drop(1)
        return {}

    greet(here, 1, 1, first, place)
    greet(here, 2, 1, second, place)
    here.service()
    assert sorted((message["id"], "error" in message) for message in sent) == [(1, False), (2, True)]
    assert (first.is_closed, second.is_closed) == (False, True)


def test_silence_ends_it() -> None:
    now = time.monotonic()
    greeting = Greeting(1, [1], cast(Any, [Lane()]), dict, now)
    assert not greeting.look(now)
    assert not greeting.look(now + LANE_HELLO_TIMEOUT_S)
    with pytest.raises(StageLost, match="do not get through"):
        greeting.look(now + LANE_HELLO_TIMEOUT_S + 0.001)
