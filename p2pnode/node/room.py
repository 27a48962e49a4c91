"""Room for one more model within what this device may use: the least recently used idle one makes it.

What is loaded is measured (resident memory of the engines), what comes is estimated. A plan that is unloaded still
stands: the next request for its model loads it again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager

from p2pnode.compute.wish import size_text
from p2pnode.errors import Busy
from p2pnode.node.active import Active
from p2pnode.node.engines import EngineHost

Unload = Callable[[Active], Awaitable[None]]


class Room:
    def __init__(
        self,
        *,
        memory_max_bytes: int | None,
        engines: Callable[[], Iterable[EngineHost]],
        in_use: Callable[[], Collection[str]],
        held_by: Callable[[EngineHost], int],
    ) -> None:
        self._memory_max_bytes = memory_max_bytes
        self._engines = engines
        self._in_use = in_use
        """Plans that requests run on now."""
        self._held_by = held_by
        self._coming: dict[str, int] = {}
        """Bytes of plans that are being loaded."""

    @property
    def is_limited(self) -> bool:
        return self._memory_max_bytes is not None

    @asynccontextmanager
    async def of(
        self,
        plan_id: str,
        model: str,
        needed_bytes: int,
        standing: Iterable[Active],
        unload: Unload,
        *,
        kept: EngineHost | None = None,
    ) -> AsyncIterator[None]:
        """While a plan is loaded that needs so much here. Busy when only models at work could make room.

        `kept`: an engine that has it loaded already.
        """
        victims = self._victims(plan_id, model, needed_bytes, list(standing), kept)
        self._coming[plan_id] = needed_bytes
        try:
            for active in victims:
                await unload(active)
            yield
        finally:
            del self._coming[plan_id]

    def _victims(
        self, plan_id: str, model: str, needed_bytes: int, standing: list[Active], kept: EngineHost | None
    ) -> list[Active]:
        """Idle plans, least recently used first, until it fits; everything idle where it never will."""
        limit = self._memory_max_bytes
        if limit is None:
            return []
        in_use = self._in_use()
        at_work = [a for a in standing if a.plan_id in in_use]
        # A request that lost its plan goes on with this one: what the old one holds of the model makes way by itself.
        own = {a.engine for a in at_work if a.model.content_id == model}
        held = {e: self._held_by(e) for e in self._engines() if e.is_up and e not in own and e is not kept}
        too_much = sum(held.values()) + sum(self._coming.values()) + needed_bytes - limit
        victims: list[Active] = []
        idle = [a for a in standing if a.plan_id not in in_use and a.plan_id != plan_id and a.is_usable]
        for active in sorted(idle, key=lambda a: a.used_s):
            if too_much <= 0:
                return victims
            victims.append(active)
            if not any(a.engine is active.engine for a in standing if a not in victims):
                too_much -= held.get(active.engine, 0)
        if 0 < too_much <= sum(held.get(engine, 0) for engine in {a.engine for a in at_work}):
            raise Busy(
                f"{size_text(needed_bytes)} are needed beside the models that are at work, "
                f"{size_text(limit)} are allowed",
                hint="try again when they are done, or raise --memory-max",
            )
        return victims
