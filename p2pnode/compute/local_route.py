"""The shortest route: the whole model in one engine of this device."""

from __future__ import annotations

from collections.abc import Sequence

from p2pnode.compute.engine_protocol import Sampled
from p2pnode.compute.route import Feed, HeadEngine
from p2pnode.errors import P2PNodeError
from p2pnode.facade import SamplingParams


class LocalRoute:
    """The whole model in one engine unit of this device."""

    def __init__(self, engine: HeadEngine, unit_id: int) -> None:
        self._engine = engine
        self._unit_id = unit_id
        self._lost: P2PNodeError | None = None
        self.stages = 1

    @property
    def home(self) -> tuple[object, int]:
        return (self._engine, self._unit_id)

    async def open(self, session: int, params: SamplingParams, prompt_tokens: Sequence[int]) -> None:
        await self._engine.open_session(self._unit_id, session, params, prompt_tokens)

    def lost(self, error: P2PNodeError) -> None:
        """Its plan ended; the engine may stay for the next one, with other adapters."""
        self._lost = self._lost or error

    async def feed(self, feed: Feed) -> Sampled | None:
        if self._lost is not None:
            raise self._lost
        frame = feed.frame(0)
        if feed.sample:
            return await self._engine.step_sample(self._unit_id, frame, ahead=feed.ahead)
        await self._engine.step(self._unit_id, frame)
        return None

    async def free(self, session: int) -> None:
        await self._engine.free_session(self._unit_id, session)

    async def keep(self, session: int, count: int) -> None:
        await self._engine.keep_prefix(self._unit_id, session, count)

    async def reuse(self, session: int, prefix: int, count: int) -> None:
        await self._engine.reuse_prefix(self._unit_id, session, prefix, count)

    async def forget(self, prefix: int) -> None:
        await self._engine.forget_prefix(self._unit_id, prefix)
