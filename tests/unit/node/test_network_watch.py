"""A change of network is told once, when it has settled."""

from __future__ import annotations

import asyncio

import pytest

from p2pnode import limits
from p2pnode.node.network_watch import watch_network

HOME, CABLE, CAFE = ("eth0 192.168.1.5",), ("eth0 192.168.1.5", "usb0 10.0.0.2"), ("wlan0 172.20.1.9",)


async def watched(views: list[tuple[str, ...]]) -> tuple[int, list[float]]:
    """How often a change was told while the network looked like this, one look after the other."""
    told, slept, looks = 0, [], iter(views)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0)

    async def changed() -> None:
        nonlocal told
        told += 1

    with pytest.raises((StopIteration, RuntimeError)):
        await watch_network(lambda: next(looks), changed, sleep)
    return told, slept


async def test_nothing_changes() -> None:
    assert await watched([HOME] * 5) == (0, [limits.NETWORK_LOOK_S] * 5)


async def test_a_change_is_told_once() -> None:
    told, slept = await watched([HOME, HOME, CAFE, CAFE, CAFE, CAFE])
    assert told == 1
    assert slept.count(limits.NETWORK_SETTLE_S) == 1


async def test_what_still_settles_counts_as_one() -> None:
    told, _ = await watched([HOME, (), CABLE[:1], CABLE, CABLE, CABLE])
    assert told == 1


async def test_a_short_loss_is_none() -> None:
    assert (await watched([HOME, (), HOME, HOME, HOME]))[0] == 0


async def test_every_network_is_told() -> None:
    told, _ = await watched([HOME, CAFE, CAFE, HOME, HOME, CABLE, CABLE])
    assert told == 3
