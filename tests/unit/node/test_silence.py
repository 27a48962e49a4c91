"""Silent links: when one is asked, suspected and ended; with times as arguments, and over the memory network."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from p2pnode import limits
from p2pnode.node.heartbeat import Heartbeat
from p2pnode.node.silence import Silence, words
from p2pnode.transport.memory import MemoryNetwork
from tests.kit.net import running, until
from tests.unit.node.test_links import Device, memory


def looked(silence: Silence, seconds: int, *, from_s: float = 0.0, received: int = 100) -> Silence:
    for second in range(1, seconds + 1):
        silence = silence.looked(received, from_s + second)
    return silence


def test_a_silent_link_is_asked_then_suspected_then_ended() -> None:
    start = Silence(100, 0.0)
    states = [(looked(start, second).is_asking, looked(start, second).state) for second in range(1, 11)]
    assert states[0] == (False, "online")
    assert states[1] == (True, "online")
    assert {state for _, state in states[2:8]} == {"suspect"}
    assert states[8] == (True, "offline")
    assert looked(start, 4).silent_s(4.0) == 4.0
    assert words(4.2) == "silent for 4 s"


def test_whatever_comes_ends_the_silence() -> None:
    heard = looked(Silence(100, 0.0), 8).looked(101, 9.0)
    assert heard == Silence(101, 9.0)
    assert heard.silent_s(8.0) == 0.0


def test_an_hour_of_sleep_is_not_the_others_fault() -> None:
    """Nobody was asked meanwhile: the clock alone ends no link."""
    woken = looked(Silence(100, 0.0), 1).looked(100, 3600.0)
    assert (woken.is_asking, woken.state) == (True, "online")


def test_a_quiet_link_that_answers_does_not_flap() -> None:
    """Statuses come every five seconds, and answers to what was asked in between."""
    silence, received = Silence(0, 0.0), 0
    for second in range(1, 200):
        received += silence.is_asking or second % 5 == 0
        silence = silence.looked(received, float(second))
        assert silence.state == "online"


@pytest.fixture
async def two(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Their statuses rest, so that nothing but signs of life passes."""
    monkeypatch.setattr(limits, "STATUS_INTERVAL_S", 1000.0)
    monkeypatch.setattr(limits, "STATUS_SILENCE_S_MAX", 1000.0)
    network = MemoryNetwork(seed=3)
    one, other = Device(memory(network, "one"), "one"), Device(memory(network, "other"), "other")
    async with running(one.transport, other.transport):
        link = one.know(other)
        await until(lambda: bool(one.heard and other.heard))
        yield network, one, other, link
        await one.close()
        await other.close()
    assert one.reports == other.reports == []


class Hand:
    """A clock that the test moves, and looks."""

    def __init__(self, device: Device) -> None:
        self.now_s = 100.0
        self.heartbeat = Heartbeat(device.links, tasks=device.tasks, clock=lambda: self.now_s)
        self.heartbeat.look()

    async def second(self, count: int = 1) -> None:
        for _ in range(count):
            self.now_s += 1.0
            self.heartbeat.look()
            for _ in range(3):
                await asyncio.sleep(0)


async def test_who_answers_stays(two: Any) -> None:
    _, one, other, link = two
    hand = Hand(one)
    connection = link.connection
    for _ in range(30):
        await hand.second()
        assert not hand.heartbeat.is_suspect(other.peer_id)
        assert hand.heartbeat.silent_s(other.peer_id) <= limits.SILENCE_ASK_S
    assert link.connection is connection


async def test_who_gives_no_sign_is_suspected_and_then_gone(two: Any) -> None:
    network, one, other, link = two
    hand = Hand(one)
    network.link(one.peer_id, other.peer_id).is_cut = True
    await hand.second(4)
    assert hand.heartbeat.is_suspect(other.peer_id)
    assert hand.heartbeat.silent_s(other.peer_id) == 4.0
    assert link.is_up
    await hand.second(5)
    await until(lambda: one.changes == [True, False])
    assert hand.heartbeat.why_lost(other.peer_id) == "silent for 9 s"
    assert hand.heartbeat.why_lost(other.peer_id) == "connection lost"
    assert not hand.heartbeat.is_suspect(other.peer_id)
    assert hand.heartbeat.silent_s(other.peer_id) == 0.0


async def test_who_is_back_in_time_was_never_away(two: Any) -> None:
    network, one, other, link = two
    hand = Hand(one)
    connection = link.connection
    network.link(one.peer_id, other.peer_id).is_cut = True
    await hand.second(7)
    assert hand.heartbeat.is_suspect(other.peer_id)
    network.heal(one.peer_id, other.peer_id)
    await hand.second(2)
    assert not hand.heartbeat.is_suspect(other.peer_id)
    assert link.connection is connection
    assert one.changes == [True]
