"""The prefix cache of one route: what the head decides about prefixes, done on every stage alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from p2pnode import limits
from p2pnode.compute.prefix_cache import PrefixCache, PrefixShape, Reuse
from p2pnode.compute.route import Route
from p2pnode.compute.scheduler import Session
from p2pnode.errors import P2PNodeError


class Prefixes:
    """Ends with its route: what a lost stage held is gone, and half a prefix is none."""

    def __init__(self, route: Route, shape: PrefixShape, bytes_max: Callable[[], int]) -> None:
        self._route = route
        self._bytes_max = bytes_max
        self._cache = PrefixCache(
            shape, chunk_tokens=limits.PREFILL_CHUNK_TOKENS, tokens_min=limits.PREFIX_TOKENS_MIN
        )
        self._turn = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._cache)

    @property
    def size_bytes(self) -> int:
        return self._cache.size_bytes

    def find(self, prompt: Sequence[int], *, exact: bool) -> Reuse | None:
        return self._cache.find(prompt, exact=exact) if self._bytes_max() else None

    async def missed(self, reuse: Reuse) -> None:
        """A stage did not hold it after all."""
        if self._cache.forget(reuse.prefix):
            await self._route.forget(reuse.prefix)

    async def keep(self, session: Session) -> None:
        """Lay aside what a finished session holds; its last token was sampled and never fed."""
        tokens = [*session.prompt, *session.generated][:-1]
        async with self._turn:
            if not self._cache.wants(tokens, self._bytes_max()):
                return
            for prefix in self._cache.room_for(tokens, self._bytes_max()):
                await self._route.forget(prefix)
            await self._route.keep(session.session, len(tokens))
            self._cache.add(session.session, tokens, session.exact)

    async def clear(self) -> None:
        """Forget everything on stages that are still there."""
        for prefix in self._cache.clear():
            try:
                await self._route.forget(prefix)
            except P2PNodeError:
                continue
