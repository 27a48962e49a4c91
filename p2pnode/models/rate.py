"""A byte rate shared by all streams: a bucket that fills at a steady rate."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class RateLimit:
    """Callers wait until their bytes are covered, in the order they came."""

    def __init__(
        self,
        bytes_per_s: float,
        *,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        assert bytes_per_s > 0
        self.bytes_per_s = bytes_per_s
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._sleep = sleep
        self._free_at: float | None = None
        """When all bytes granted so far have left at the steady rate."""

    async def take(self, size: int) -> None:
        """Return when `size` bytes may be sent; a first burst of one second's bytes is free."""
        now = self._clock()
        start = max(now - 1.0, self._free_at if self._free_at is not None else now - 1.0)
        self._free_at = start + size / self.bytes_per_s
        wait_s = self._free_at - now
        if wait_s > 0:
            await self._sleep(wait_s)
