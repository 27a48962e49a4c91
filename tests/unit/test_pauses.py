"""Waiting for the first item of a stream: heard of at once, and the end and the faults of the source are its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from p2pnode.pauses import with_pauses


async def test_the_items_come_after_as_many_pauses_as_it_took() -> None:
    ready = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        await ready.wait()
        yield 1
        yield 2

    heard = []
    async for item in with_pauses(source(), 0.0):
        heard.append(item)
        if len(heard) == 3:
            ready.set()
    assert set(heard[:3]) == {None}
    assert [item for item in heard if item is not None] == [1, 2]
    assert heard[-2:] == [1, 2], "no pause is told after the first item"


async def test_a_source_that_ends_without_an_item_ends() -> None:
    async def source() -> AsyncIterator[int]:
        return
        yield

    assert [item async for item in with_pauses(source(), 0.0) if item is not None] == []


async def test_what_the_source_raises_is_raised() -> None:
    async def source() -> AsyncIterator[int]:
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        [item async for item in with_pauses(source(), 0.0)]


async def test_who_stops_waiting_ends_the_source() -> None:
    ended = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        try:
            await asyncio.Event().wait()
            yield 1
        finally:
            ended.set()

    waiting = with_pauses(source(), 0.0)
    assert await anext(waiting) is None
    await waiting.aclose()
    assert ended.is_set()
