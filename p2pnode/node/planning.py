"""The planner's view of this mesh, and plans as people ask for them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from p2pnode import limits
from p2pnode.compute import elsewhere, what_if
from p2pnode.compute.builder import Builder
from p2pnode.compute.calibration import Calibration, Measured
from p2pnode.compute.care import Policy
from p2pnode.compute.cost import Device, Link, Mesh, ModelShape
from p2pnode.compute.elsewhere import Elsewhere
from p2pnode.compute.engine_options import EngineOptions
from p2pnode.compute.plan import Plan, Prediction
from p2pnode.compute.planner import Planned, Rejection, Wish, WishedMode, plan
from p2pnode.compute.shape import shape_of
from p2pnode.errors import NoPlan, RequestError
from p2pnode.models.stored import Holdings
from p2pnode.network import FREE_PATHS
from p2pnode.node.active import StagePart
from p2pnode.node.catalog import Catalog, KnownModel
from p2pnode.node.link_times import LinkTime
from p2pnode.node.links import Links
from p2pnode.node.planner_view import emptied, held_by, kept_as, timed
from p2pnode.units import ContentId, PeerId

RATE_ASSUMED_BYTES_PER_S = 8e9
"""Weights a laptop of the last ten years reads per second, until the device itself was measured."""

RATE_OF_LINK_ASSUMED = 30e6
"""Bytes a second of a home network, until the link was timed."""

_WHEN: dict[Elsewhere, str] = {
    "needed": "no plan stands here and this device cannot do it alone (serve.elsewhere is needed)",
    "faster": "no plan stands here and that is clearly sooner (serve.elsewhere is faster)",
    "never": "somebody sets serve.elsewhere to needed or faster",
}
AUTO_MODES = frozenset({"local", "pipeline", "tensor", "hybrid", "streamed"})
"""What this node carries out without being asked by name; llama.cpp's own RPC is for who wants just that."""


class PlanRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `POST /plan` takes."""

    model: str | None = None
    mode: WishedMode = "auto"
    stages: int | None = None
    devices: list[str] | None = None
    apply: bool = False
    strategy: str = "speed"
    why: bool = False
    context: int | None = None
    exclude: list[str] = []
    memory_max: dict[str, int] = {}
    """Bytes of memory each device may use for this plan."""
    pins: dict[str, tuple[int, int]] = {}
    """Layers a device must compute."""
    blocks: list[tuple[str, int, int]] | None = None
    max_rtt_ms: float | None = None
    """Devices of a tensor group may be this far apart."""
    engine: dict[str, str | int | float] | None = None
    """Engine options of the model from now on, when applied; None: as they are."""
    anyway: bool = False
    """Count all memory that devices may give, also what other programs hold now: somebody knows better."""
    what_if: list[str] = []
    """Changes to try, never applied: `+name:RAM,speed,RTT`, `-device`, `context=N`, `quant=Q8_0`."""

    @property
    def insists(self) -> bool:
        """Somebody named devices for a group: distance is then their business, and said in the prediction."""
        return self.mode in ("tensor", "hybrid") and bool(self.devices)


class Planning:
    def __init__(
        self,
        *,
        me: PeerId,
        catalog: Catalog,
        links: Links,
        capability: Callable[[], dict[str, Any]],
        link_times: Mapping[PeerId, LinkTime],
        name: str,
        engine: Callable[[ContentId], EngineOptions] = lambda _: EngineOptions(),
        policy: Callable[[], Policy] = Policy,
        elsewhere: Callable[[], Elsewhere] = lambda: "needed",
        silent_s: Callable[[PeerId], float] = lambda _: 0.0,
    ) -> None:
        self._silent_s = silent_s
        """Of devices that are connected and give no sign of life; 0 for all others."""
        self._elsewhere = elsewhere
        self._me = me
        self._engine = engine
        self._policy = policy
        self._catalog = catalog
        self._links = links
        self._capability = capability
        self._link_times = link_times
        self._name = name
        self.calibration = Calibration()

    def mesh(self, model: KnownModel) -> Mesh:
        """Every reachable member that computes, with what it last said of itself."""
        here = self._catalog.store.holdings(model.content_id) if model.is_local else Holdings((), False)
        own = self._device(self._me, self._name, self._capability(), "active", held=here, model=model)
        devices: dict[str, Device] = {self._me: own}
        links: dict[tuple[str, str], Link] = {}
        for link in self._links.links.values():
            if (
                not link.is_up
                or link.status is None
                or link.connection is None
                or link.status.role == "client"
            ):
                continue
            devices[link.peer_id] = self._device(
                link.peer_id,
                link.name,
                link.status.capability,
                link.status.state,
                lending=str(link.status.extra.get("lending", "")),
                held=held_by(link.status.models, model.content_id),
                model=model,
            )
            timed, stats = self._link_times.get(link.peer_id), link.connection.stats()
            rtt_s, rate = (timed.rtt_s, timed.bytes_per_s) if timed else (stats.rtt_s, RATE_OF_LINK_ASSUMED)
            links[self._me, link.peer_id] = Link(max(rtt_s, 1e-5), max(rate, 1.0))
            rates = dict(link.status.extra.get("link_bytes_per_s", {}))
            for other, rtt_ms in dict(link.status.extra.get("rtt_ms", {})).items():
                told = max(float(rates.get(other, RATE_OF_LINK_ASSUMED)), 1.0)
                links.setdefault((link.peer_id, str(other)), Link(max(float(rtt_ms) / 1000, 1e-5), told))
        return Mesh(devices, links)

    def _believed(self, mesh: Mesh, content_id: str) -> Mesh:
        """Every device as slow or fast as requests have shown it to be."""
        devices = {
            peer: self.calibration.applied(device, content_id) for peer, device in mesh.devices.items()
        }
        return Mesh(devices, mesh.links)

    async def learn(self, made: Plan, model: KnownModel, measured: Measured, position: int) -> Prediction:
        """Believe a device a little more or less after each request; what was to be expected of this one, by now.

        A plan stands longer than what it was made from: devices time their layers again, and every request teaches.
        """
        if not set(made.peers) <= set(self.mesh(model).devices):
            return made.prediction
        request = PlanRequest(model=model.name, context=made.n_ctx)
        wish, shape, mesh = await self._question(request, model)
        if not set(made.peers) <= set(mesh.devices):
            return made.prediction
        now = Builder(wish, shape, mesh).again(made, position)
        self.calibration = self.calibration.updated(now, measured, self.mesh(model).devices)
        return now.prediction

    def _device(
        self,
        peer: str,
        name: str,
        said: Mapping[str, Any],
        state: str,
        *,
        held: Holdings,
        model: KnownModel,
        lending: str = "",
    ) -> Device:
        def number(key: str, otherwise: float) -> float:
            value = said.get(key)
            return float(value) if isinstance(value, int | float) and value >= 0 else otherwise

        guess = [number("decode_bytes_per_s", RATE_ASSUMED_BYTES_PER_S), number("prefill_bytes_per_s", 0.0)]
        rates = said.get("rates", {}).get(model.content_id, [*guess, limits.STEP_OVERHEAD_S])
        return Device(
            peer=peer,
            name=name,
            memory_free_bytes=int(number("memory_free_bytes", 0)),
            memory_total_bytes=int(number("memory_total_bytes", 0)),
            decode_bytes_per_s=float(rates[0]),
            prefill_bytes_per_s=float(rates[1]),
            step_overhead_s=float(rates[2]),
            context_bytes_per_s=float(said.get("context_rates", {}).get(model.content_id, math.inf)),
            disk_free_bytes=int(number("disk_free_bytes", 0)) or None,
            held_layers=frozenset(layer for first, end in held.layers for layer in range(first, end)),
            holds_ends=held.ends,
            is_paused=state != "active",
            silent_s=self._silent_s(PeerId(peer)),
            lending=lending if state != "active" else "",
            on_battery=bool(said.get("on_battery")),
            is_metered=bool(said.get("is_metered")),
            can_rpc=bool(said.get("can_rpc")),
            build=str(said.get("build", ""))[:80],
            version=str(said.get("llama", ""))[:80],
            gpu_memory_free_bytes=int(number("gpu_memory_free_bytes", 0)),
            gpu_layers=int(number("gpu_layers", 0)),
        )

    async def make(self, request: PlanRequest, model: KnownModel) -> Planned:
        """Raises NoPlan with every reason, PlanError, LayerGap."""
        wish, shape, mesh = await self._question(request, model)
        planned = await asyncio.to_thread(plan, wish, shape, mesh)
        if request.mode != "auto" or wish.names_devices:
            return planned
        return replace(planned, rejections=(*planned.rejections, *self._whole_by_others(wish, shape, mesh)))

    async def places(self, model: KnownModel) -> list[PeerId | None]:
        """Who is to answer a request of a model for which nothing stands here: devices whole, None for this one."""
        policy = self._elsewhere()
        if policy == "never" or not model.holders:
            return [None]
        wish, shape, mesh = await self._question(PlanRequest(model=model.name), model)
        if wish.engine:
            return [None]  # others would load it in their own way
        whole, _ = elsewhere.able(wish, shape, mesh, paid=self._paid(mesh))
        own: Plan | None
        try:
            own = (await asyncio.to_thread(plan, self._own(wish, model), shape, mesh)).plan
        except NoPlan:
            try:
                own = (await asyncio.to_thread(plan, wish, shape, mesh)).plan
            except NoPlan:
                own = None
        order = elsewhere.in_order(own, whole, policy)
        return [None if peer is None else PeerId(peer) for peer in order]

    @staticmethod
    def _own(wish: Wish, model: KnownModel) -> Wish:
        """Who has a model whole computes it alone, where it fits."""
        return replace(wish, mode="local") if model.is_complete_here else wish

    def _paid(self, mesh: Mesh) -> set[str]:
        return {
            peer
            for peer in mesh.devices
            if peer != self._me and self._links.path(PeerId(peer)) not in FREE_PATHS
        }

    def _whole_by_others(self, wish: Wish, shape: ModelShape, mesh: Mesh) -> list[Rejection]:
        """What `--why` says of devices that could be asked to answer alone."""
        whole, rejections = elsewhere.able(wish, shape, mesh, paid=self._paid(mesh))
        policy = self._elsewhere()
        for one in whole:
            cost = ", for credit" if one.is_paid else ""
            numbers = {
                "tokens_per_s": round(one.tokens_per_s, 3),
                "first_token_s": round(one.first_token_s, 4),
            }
            reason = f"{one.tokens_per_s:.1f} tokens/s expected{cost}; requests go there when {_WHEN[policy]}"
            rejections.append(Rejection(f"whole by {one.name}", reason, numbers))
        return rejections

    async def _question(self, request: PlanRequest, model: KnownModel) -> tuple[Wish, ModelShape, Mesh]:
        """What is asked, of which model, on which devices."""
        await self._catalog.manifest(model.content_id, name=model.name)
        index, _ = await self._catalog.index(model.content_id, vocabulary=False)
        engine = self.engine_of(request, model)
        engine.check_model(index)
        shape = kept_as(engine, shape_of(index, name=model.name, content_id=model.content_id))
        if request.strategy not in ("speed", "memory"):
            raise RequestError(f"strategy {request.strategy!r} is not speed or memory")
        policy = self._policy()
        wish = Wish(
            head=self._me,
            mode=request.mode,
            n_ctx=request.context or min(engine.context or 2048, shape.context_length),
            engine=engine.text,
            stages=request.stages,
            devices=tuple(request.devices) if request.devices else None,
            strategy="memory" if request.strategy == "memory" else "speed",
            excluded=frozenset(request.exclude),
            memory_max_bytes=dict(request.memory_max),
            pins=dict(request.pins),
            auto_modes=AUTO_MODES,
            blocks=tuple(request.blocks) if request.blocks else None,
            tensor_rtt_max_s=self._rtt_max_s(request),
            battery=policy.battery,
            metered=policy.metered,
            versions=policy.versions,
        )
        mesh = self._believed(self.mesh(model), model.content_id)
        if request.anyway:
            mesh = emptied(mesh)
        if request.insists:
            mesh = timed(mesh)
        if request.what_if:
            if request.apply:
                raise RequestError("a what-if question cannot be applied", hint="ask again without --what-if")
            changes = [what_if.parse(text) for text in request.what_if[: limits.WHAT_IF_CHANGES_MAX]]
            wish, shape, mesh = what_if.apply(changes, wish, shape, mesh)
        return wish, shape, mesh

    def engine_of(self, request: PlanRequest, model: KnownModel) -> EngineOptions:
        """As the request says, else as they stand; RequestError for what is no option."""
        return engine_over(self._engine(model.content_id), request)

    def _rtt_max_s(self, request: PlanRequest) -> float:
        if request.max_rtt_ms is not None:
            return request.max_rtt_ms / 1000
        return math.inf if request.insists else limits.TENSOR_RTT_MAX_S


def engine_over(standing: EngineOptions, request: PlanRequest) -> EngineOptions:
    return standing if request.engine is None else EngineOptions.of({**_lora(standing), **request.engine})


def _lora(standing: EngineOptions) -> dict[str, str]:
    """Adapters stay when other options are chosen; commands of their own take them away."""
    return {name: text for name, text in (("lora", standing.lora), ("control", standing.control)) if text}


def spare_blocks(made: Plan, gone: Collection[str]) -> list[tuple[str, int, int]] | None:
    """The same cuts with spares where devices are gone; None when a spare is missing or a group is concerned."""
    spares = {spare.stage: spare.peer for spare in made.spares if spare.peer not in gone}
    blocks: list[tuple[str, int, int]] = []
    for number, stage in enumerate(made.stages):
        peer = stage.peer if stage.peer not in gone else spares.get(number)
        if peer is None or len(stage.ranks) > 1:
            return None
        blocks.append((peer, stage.layer_first, stage.layer_end))
    return blocks


def parts_of(made: Plan) -> list[StagePart]:
    return [
        StagePart(
            PeerId(stage.peer),
            stage.layer_first,
            stage.layer_end,
            tuple(PeerId(peer) for peer in stage.peers[1:]),
            stage.shares if len(stage.ranks) > 1 else (),
        )
        for stage in made.stages
    ]
