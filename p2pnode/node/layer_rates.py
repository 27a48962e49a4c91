"""How fast this machine computes each model's layers, measured on the layers themselves.

A processor's time for a row depends on the quantisation and the shape of the weights, not on their values. So
the manifest is enough: layers whose bytes are not here yet are read as the zeros of a sparse file.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from p2pnode import limits
from p2pnode.compute import rates
from p2pnode.compute.cost import ModelShape
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.measure import LayerTiming, time_layers
from p2pnode.compute.part import Part
from p2pnode.compute.rates import RateEntry
from p2pnode.compute.shape import shape_of
from p2pnode.errors import P2PNodeError
from p2pnode.frame import DType, Frame, Kind
from p2pnode.models.files import write_atomic
from p2pnode.node.calls import ProgressCallback
from p2pnode.node.catalog import Catalog
from p2pnode.node.processes import Processes
from p2pnode.node.units import UnitOptions, unit_spec
from p2pnode.units import ContentId, PeerId

Tell = Callable[[Mapping[str, Any]], None]
TimeModel = Callable[[ContentId], Coroutine[Any, Any, LayerTiming | None]]
TIMING = "device.timing"
TIMING_WORDS = ("auto", "once")
"""A setting: whether layers are timed again when that was disturbed, is a day old or is doubted."""
RATES_DOUBT = "rates.doubt"
"""A head asks: a request went much quicker or slower than this device's speed let expect."""


class _Interrupted(Exception):  # noqa: N818 - no condition for anybody, only a way out
    """A request came while layers were timed."""


class LayerRates:
    """Measures one model at a time, only while nothing else computes here; remembers it for a day, or until doubts."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        path: Path,
        threads: int,
        is_busy: Callable[[], bool],
        now_ms: Callable[[], int],
        changed: Callable[[], None],
        said: Tell = lambda _: None,
        processes: Processes | None = None,
        others: Callable[[], float] = lambda: psutil.cpu_percent() / 100,
        time_model: TimeModel | None = None,
        repeats: Callable[[], bool] = lambda: True,
    ) -> None:
        self._said = said
        self._processes = Processes() if processes is None else processes
        self._catalog = catalog
        self._path = path
        self._threads = threads
        self._is_busy = is_busy
        self._now_ms = now_ms
        self._changed = changed
        self._others = others
        """Part of all processors that worked since it was asked last; of other programs, where nothing runs here."""
        self._time_model = self._measure if time_model is None else time_model
        self._repeats = repeats
        self._failed: dict[ContentId, tuple[int, int]] = {}
        """Models that could not be timed: how often, and when it is tried again."""
        self._entries = self._remembered()

    def view(self) -> dict[str, dict[str, Any]]:
        """What others are told, of the newest: `rates` by content id [R, P, step], and `context_rates`."""
        newest = sorted(self._entries.items(), key=lambda item: -item[1].at_ms)[: limits.RATES_TOLD_MAX]
        return {
            "rates": {content_id: list(entry.rates[:3]) for content_id, entry in newest},
            "context_rates": {content_id: entry.rates[3] for content_id, entry in newest},
        }

    async def run(self) -> None:
        """For as long as the node lives."""
        self._others()
        while True:
            if not await self.look():
                await asyncio.sleep(limits.MEASURE_LOOK_S)

    async def look(self) -> bool:
        """Time one model that is due; False when there was none, or no time for it."""
        load = self._others()
        if self._is_busy() or (content_id := self._next(load)) is None:
            return False
        before = self._entries.get(content_id)
        try:
            timing = await self._while_idle(self._time_model(content_id))
        except _Interrupted:
            return False
        except P2PNodeError:
            timing = None  # it cannot be cut, or there is no memory for it now: the guess has to do
        if timing is None:
            tries = self._failed.get(content_id, (0, 0))[0]
            self._failed[content_id] = (tries + 1, self._now_ms() + rates.pause_ms(tries))
            return True
        self._failed.pop(content_id, None)
        found = rates.timed(before, timing, threads=self._threads, load=load, now_ms=self._now_ms())
        await self._keep(content_id, found)
        self._changed()
        return True

    async def _while_idle(self, work: Coroutine[Any, Any, LayerTiming | None]) -> LayerTiming | None:
        """Given up as soon as a request comes: neither is to disturb the other."""
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait({task}, timeout=limits.MEASURE_YIELD_S))[0]:
                if self._is_busy():
                    raise _Interrupted
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    async def doubt(self, content_id: ContentId) -> None:
        """Its speed shall be timed again, when nothing runs here."""
        if (entry := self._entries.get(content_id)) is not None and not entry.is_doubted:
            await self._keep(content_id, rates.doubted(entry, self._now_ms()))

    async def asked_to_doubt(
        self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback
    ) -> dict[str, Any]:
        """By a head whose request was on this device; pauses grow whoever asks how often."""
        del peer
        await self.doubt(ContentId(str(arguments.get("model", ""))))
        return {}

    def _next(self, load: float) -> ContentId | None:
        now_ms = self._now_ms()
        for model in self._catalog.store.models():
            if now_ms < self._failed.get(model.content_id, (0, 0))[1]:
                continue
            entry = self._entries.get(model.content_id)
            if entry is None or (self._repeats() and rates.is_due(entry, now_ms, load)):
                return model.content_id
        return None

    async def _keep(self, content_id: ContentId, entry: RateEntry) -> None:
        self._entries[content_id] = entry
        here = {model.content_id for model in self._catalog.store.models()}
        oldest = sorted(self._entries, key=lambda key: self._entries[key].at_ms)
        gone = [key for key in oldest if key not in here]
        for key in gone[: max(0, len(self._entries) - limits.RATES_KEPT_MAX)]:
            del self._entries[key]
        document = {key: entry.as_dict() for key, entry in self._entries.items()}
        await asyncio.to_thread(write_atomic, self._path, json.dumps(document).encode())

    async def _measure(self, content_id: ContentId) -> LayerTiming | None:
        index, paths = await self._catalog.index(content_id, vocabulary=False)
        shape = shape_of(index, name="", content_id=content_id)
        part = sample_of(shape, int(psutil.virtual_memory().available) // 4)
        if part is None:
            return None
        options = UnitOptions(limits.CONTEXT_TOKENS_MIN, 1, self._threads)
        spec = unit_spec(
            index, paths, part, options, model_id=self._catalog.model_id(content_id), is_last=False
        )
        engine = await self._processes.start(EngineClient.start)
        try:
            self._said(engine.hello)
            unit = (await engine.load(spec)).unit_id
            async with asyncio.timeout(limits.MEASURE_S_MAX):
                return await time_rows(engine, unit, shape, part)
        except TimeoutError:
            return None
        finally:
            await engine.close()

    def _remembered(self) -> dict[ContentId, RateEntry]:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        entries = {key: rates.read(value) for key, value in found.items()} if isinstance(found, dict) else {}
        return {
            ContentId(key): entry
            for key, entry in entries.items()
            if entry is not None and entry.threads == self._threads
        }


async def time_rows(engine: EngineClient, unit: int, shape: ModelShape, part: Part) -> LayerTiming:
    """Random rows through a loaded part, timed by the engine and from outside."""
    values = np.random.default_rng(0).standard_normal((limits.MEASURE_PREFILL_ROWS, shape.width), np.float32)

    async def run_rows(rows: int, position: int) -> float:
        frame = Frame(
            Kind.ROWS, DType.F32, rows, shape.width, 1, values[:rows].tobytes(), position_first=position,
            wanted_first=0,
        )  # fmt: skip
        result = await engine.step(unit, frame)
        return float(result.meta["t"][1]) / 1e9

    layers = slice(part.layer_first, part.layer_end)
    return await time_layers(
        run_rows,
        sum(shape.active_bytes[layers]),
        kv_bytes_per_token=sum(shape.kv_bytes_per_token[layers]),
        prefill_rows=limits.MEASURE_PREFILL_ROWS,
    )


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
