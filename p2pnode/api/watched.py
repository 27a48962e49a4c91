"""How far something long is, while it is done: looked at now and then, said when it changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any

from p2pnode.api.context import ApiContext
from p2pnode.api.envelope import condition_of, envelope, json_bytes
from p2pnode.api.patience import Look
from p2pnode.api.sse import DONE, HEARTBEAT, sse_data
from p2pnode.errors import EngineUnavailable
from p2pnode.facade import JsonObject
from p2pnode.limits import API_LOADING_LOOK_S, API_STREAM_HEARTBEAT_S


async def views(
    context: ApiContext, task: asyncio.Future[JsonObject], look: Look
) -> AsyncGenerator[Mapping[str, Any] | None, None]:
    """What `look` says whenever it says something new, None where a sign of life is due; ends with the task, which
    ends with this."""
    stop = asyncio.ensure_future(context.closing.wait())
    last: Mapping[str, Any] | None = None
    silent_s = 0.0
    try:
        while not task.done():
            waiting: set[asyncio.Future[Any]] = {task, stop}
            await asyncio.wait(waiting, timeout=API_LOADING_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                raise EngineUnavailable("the node is stopping", hint="try again when it is back")
            view = look()
            if task.done():
                break
            if view is not None and view != last:
                last, silent_s = view, 0.0
                yield view
            elif (silent_s := silent_s + API_LOADING_LOOK_S) >= API_STREAM_HEARTBEAT_S:
                silent_s = 0.0
                yield None
    finally:
        stop.cancel()
        task.cancel()
        await asyncio.wait({task})


async def watched(
    context: ApiContext, work: Awaitable[JsonObject], kind: str, look: Look, end: str
) -> AsyncGenerator[bytes, None]:
    """Events of type `kind` while something long is done, then its answer as one of type `end`."""
    task = asyncio.ensure_future(work)
    seen = views(context, task, look)
    try:
        async for view in seen:
            yield HEARTBEAT if view is None else sse_data(json_bytes({"type": kind, **view}))
        yield sse_data(json_bytes({"type": end, **task.result()}))
        yield DONE
    except Exception as error:
        yield sse_data(json_bytes(envelope(condition_of(error))))
    finally:
        await seen.aclose()
