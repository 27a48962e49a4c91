"""When a member that did not answer is dialled again: jittered back-off, cut short by news of it.

Back-off alone is blind. A device that was frozen for ten minutes and is back would be waited for up to a
minute, although mDNS hears it, another member reaches it, or it has just called by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from random import Random

from p2pnode import limits

Wait = Callable[[asyncio.Event, float], Awaitable[None]]
"""Until the event is set, or for so many seconds; tests put a clock of their own here."""


async def wait_for_event(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


class Redial:
    """The pauses between the dials of one member."""

    def __init__(self, rng: Random, wait: Wait = wait_for_event) -> None:
        self._rng = rng
        self._wait = wait
        self._news = asyncio.Event()
        self.failures = 0

    def news(self) -> None:
        """Something says that the member is there: do not sit out the pause, and count failures anew."""
        self.failures = 0
        self._news.set()

    async def pause(self) -> None:
        """After one more failure; news that came during the dial counts as well."""
        self.failures += 1
        ceiling_s = min(limits.REDIAL_DELAY_S_MAX, limits.REDIAL_DELAY_S_MIN * 2 ** min(self.failures, 10))
        # Full jitter: a mesh that lost its power must not come back in lock-step.
        delay_s = self._rng.uniform(limits.REDIAL_DELAY_S_MIN / 2, ceiling_s)
        # Whoever spreads news must not be able to make this node dial in a loop.
        least_s = min(delay_s, limits.REDIAL_DELAY_S_MIN)
        await self._wait(asyncio.Event(), least_s)
        if delay_s > least_s:
            await self._wait(self._news, delay_s - least_s)
        self._news.clear()
