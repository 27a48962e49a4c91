"""Engine processes of this node: each serves one purpose, and when it dies it is started again."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from p2pnode import heap, limits
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_process import streaming_environment
from p2pnode.compute.engine_protocol import UnitInfo, UnitSpec
from p2pnode.errors import EngineUnavailable, P2PNodeError
from p2pnode.node.catalog import KnownModel
from p2pnode.node.processes import Processes
from p2pnode.node.tasks import Tasks
from p2pnode.units import ContentId

LoadProgress = Callable[[float], None]
Notice = Callable[[str, str, dict[str, int | str]], Awaitable[None]]
"""("died" or "restarted", what it served, details): both become facts."""


class EngineHost:
    """One engine process and the units it holds by name; reloads all of them after a crash."""

    def __init__(
        self,
        purpose: str,
        *,
        tasks: Tasks,
        notice: Notice,
        said: Callable[[Mapping[str, Any]], None] = lambda _: None,
        processes: Processes | None = None,
    ) -> None:
        self._said = said
        self._processes = Processes() if processes is None else processes
        self.purpose = purpose
        self._tasks = tasks
        self._notice = notice
        self._client: EngineClient | None = None
        self._specs: dict[str, UnitSpec] = {}
        self._deaths: deque[float] = deque(maxlen=limits.ENGINE_RESTARTS_MAX)
        self._closing = False
        self._starting = asyncio.Lock()
        self._restarting: asyncio.Task[None] | None = None
        self.infos: dict[str, UnitInfo] = {}
        self.generation = 0
        """Rises with every death: sessions of an older one are gone."""
        self.listeners: list[Callable[[str], None]] = []
        self.unload_listeners: list[Callable[[int], None]] = []
        """Told of a unit before it goes, so that nothing is sent to it any more."""

    @property
    def client(self) -> EngineClient:
        if self._client is None or not self._client.alive:
            raise EngineUnavailable(
                f"the engine for {self.purpose} is not running", hint="it is being restarted"
            )
        return self._client

    @property
    def pid(self) -> int | None:
        return self._client.pid if self._client else None

    @property
    def is_up(self) -> bool:
        return self._client is not None and self._client.alive

    @property
    def specs(self) -> Collection[UnitSpec]:
        return self._specs.values()

    def unit(self, name: str) -> int:
        """The engine's number of a loaded unit."""
        if name not in self.infos:
            raise EngineUnavailable(f"the engine for {self.purpose} has not loaded {name} yet")
        return self.infos[name].unit_id

    def has(self, units: Sequence[int]) -> bool:
        """Whether all of these units are loaded now."""
        return {info.unit_id for info in self.infos.values()}.issuperset(units)

    async def ensure(self, name: str, spec: UnitSpec, on_progress: LoadProgress | None = None) -> UnitInfo:
        """Start the process if there is none, load the unit if it is not there as asked.

        Where only adapters differ the weights stay, and what its sessions held is gone.
        """
        if self._client is not None and not self._client.alive:
            await self._client.close()  # it is dead already: this only waits until that was noticed
        if self._restarting is not None:
            await asyncio.wait([self._restarting])
        async with self._starting:
            if self._closing:
                raise EngineUnavailable(f"the engine for {self.purpose} was ended")
            if self._client is None:
                client = await self._start(streams=spec.resident_bytes_max > 0)
                if self._closing:
                    await client.close()
                    raise EngineUnavailable(f"the engine for {self.purpose} was ended")
                self._client = client
            if self._specs.get(name) == spec and name in self.infos:
                return self.infos[name]
            if name in self.infos:
                before = self._specs.pop(name, None)
                if before is not None and replace(before, adapters=spec.adapters) == spec:
                    return await self._change_adapters(self._client, name, spec)
                await self._unload(self._client, self.infos.pop(name))
            info = await self._load(self._client, spec, on_progress)
            self._specs[name] = spec
            self.infos[name] = info
            heap.let_files_go()
            heap.give_back()
            return info

    async def _start(self, *, streams: bool) -> EngineClient:
        client = await self._processes.start(
            lambda: EngineClient.start(
                on_exit=self._exited, environment=streaming_environment() if streams else None
            )
        )
        self._said(client.hello)
        return client

    async def _load(self, client: EngineClient, spec: UnitSpec, on_progress: LoadProgress | None) -> UnitInfo:
        """Who gives up meanwhile leaves nothing loaded that no name leads to."""
        loading = asyncio.ensure_future(client.load(spec, progress=on_progress))
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            self._tasks.spawn(f"unload from engine {self.purpose}", self._unload_late(client, loading))
            raise

    async def _unload_late(self, client: EngineClient, loading: asyncio.Future[UnitInfo]) -> None:
        with contextlib.suppress(P2PNodeError):
            await client.unload((await loading).unit_id)

    async def _change_adapters(self, client: EngineClient, name: str, spec: UnitSpec) -> UnitInfo:
        """Whoever computes with the old ones is told as if the unit went.

        Where that fails nobody knows which act: without its spec the unit is loaded anew by whoever asks next.
        """
        info = self.infos[name]
        for listener in list(self.unload_listeners):
            listener(info.unit_id)
        await client.set_adapters(info.unit_id, spec.adapters)
        self._specs[name] = spec
        return info

    async def drop(self, name: str) -> None:
        """Unload a unit; the process stays."""
        async with self._starting:
            self._specs.pop(name, None)
            info = self.infos.pop(name, None)
            if info is not None and self._client is not None:
                await self._unload(self._client, info)

    async def _unload(self, client: EngineClient, info: UnitInfo) -> None:
        for listener in list(self.unload_listeners):
            listener(info.unit_id)
        await client.unload(info.unit_id)

    async def revived(self) -> bool:
        """Whether it is up, once a restart under way has come to its end."""
        if not self.is_up and self._restarting is not None:
            await asyncio.wait([self._restarting])
        return self.is_up

    def _exited(self, code: int) -> None:
        if self._closing or self._client is None or self._processes.is_refusing:
            return
        self._client = None
        self.infos = {}
        self.generation += 1
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        for listener in list(self.listeners):
            listener(reason)
        self._restarting = self._tasks.spawn(f"restart engine {self.purpose}", self._restart(code, reason))

    async def _restart(self, code: int, reason: str) -> None:
        now_s = asyncio.get_running_loop().time()
        await self._notice("died", self.purpose, {"exit_code": code, "reason": reason})
        recent = [at_s for at_s in self._deaths if now_s - at_s < limits.ENGINE_RESTART_WINDOW_S]
        self._deaths.append(now_s)
        if len(recent) >= limits.ENGINE_RESTARTS_MAX or self._closing:
            return
        try:
            async with self._starting:
                client = await self._start(
                    streams=any(spec.resident_bytes_max for spec in self._specs.values())
                )
                try:
                    infos = {name: await client.load(spec) for name, spec in self._specs.items()}
                except BaseException:
                    await client.close()
                    raise
                self._client, self.infos = client, infos
        except P2PNodeError as error:
            await self._notice(
                "died", self.purpose, {"exit_code": 0, "reason": f"restart failed: {error.message}"}
            )
            return
        duration_ms = int((asyncio.get_running_loop().time() - now_s) * 1000)
        await self._notice(
            "restarted", self.purpose, {"attempt": self.generation, "duration_ms": duration_ms}
        )

    async def close(self) -> None:
        self._closing = True
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait([self._restarting])
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        async with self._starting:
            return  # whoever was starting a process has seen that nobody wants it any more


class EnginePool:
    """Engines of this head by model and purpose: started when first asked for, ended with their plans."""

    def __init__(self, new_engine: Callable[[str], EngineHost]) -> None:
        self._new_engine = new_engine
        self._engines: dict[tuple[ContentId, str], EngineHost] = {}

    def of(self, model: KnownModel, purpose: str) -> EngineHost:
        return self.named(model.content_id, model.name, purpose)

    def named(self, content_id: ContentId, name: str, purpose: str) -> EngineHost:
        key = (content_id, purpose)
        if key not in self._engines:
            self._engines[key] = self._new_engine(f"{name} ({purpose})")
        return self._engines[key]

    def has(self, engine: EngineHost, content_id: ContentId, purpose: str) -> bool:
        """Whether who asks for this purpose gets this engine."""
        return self._engines.get((content_id, purpose)) is engine

    async def drop(self, engine: EngineHost) -> None:
        self._engines = {key: other for key, other in self._engines.items() if other is not engine}
        await engine.close()

    async def close(self) -> None:
        engines, self._engines = list(self._engines.values()), {}
        for engine in engines:
            await engine.close()
