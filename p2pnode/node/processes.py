"""Every process that serves this node, from before its start to its end: none is left when the node has stopped.

Engines belong to plans, stages and pools, which end them. But what a node does in the background may ask for one
while those rooms close, or just after. So all of them are started here, and once the node ends none is any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from p2pnode.compute.child_process import to_the_end
from p2pnode.errors import EngineUnavailable


class Child(Protocol):
    @property
    def exit_code(self) -> int | None: ...

    async def close(self) -> None:
        """Until it is reaped; safe to call again."""
        ...


C = TypeVar("C", bound=Child)


class Processes:
    """Refuses to start one as soon as `refuse` was called; `close` gives up what is starting and ends what runs."""

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._starting: set[asyncio.Future[Any]] = set()
        self.is_refusing = False

    @property
    def count(self) -> int:
        """Those that run, and those that are being started."""
        return len(self._starting) + sum(child.exit_code is None for child in self._children)

    async def start(self, make: Callable[[], Coroutine[Any, Any, C]]) -> C:
        """What `make` starts; cancelled in the middle, that must leave nothing behind (`start_whole`)."""
        if self.is_refusing:
            raise _refusal()
        self._children = [child for child in self._children if child.exit_code is None]
        starting = asyncio.ensure_future(self._owned(make))
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        try:
            await asyncio.wait([starting])
        except asyncio.CancelledError:
            starting.cancel()
            await to_the_end(_given_up(starting))
            raise
        if starting.cancelled():
            raise _refusal()
        return starting.result()

    async def _owned(self, make: Callable[[], Coroutine[Any, Any, C]]) -> C:
        child = await make()
        self._children.append(child)
        return child

    def refuse(self) -> None:
        self.is_refusing = True

    async def close(self) -> None:
        self.refuse()
        await to_the_end(self._ended())

    async def _ended(self) -> None:
        starting = list(self._starting)
        for start in starting:
            start.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        ends = await asyncio.gather(*(child.close() for child in self._children), return_exceptions=True)
        for error in ends:
            if error is not None:
                raise error


async def _given_up(starting: asyncio.Future[C]) -> None:
    """Also where it had just come about: whoever asked for it will not take it."""
    await asyncio.wait([starting])
    if not starting.cancelled() and starting.exception() is None:
        await starting.result().close()


def _refusal() -> EngineUnavailable:
    return EngineUnavailable("this device is stopping, it starts no process any more")
