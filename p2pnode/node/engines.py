"""Engine processes of this node: each serves one purpose, and when it dies its owner starts it again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from p2pnode import limits
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import UnitInfo, UnitSpec
from p2pnode.errors import EngineUnavailable, P2PNodeError
from p2pnode.node.tasks import Tasks

LoadProgress = Callable[[float], None]
Notice = Callable[[str, str, dict[str, object]], Awaitable[None]]
"""(event name, what it served, details): EngineDied and EngineRestarted become facts."""


class EngineHost:
    """One engine process and the units it must hold; reloads them after a crash."""

    def __init__(self, purpose: str, *, tasks: Tasks, notice: Notice) -> None:
        self.purpose = purpose
        self._tasks = tasks
        self._notice = notice
        self._client: EngineClient | None = None
        self._specs: tuple[UnitSpec, ...] = ()
        self._deaths: deque[float] = deque(maxlen=limits.ENGINE_RESTARTS_MAX)
        self._closing = False
        self.infos: tuple[UnitInfo, ...] = ()
        self.generation = 0
        """Rises with every restart: sessions of an older one are gone."""
        self.on_death: Callable[[str], None] = lambda reason: None

    @property
    def client(self) -> EngineClient:
        if self._client is None:
            raise EngineUnavailable(
                f"the engine for {self.purpose} is not running", hint="it is being restarted"
            )
        return self._client

    @property
    def pid(self) -> int | None:
        return self._client.pid if self._client else None

    @property
    def is_up(self) -> bool:
        return self._client is not None

    async def load(
        self, specs: Sequence[UnitSpec], on_progress: LoadProgress | None = None
    ) -> tuple[UnitInfo, ...]:
        """Start the process if there is none and load these units, in order."""
        self._specs = tuple(specs)
        client = await EngineClient.start(on_exit=self._exited)
        try:
            infos = []
            for number, spec in enumerate(self._specs):

                def part(fraction: float, number: int = number) -> None:
                    if on_progress is not None:
                        on_progress((number + fraction) / len(self._specs))

                infos.append(await client.load(spec, on_progress=part))
        except BaseException:
            await client.close()
            raise
        self._client = client
        self.infos = tuple(infos)
        return self.infos

    def _exited(self, reason: str) -> None:
        if self._closing or self._client is None:
            return
        self._client = None
        self.on_death(reason)
        self._tasks.spawn(f"restart engine {self.purpose}", self._restart(reason))

    async def _restart(self, reason: str) -> None:
        now_s = asyncio.get_running_loop().time()
        await self._notice("died", self.purpose, {"reason": reason})
        too_often = (
            len(self._deaths) == self._deaths.maxlen
            and now_s - self._deaths[0] < limits.ENGINE_RESTART_WINDOW_S
        )
        self._deaths.append(now_s)
        if too_often or self._closing:
            return
        try:
            await self.load(self._specs)
        except P2PNodeError as error:
            await self._notice("died", self.purpose, {"reason": f"restart failed: {error.message}"})
            return
        self.generation += 1
        duration_ms = int((asyncio.get_running_loop().time() - now_s) * 1000)
        await self._notice(
            "restarted", self.purpose, {"attempt": self.generation, "duration_ms": duration_ms}
        )

    async def close(self) -> None:
        self._closing = True
        client, self._client = self._client, None
        if client is not None:
            await client.close()
