"""Streams whose first item may be long in coming: whoever waits can say so, or stop waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")


async def with_pauses(source: AsyncIterator[T], pause_s: float) -> AsyncGenerator[T | None, None]:
    """The items of the source; before the first one, None at once and after every pause in which it did not come.

    Closing this closes the source, and with it the work behind it.
    """
    first: asyncio.Future[T] = asyncio.ensure_future(anext(source))
    try:
        # The first look is at once: what is at hand answers later than one turn of the loop anyway.
        waited_s = 0.0
        while not (await asyncio.wait({first}, timeout=waited_s))[0]:
            yield None
            waited_s = pause_s
        try:
            item = first.result()
        except StopAsyncIteration:
            return
        yield item
        async for item in source:
            yield item
    finally:
        if not first.done():
            first.cancel()
            await asyncio.wait({first})
        if not first.cancelled():
            first.exception()
        if isinstance(source, AsyncGenerator):
            await source.aclose()
