"""Where receipts of one request wait for one another, so that they are recorded in one fact and not in one each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

from p2pnode.commands import OfferedReceipt
from p2pnode.errors import P2PNodeError

JsonObject = dict[str, Any]
_Waiting = tuple[list[OfferedReceipt], "asyncio.Future[list[JsonObject]]"]


class Desk:
    """Records when all that are expected have brought something or left, or the first has waited `patience_s` once.

    So who is slow makes one more fact, and nobody's signature waits for a device that is gone.
    """

    def __init__(
        self,
        record: Callable[[Sequence[OfferedReceipt]], Awaitable[list[JsonObject]]],
        expected: int,
        patience_s: float,
    ) -> None:
        self._record, self._expected, self._patience_s = record, expected, patience_s
        self._waiting: list[_Waiting] = []
        self._arrived, self._complete = asyncio.Event(), asyncio.Event()
        self._clerk: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._clerk = asyncio.create_task(self._work())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._clerk is not None
        self._clerk.cancel()
        await asyncio.gather(self._clerk, return_exceptions=True)

    async def accept(self, offers: Sequence[OfferedReceipt]) -> list[JsonObject]:
        """What became of each, once it is recorded. Raises: what recording raises."""
        answers: asyncio.Future[list[JsonObject]] = asyncio.get_running_loop().create_future()
        self._waiting.append((list(offers), answers))
        self._look()
        return await answers

    def leave(self) -> None:
        """Who brought, or could not bring, all it has: nobody waits for it any more."""
        self._expected -= 1
        self._look()

    def _look(self) -> None:
        if self._waiting:
            self._arrived.set()
        if len(self._waiting) >= self._expected:
            self._complete.set()

    async def _work(self) -> None:
        patience_s: float | None = self._patience_s
        while True:
            await self._arrived.wait()
            try:
                async with asyncio.timeout(patience_s):
                    await self._complete.wait()
            except TimeoutError:
                patience_s = None  # calls have timeouts of their own
            waiting, self._waiting = self._waiting, []
            self._arrived.clear()
            self._complete.clear()
            await self._settle(waiting)

    async def _settle(self, waiting: Sequence[_Waiting]) -> None:
        try:
            answers = await self._record([offer for offers, _ in waiting for offer in offers])
        except P2PNodeError as error:
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        at = 0
        for offers, future in waiting:
            if not future.done():
                future.set_result(answers[at : at + len(offers)])
            at += len(offers)
