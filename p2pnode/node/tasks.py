"""Background work that belongs to somebody: started by name, watched, ended with its owner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from p2pnode.errors import P2PNodeError


class Tasks:
    """Owns tasks. One that fails is reported (conditions and bugs alike), never lost."""

    def __init__(self, report: Callable[[str, BaseException], None]) -> None:
        self._report = report
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        if self._closed:
            work.close()
            raise asyncio.CancelledError(f"{name}: the owner is closing")
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._report(task.get_name(), error)

    def __len__(self) -> int:
        return len(self._tasks)

    async def close(self) -> None:
        self._closed = True
        while self._tasks:
            pending = list(self._tasks)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)


def describe(error: BaseException) -> str:
    if isinstance(error, P2PNodeError):
        return f"{error.code}: {error.message}"
    return f"{type(error).__name__}: {error}"
