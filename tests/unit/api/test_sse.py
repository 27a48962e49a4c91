"""Streams of events: order, signs of life, ends of every kind, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from p2pnode.api.sse import until_closed
from p2pnode.limits import API_STREAM_AHEAD_MAX

_LONG_S = 600.0


class Source:
    """Numbers, one for each permit; knows how many were taken of it and whether it was closed."""

    def __init__(self, count: int, permits: int, error: Exception | None = None) -> None:
        self.permits = asyncio.Semaphore(permits)
        self.error = error
        self.made, self.is_closed = 0, False
        self.numbers = self._run(count)

    async def _run(self, count: int) -> AsyncGenerator[int, None]:
        try:
            for number in range(count):
                await self.permits.acquire()
                self.made += 1
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.is_closed = True


async def test_items_come_in_order_and_the_source_is_closed() -> None:
    source = Source(50, permits=50)
    assert [item async for item in until_closed(source.numbers, asyncio.Event(), _LONG_S)] == [*range(50)]
    assert source.is_closed


async def test_silence_is_told_again_and_again_and_items_follow() -> None:
    source = Source(2, permits=1)
    items = until_closed(source.numbers, asyncio.Event(), 0.01)
    assert await anext(items) == 0
    assert [await anext(items), await anext(items)] == [None, None]
    source.permits.release()
    assert [item async for item in items if item is not None] == [1]


async def test_an_error_comes_after_what_came_before_it() -> None:
    source = Source(3, permits=3, error=LookupError("gone"))
    items = until_closed(source.numbers, asyncio.Event(), _LONG_S)
    assert [await anext(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError, match="gone"):
        await anext(items)
    assert source.is_closed


async def test_the_end_of_the_server_ends_a_stream_that_waits() -> None:
    source, closing = Source(2, permits=1), asyncio.Event()
    items = until_closed(source.numbers, closing, _LONG_S)
    assert await anext(items) == 0
    waiting = asyncio.ensure_future(anext(items, "ended"))
    closing.set()
    assert await waiting == "ended"
    assert source.is_closed


async def test_a_reader_that_goes_away_closes_the_source() -> None:
    source = Source(2, permits=1)
    items = until_closed(source.numbers, asyncio.Event(), _LONG_S)
    assert await anext(items) == 0
    await items.aclose()
    assert source.is_closed


async def test_no_more_is_made_than_a_few_ahead_of_the_reader() -> None:
    source = Source(50, permits=50)
    items = until_closed(source.numbers, asyncio.Event(), 0.01)
    assert await anext(items) == 0
    made = -1
    while made < source.made:  # until the source stands still
        made = source.made
        await asyncio.sleep(0)
    assert made <= API_STREAM_AHEAD_MAX + 2
    assert [item async for item in items if item is not None] == [*range(1, 50)]
