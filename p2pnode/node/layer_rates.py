"""How fast this machine computes each model's layers, measured on the layers themselves.

A processor's time for a row depends on the quantisation and the shape of the weights, not on their values. So
the manifest is enough: layers whose bytes are not here yet are read as the zeros of a sparse file.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from p2pnode import limits
from p2pnode.compute.cost import ModelShape
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.measure import LayerTiming, time_layers
from p2pnode.compute.part import Part
from p2pnode.compute.shape import shape_of
from p2pnode.errors import P2PNodeError
from p2pnode.frame import DType, Frame, Kind
from p2pnode.models.files import write_atomic
from p2pnode.node.catalog import Catalog
from p2pnode.node.processes import Processes
from p2pnode.node.units import UnitOptions, unit_spec
from p2pnode.units import ContentId

Rates = dict[str, list[float]]
"""By content id: bytes of weights a second for one row, the same times rows for many, seconds a step costs besides."""


class LayerRates:
    """Measures one model at a time, only while nothing else computes here, and remembers it for a day."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        path: Path,
        threads: int,
        is_busy: Callable[[], bool],
        now_ms: Callable[[], int],
        changed: Callable[[], None],
        said: Callable[[Mapping[str, Any]], None] = lambda _: None,
        processes: Processes | None = None,
    ) -> None:
        self._said = said
        self._processes = Processes() if processes is None else processes
        self._catalog = catalog
        self._path = path
        self._threads = threads
        self._is_busy = is_busy
        self._now_ms = now_ms
        self._changed = changed
        self._tried: set[ContentId] = set()
        """Measured or refused since this node started: nothing is tried in a circle."""
        self._entries = self._remembered()

    def view(self) -> Rates:
        """What others are told, the newest first."""
        newest = sorted(self._entries.items(), key=lambda item: -item[1]["at_ms"])
        return {content_id: list(entry["rates"]) for content_id, entry in newest[: limits.RATES_TOLD_MAX]}

    async def run(self) -> None:
        """For as long as the node lives."""
        while True:
            content_id = self._next()
            if content_id is None or self._is_busy():
                await asyncio.sleep(limits.MEASURE_LOOK_S)
                continue
            self._tried.add(content_id)
            try:
                await self._measure(content_id)
            except P2PNodeError:
                continue  # a model that cannot be cut, or no memory for it now: the guess has to do

    def _next(self) -> ContentId | None:
        fresh_ms = self._now_ms() - limits.MEASURE_FRESH_MS
        for model in self._catalog.store.models():
            entry = self._entries.get(model.content_id)
            if (entry is None or entry["at_ms"] < fresh_ms) and model.content_id not in self._tried:
                return model.content_id
        return None

    async def _measure(self, content_id: ContentId) -> None:
        index, paths = await self._catalog.index(content_id, vocabulary=False)
        shape = shape_of(index, name="", content_id=content_id)
        part = sample_of(shape, int(psutil.virtual_memory().available) // 4)
        if part is None:
            return
        options = UnitOptions(limits.CONTEXT_TOKENS_MIN, 1, self._threads)
        spec = unit_spec(
            index, paths, part, options, model_id=self._catalog.model_id(content_id), is_last=False
        )
        engine = await self._processes.start(EngineClient.start)
        try:
            self._said(engine.hello)
            unit = (await engine.load(spec)).unit_id
            async with asyncio.timeout(limits.MEASURE_S_MAX):
                timing = await time_rows(engine, unit, shape, part)
        except TimeoutError:
            return
        finally:
            await engine.close()
        rates = [timing.decode_bytes_per_s, timing.prefill_bytes_per_s, timing.overhead_s]
        self._entries[content_id] = {"rates": rates, "threads": self._threads, "at_ms": self._now_ms()}
        await asyncio.to_thread(write_atomic, self._path, json.dumps(self._entries).encode())
        self._changed()

    def _remembered(self) -> dict[str, dict[str, Any]]:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        entries = found.items() if isinstance(found, dict) else ()
        return {
            key: entry for key, entry in entries if _is_entry(entry) and entry.get("threads") == self._threads
        }


async def time_rows(engine: EngineClient, unit: int, shape: ModelShape, part: Part) -> LayerTiming:
    """Random rows through a loaded part, timed by the engine and from outside."""
    values = np.random.default_rng(0).standard_normal((limits.MEASURE_PREFILL_ROWS, shape.width), np.float32)

    async def run_rows(rows: int) -> float:
        frame = Frame(
            Kind.ROWS, DType.F32, rows, shape.width, 1, values[:rows].tobytes(), position_first=0, wanted_first=0
        )  # fmt: skip
        result = await engine.step(unit, frame)
        return float(result.meta["t"][1]) / 1e9

    size = sum(shape.active_bytes[part.layer_first : part.layer_end])
    return await time_layers(run_rows, size, prefill_rows=limits.MEASURE_PREFILL_ROWS)


def sample_of(shape: ModelShape, memory_bytes: int) -> Part | None:
    """Layers from the end, as many as caches can neither hold nor help with; None where none can be cut or has room.

    A cache keeps a part of what went through it last: of a sample four times its size a quarter is read from there
    in every round, of a whole model nothing.
    """
    if shape.cut_refusal is not None:
        return None
    first, size = shape.layer_count, 0
    while first > 0 and size < limits.MEASURE_LAYER_BYTES:
        step = (first - 1) // shape.boundary * shape.boundary
        more = sum(shape.layer_bytes[step:first])
        if size + more > memory_bytes:
            break
        first, size = step, size + more
    return Part(first, shape.layer_count) if size else None


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("at_ms"), int):
        return False
    rates = entry.get("rates")
    return (
        isinstance(rates, list)
        and len(rates) == 3
        and all(isinstance(r, int | float) and r > 0 for r in rates)
    )
