"""One at a time for each key, and nothing kept."""

from __future__ import annotations

import asyncio

import pytest

from p2pnode.node.keyed_locks import KeyedLocks
from tests.unit.compute.test_scheduler import settle


async def test_one_at_a_time_for_each_key_and_nothing_kept() -> None:
    locks: KeyedLocks[str] = KeyedLocks()
    go, inside = asyncio.Event(), []

    async def work(key: str, number: int) -> None:
        async with locks.hold(key):
            inside.append((key, number))
            await go.wait()

    tasks = [asyncio.ensure_future(work(*args)) for args in (("a", 1), ("a", 2), ("b", 1))]
    await settle()
    assert inside == [("a", 1), ("b", 1)]
    assert len(locks) == 2
    assert [locks.users(key) for key in "abc"] == [2, 1, 0]
    go.set()
    await asyncio.gather(*tasks)
    assert inside[-1] == ("a", 2)
    assert len(locks) == 0


async def test_who_gives_up_waiting_is_forgotten() -> None:
    locks: KeyedLocks[str] = KeyedLocks()
    async with locks.hold("a"):
        waiting = asyncio.ensure_future(locks.hold("a").__aenter__())
        await settle()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(locks) == 1
    assert len(locks) == 0
