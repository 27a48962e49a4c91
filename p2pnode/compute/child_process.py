"""Child processes under asyncio: one that was started has an owner until it is reaped and its pipes are read.

A waiting task can be cancelled at any await, twice too. A child whose end nobody waits for outlives its event loop:
so a start is whole or none, and an end that has begun goes on to the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T], *, hurry: Callable[[], None] = lambda: None) -> T:
    """Awaited whole however often the waiting task is cancelled; `hurry` is called each time, the cancellation
    goes on when the work is done."""
    doing = asyncio.ensure_future(work)
    given_up: asyncio.CancelledError | None = None
    while not doing.done():
        try:
            await asyncio.wait([doing])
        except asyncio.CancelledError as error:
            given_up = error
            hurry()
    if given_up is None:
        return doing.result()
    if not doing.cancelled():
        doing.exception()  # whoever waits no longer is told of its own end
    raise given_up


def kill(process: asyncio.subprocess.Process) -> None:
    """SIGKILL without `Process.kill`, which may reap the child under the eyes of the watcher and lose its status."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


async def start_whole(
    starting: Coroutine[Any, Any, asyncio.subprocess.Process],
) -> asyncio.subprocess.Process:
    """A process, or none: whoever gives up in the middle of its start leaves neither it nor its pipes behind, however
    often it is told to."""
    start = asyncio.ensure_future(starting)
    try:
        return await asyncio.shield(start)
    except asyncio.CancelledError:
        await to_the_end(_end_started(start))
        raise


async def _end_started(start: asyncio.Future[asyncio.subprocess.Process]) -> None:
    await _end_now(await start)


async def end_at_once(process: asyncio.subprocess.Process) -> None:
    """Killed and reaped, and its pipes read to their end: the event loop closes those only then."""
    kill(process)
    await to_the_end(_end_now(process))


async def _end_now(process: asyncio.subprocess.Process) -> None:
    kill(process)
    if process.stdin is not None:
        process.stdin.close()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            await pipe.read()
    await process.wait()
