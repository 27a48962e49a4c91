"""Server-sent events: heartbeats, an end when the server stops, no work left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

from quart import Response

from p2pnode.api.traced import held
from p2pnode.limits import API_STREAM_AHEAD_MAX, API_STREAM_HEARTBEAT_S

T = TypeVar("T")
HEARTBEAT = b": still here\n\n"
DONE = b"data: [DONE]\n\n"


def sse_data(payload: bytes, *, event: str | None = None, event_id: str | None = None) -> bytes:
    """One event; the payload is JSON and so has no line break."""
    head = (f"event: {event}\n" if event else "") + (f"id: {event_id}\n" if event_id else "")
    return head.encode() + b"data: " + payload + b"\n\n"


def stream_response(body: AsyncIterator[bytes]) -> Response:
    response = Response(held(body), content_type="text/event-stream; charset=utf-8")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    response.timeout = None
    return response


async def close(source: object) -> None:
    """aclose() where there is one: that is how work on the stages is cancelled."""
    aclose = getattr(source, "aclose", None)
    if aclose is not None:
        await aclose()


async def until_closed(
    source: AsyncIterator[T], closing: asyncio.Event, heartbeat_s: float = API_STREAM_HEARTBEAT_S
) -> AsyncGenerator[T | None, None]:
    """Items of the source, None when it is silent for long; ends when `closing` is set; closes the source.

    One task reads the source from its first item to its last, a few ahead of a slow reader: a task, a wait and a timer
    for every item would cost more than all that is done with it.
    """
    items: asyncio.Queue[T | None] = asyncio.Queue(API_STREAM_AHEAD_MAX)

    async def read() -> None:
        async for item in source:
            await items.put(item)

    def wake(_: object = None) -> None:
        if items.empty():
            items.put_nowait(None)

    reading = asyncio.ensure_future(read())
    stop = asyncio.ensure_future(closing.wait())
    reading.add_done_callback(wake)
    stop.add_done_callback(wake)
    pulse = Pulse(heartbeat_s, wake)
    try:
        while not closing.is_set():
            if items.empty() and reading.done():
                reading.result()
                return
            item = await items.get()
            if item is not None or not (reading.done() or stop.done()):
                yield item
                pulse.beat()
    finally:
        pulse.stop()
        stop.cancel()
        reading.cancel()
        await asyncio.wait({reading})
        if not reading.cancelled():
            reading.exception()
        await close(source)


class Pulse:
    """Calls `silent` when nothing happened for a while, and again after every further such while."""

    def __init__(self, after_s: float, silent: Callable[[], None]) -> None:
        self._after_s = after_s
        self._silent = silent
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()
        self._timer = self._loop.call_later(after_s, self._look)

    def beat(self) -> None:
        """Something happened; no timer is made anew for it."""
        self._last_s = self._loop.time()

    def _look(self) -> None:
        left_s = self._last_s + self._after_s - self._loop.time()
        if left_s <= 0:
            self._silent()
            left_s = self._after_s
        self._timer = self._loop.call_later(left_s, self._look)

    def stop(self) -> None:
        self._timer.cancel()
