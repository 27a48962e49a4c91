"""A unit in an engine that serves another purpose too, for who would otherwise start a process for it alone.

A process costs 20 MB before it holds anything, and its ciphers 3 MB more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Protocol

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import UnitInfo, UnitSpec
from p2pnode.errors import EngineUnavailable
from p2pnode.node.engines import EngineHost, LoadProgress


class StageEngine(Protocol):
    """What a stage needs of the engine it is in: one of its own, or a share of another."""

    listeners: list[Callable[[str], None]]

    @property
    def client(self) -> EngineClient: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def is_up(self) -> bool: ...
    @property
    def generation(self) -> int: ...
    @property
    def infos(self) -> Mapping[str, UnitInfo]: ...
    def unit(self, name: str) -> int: ...
    async def ensure(
        self, name: str, spec: UnitSpec, on_progress: LoadProgress | None = None
    ) -> UnitInfo: ...
    async def revived(self) -> bool: ...
    async def close(self) -> None: ...


class EngineShare:
    """Units under names that begin with `prefix`; closing it unloads them, and the process stays."""

    def __init__(self, engine: EngineHost, prefix: str) -> None:
        self._engine = engine
        self._prefix = prefix
        self._names: set[str] = set()
        self.listeners = engine.listeners

    @property
    def client(self) -> EngineClient:
        return self._engine.client

    @property
    def pid(self) -> int | None:
        return self._engine.pid

    @property
    def is_up(self) -> bool:
        return self._engine.is_up

    @property
    def generation(self) -> int:
        return self._engine.generation

    @property
    def infos(self) -> Mapping[str, UnitInfo]:
        found = self._engine.infos
        return {name: found[whole] for name in self._names if (whole := self._prefix + name) in found}

    def unit(self, name: str) -> int:
        return self._engine.unit(self._prefix + name)

    async def ensure(self, name: str, spec: UnitSpec, on_progress: LoadProgress | None = None) -> UnitInfo:
        self._names.add(name)
        return await self._engine.ensure(self._prefix + name, spec, on_progress)

    async def revived(self) -> bool:
        return await self._engine.revived()

    async def close(self) -> None:
        for name in self._names:
            with contextlib.suppress(EngineUnavailable):  # nothing is loaded in a process that died
                await self._engine.drop(self._prefix + name)
