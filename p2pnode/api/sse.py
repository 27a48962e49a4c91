"""Server-sent events: heartbeats, an end when the server stops, no work left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

from quart import Response

from p2pnode.limits import API_STREAM_HEARTBEAT_S

T = TypeVar("T")
HEARTBEAT = b": still here\n\n"
DONE = b"data: [DONE]\n\n"


def sse_data(payload: bytes, *, event: str | None = None, event_id: str | None = None) -> bytes:
    """One event; the payload is JSON and so has no line break."""
    head = (f"event: {event}\n" if event else "") + (f"id: {event_id}\n" if event_id else "")
    return head.encode() + b"data: " + payload + b"\n\n"


def stream_response(body: AsyncIterator[bytes]) -> Response:
    response = Response(body, content_type="text/event-stream; charset=utf-8")
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
    """Items of the source, None when it is silent for long; ends when `closing` is set; closes the source."""
    stop: asyncio.Future[Any] = asyncio.ensure_future(closing.wait())
    pending: asyncio.Future[Any] | None = None
    try:
        while not closing.is_set():
            if pending is None:
                pending = asyncio.ensure_future(anext(source))
            done, _ = await asyncio.wait(
                {pending, stop}, timeout=heartbeat_s, return_when=asyncio.FIRST_COMPLETED
            )
            if pending in done:
                ready, pending = pending, None
                try:
                    item = ready.result()
                except StopAsyncIteration:
                    return
                yield item
            elif not done:
                yield None
    finally:
        stop.cancel()
        if pending is not None:
            pending.cancel()
            await asyncio.wait({pending})
            if not pending.cancelled():
                pending.exception()
        await close(source)
