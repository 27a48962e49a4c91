"""A request and a model that is not in memory yet: wait a while, then say 503 and how far it is.

The model goes on loading either way, so the client that tries again after `Retry-After` finds it further or ready.
Streams that show progress wait to the end instead and hear `Loading` events.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from p2pnode.errors import ModelLoading
from p2pnode.facade import GenerateEvent, Loading
from p2pnode.limits import API_LOADING_LOOK_S
from p2pnode.pauses import with_pauses

T = TypeVar("T")
Look = Callable[[], Mapping[str, Any] | None]


class Patience:
    """How long one request waits; time in which nothing loads is not the model's."""

    def __init__(self, look: Look, wait_s: float) -> None:
        self._look = look
        self._until_s = time.monotonic() + wait_s

    def check(self) -> Mapping[str, Any] | None:
        """What loads now; raises ModelLoading when it is not there in time, or will not be."""
        view = self._look()
        if view is not None:
            left_s = self._until_s - time.monotonic()
            if left_s <= 0 or (view["eta_s"] or 0) > left_s:
                raise not_ready(view)
        return view


def not_ready(view: Mapping[str, Any]) -> ModelLoading:
    share = "" if view["progress"] is None else f", {view['progress']:.0%} done"
    return ModelLoading(
        f"the model is not ready yet: {view['state']} on {view['node']}{share}",
        hint="try again after Retry-After; it goes on meanwhile",
        loading=dict(view),
        eta_s=view["eta_s"],
    )


async def with_patience(
    source: AsyncIterator[GenerateEvent], look: Look, wait_s: float, *, tell: bool
) -> AsyncGenerator[GenerateEvent, None]:
    """The events of a generation; until the first one, what loads is told (`tell`) or waited for with patience."""
    patience = Patience(look, wait_s)
    async with aclosing(with_pauses(source, API_LOADING_LOOK_S)) as events:
        async for event in events:
            if event is not None:
                yield event
            elif not tell:
                patience.check()
            elif (view := look()) is not None:
                yield Loading.of(view)


async def patiently(work: Awaitable[T], look: Look, wait_s: float) -> T:
    """The result of work that may have to load a model first."""
    patience = Patience(look, wait_s)
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=API_LOADING_LOOK_S)
            if not task.done():
                patience.check()
        return task.result()
    finally:
        task.cancel()
