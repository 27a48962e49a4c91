"""How a stage comes to this device for a head: its bytes fetched, cut, loaded into an engine, its lanes opened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from p2pnode import limits
from p2pnode.compute.engine_options import DeviceOptions, EngineOptions
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.gguf import ModelIndex
from p2pnode.compute.part import Part, real_layer_count
from p2pnode.node.calls import ProgressCallback
from p2pnode.node.catalog import Catalog
from p2pnode.node.engine_share import StageEngine
from p2pnode.node.hosted_stage import UNIT, HostedStage
from p2pnode.node.orders import HoldOrder, StageOrder
from p2pnode.node.tensor import Lanes
from p2pnode.node.units import UnitOptions, part_of_stage, unit_spec, wants_of
from p2pnode.units import ContentId, PeerId


class Fitting(Protocol):
    """Gives a unit its part of the adapters: `node.adapters`."""

    async def fitted(
        self,
        spec: UnitSpec,
        engine: EngineOptions,
        base: ModelIndex,
        part: Part,
        *,
        model: ContentId,
        holder: PeerId | None = None,
    ) -> UnitSpec: ...


class StageLoader:
    def __init__(
        self,
        *,
        catalog: Catalog,
        lanes: Lanes,
        threads: int,
        new_engine: Callable[[StageOrder], StageEngine],
        device: Callable[[], DeviceOptions],
        adapters: Fitting,
    ) -> None:
        self._catalog = catalog
        self._lanes = lanes
        self._threads = threads
        self._new_engine = new_engine
        self._device = device
        self._adapters = adapters

    async def load(
        self,
        order: StageOrder,
        progress: ProgressCallback,
        take_loaded: Callable[[StageOrder], Awaitable[StageEngine | None]],
    ) -> HostedStage:
        """A stage ready to be attached to; in an engine that `take_loaded` finds with its weights, or in a new one."""
        content_id = ContentId(order.model)
        manifest = await self._catalog.manifest(content_id, name=order.model_name, extra_holders=[order.head])
        index, _ = await self._catalog.index(content_id, vocabulary=False)
        engine_options = EngineOptions.parse(order.engine)
        engine_options.check_model(index)
        part = part_of_stage(index, order.layer_first, order.layer_end, rank=order.rank, shares=order.shares)
        wants = wants_of(index, part)
        shards = ContentId(order.shard_table) if order.shard_table else None
        fetched = await self._catalog.fetch(
            content_id,
            wants,
            vocabulary=part.embedding,
            shards=shards,
            extra_holders=[order.head],
            on_progress=lambda done, total: progress({"state": "fetching", "done": done, "total": total}),
        )
        index, paths = await self._catalog.index(content_id, vocabulary=part.embedding)
        strips = await self._catalog.strips(content_id, shards, wants)
        options = UnitOptions(
            order.context_tokens,
            order.sessions,
            order.threads or self._threads,
            prefix_bytes=max(0, min(order.prefix_bytes, limits.PREFIX_BYTES_MAX)),
            engine=engine_options,
            device=self._device(),
        )
        spec = unit_spec(
            index,
            paths,
            part,
            options,
            model_id=self._catalog.model_id(content_id),
            is_last=order.is_last,
            strips=strips,
        )
        spec = await self._adapters.fitted(
            spec, engine_options, index, part, model=content_id, holder=PeerId(order.head)
        )
        engine = await take_loaded(order)
        if engine is None:
            engine = self._new_engine(order)
        in_chunks = [want for want in wants if want.tensor not in strips] if strips else wants
        wanted = manifest.bytes_of(manifest.chunks_for(in_chunks)) + sum(s.size for s in strips.values())
        try:
            await engine.ensure(
                UNIT, spec, lambda f: progress({"state": "loading", "done": int(f * 1000), "total": 1000})
            )
            ports, ring_ports = await self.open_lanes(order, engine)
        except BaseException:  # the head gave up, or it did not load: no engine is left behind
            await engine.close()
            raise
        layers_total = real_layer_count(index)
        return HostedStage(
            order,
            engine,
            fetched.bytes_on_wire,
            wanted,
            ports=ports,
            ring_ports=ring_ports,
            layers_total=layers_total,
        )

    async def open_lanes(self, order: StageOrder, engine: StageEngine) -> tuple[list[int], list[int]]:
        """Ports for the other ranks, and for both neighbours in the ring where this rank leads."""
        ranks = max(0, len(order.shares) - 1)
        neighbours = 2 if order.rank == 0 and self._lanes.are_for_rings else 0
        ports = await self._lanes.open(engine.client, engine.unit(UNIT), ranks + neighbours)
        return ports[:ranks], ports[ranks:]

    async def fetch_only(self, order: HoldOrder, head: PeerId, progress: ProgressCallback) -> int:
        """Bring the bytes of layers to this disk, nothing is loaded; bytes that came over the wire."""
        content_id = ContentId(order.model)
        await self._catalog.manifest(content_id, name=order.model_name, extra_holders=[head])
        index, _ = await self._catalog.index(content_id, vocabulary=False)
        part = part_of_stage(index, order.layer_first, order.layer_end)
        fetched = await self._catalog.fetch(
            content_id,
            wants_of(index, part),
            vocabulary=part.embedding,
            extra_holders=[head],
            on_progress=lambda done, total: progress({"state": "fetching", "done": done, "total": total}),
        )
        return fetched.bytes_on_wire
