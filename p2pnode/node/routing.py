"""Plans made real, as their head sees them: units loaded, ring attached, probed, and given up when broken."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from p2pnode import limits
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.gguf import ModelIndex
from p2pnode.compute.part import Part, real_layer_count, whole
from p2pnode.compute.route import Feed, LocalRoute, PipelineRoute, Route
from p2pnode.compute.scheduler import Cells
from p2pnode.errors import P2PNodeError, PlanError, StageLost
from p2pnode.facade import SamplingParams
from p2pnode.frame import FrameReader
from p2pnode.node.catalog import Catalog, KnownModel
from p2pnode.node.engines import EngineHost
from p2pnode.node.hosting import RETURN, Hosting, OutboundFrames, StageOrder, slot
from p2pnode.node.links import Links
from p2pnode.node.rpc_tunnel import RpcTunnel
from p2pnode.node.tasks import Tasks
from p2pnode.node.tensor import pair_up
from p2pnode.node.units import UnitOptions, output_part, part_of_stage, unit_spec, wanted_tensors
from p2pnode.transport import messages
from p2pnode.transport.port import Stream
from p2pnode.units import ContentId, PeerId

OUTPUT, FIRST, WHOLE = "output", "first", "whole"
PROBE_SESSION = 2**63
Say = Callable[[dict[str, Any]], None]


@asynccontextmanager
async def first_condition() -> AsyncIterator[None]:
    """Around a task group: the first device's reason, not a group of groups."""
    try:
        yield
    except* P2PNodeError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


@dataclass(frozen=True, slots=True)
class StagePart:
    peer: PeerId
    """The device that has these layers, or leads the group that shares them."""
    layer_first: int
    layer_end: int
    followers: tuple[PeerId, ...] = ()
    shares: tuple[int, ...] = ()
    """Weights of the leader and its followers; empty for one device."""


@dataclass(slots=True)
class Active:
    """A plan that answered its probe."""

    plan_id: str
    model: KnownModel
    mode: str
    stages: list[dict[str, Any]]
    route: Route
    engine: EngineHost
    vocabulary_unit: int
    cells: Cells
    session_tokens: int
    probe_s: float = 0.0
    lost: P2PNodeError | None = None
    on_lost: list[Callable[[P2PNodeError], None]] = field(default_factory=list)
    close: list[Callable[[], Any]] = field(default_factory=list)
    release: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    """What other devices do for this plan beside stages; ended with it."""

    def lose(self, error: P2PNodeError) -> None:
        if self.lost is None:
            self.lost = error
            for tell in self.on_lost:
                tell(error)


def _mode_of(remote: Sequence[StagePart], *, mine_first: bool) -> str:
    if not remote:
        return "local"
    if not any(part.followers for part in remote):
        return "pipeline"
    return "tensor" if len(remote) == 1 and not mine_first else "hybrid"


class Routing:
    """Active plans of this head; one engine process per model holds its own units."""

    def __init__(
        self,
        *,
        me: PeerId,
        my_addresses: Callable[[], Sequence[str]],
        catalog: Catalog,
        links: Links,
        hosting: Hosting,
        tasks: Tasks,
        threads: int,
        new_engine: Callable[[str], EngineHost],
        tunnel: RpcTunnel,
    ) -> None:
        self._me = me
        self._my_addresses = my_addresses
        self._catalog = catalog
        self._links = links
        self._hosting = hosting
        self._tasks = tasks
        self._threads = threads
        self._new_engine = new_engine
        self._tunnel = tunnel
        self._name_of = links.name_of
        self._engines: dict[tuple[ContentId, str], EngineHost] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self.active: dict[str, Active] = {}

    # --- lookups -------------------------------------------------------------------------------------
    def of_model(self, content_id: ContentId, mode: str | None = None) -> Active | None:
        """The newest live plan of a model, plans over several devices before local ones."""
        found = [
            a
            for a in self.active.values()
            if a.model.content_id == content_id and a.lost is None and (mode is None or a.mode == mode)
        ]
        return max(found, key=lambda a: (a.mode != "local", a.plan_id), default=None)

    def _engine(self, model: KnownModel, purpose: str) -> EngineHost:
        key = (model.content_id, purpose)
        if key not in self._engines:
            self._engines[key] = self._new_engine(f"{model.name} ({purpose})")
        return self._engines[key]

    # --- local ---------------------------------------------------------------------------------------
    async def local(self, model: KnownModel, say: Say) -> Active:
        """The whole model on this device, loaded on first use."""
        plan_id = f"local-{model.content_id[-12:]}"
        async with self._locks.setdefault(plan_id, asyncio.Lock()):
            active = self.active.get(plan_id)
            if active is not None and active.lost is None and active.engine.is_up:
                return active
            self.active[plan_id] = active = await self._load_local(plan_id, model, say)
            return active

    async def _load_local(self, plan_id: str, model: KnownModel, say: Say) -> Active:
        index = await self._bring(model, whole, say)
        part = whole(index)
        options = self._options(index)
        engine = self._engine(model, "local")
        spec = unit_spec(
            index,
            self._paths(model),
            part,
            options,
            model_id=self._catalog.model_id(model.content_id),
            is_last=True,
        )
        info = await engine.ensure(WHOLE, spec, lambda f: say({"state": "loading", "progress": f}))
        active = Active(
            plan_id=plan_id,
            model=model,
            mode="local",
            stages=[self._stage_view(self._me, 0, part.layer_end, {"model_bytes": info.model_bytes})],
            route=LocalRoute(engine.client, info.unit_id),
            engine=engine,
            vocabulary_unit=info.unit_id,
            cells=Cells(cells=options.context_tokens, sessions=options.sessions),
            session_tokens=info.session_tokens,
        )
        self._watch_engine(active)
        return active

    async def rpc(self, plan_id: str, model: KnownModel, workers: Sequence[PeerId], say: Say) -> Active:
        """llama.cpp's own RPC: the whole file here, its tensors sent to workers and computed there."""
        async with self._locks.setdefault(plan_id, asyncio.Lock()):
            active = self.active.get(plan_id)
            if active is not None and active.lost is None and active.engine.is_up:
                return active
            path = self._one_file(model, "tensor_rpc")
            index, _, options, _ = await self.brought(model, whole)
            endpoints = [await self._tunnel.open(peer) for peer in workers]
            spec = UnitSpec(
                model_path=path,
                rpc_endpoints=tuple(endpoints),
                gpu_layers=-1,
                split_mode="layer",
                context_tokens=options.context_tokens,
                batch_rows=limits.UNIT_BATCH_ROWS,
                sessions_max=options.sessions,
                threads=options.threads,
                threads_batch=options.threads,
                flash_attention="off",
                load_mode="copy",
            )
            # llama.cpp's RPC client aborts its process when a worker goes, so this engine serves this plan alone.
            engine = self._engines[model.content_id, plan_id] = self._new_engine(f"{model.name} (rpc)")
            info = await engine.ensure(WHOLE, spec, lambda f: say({"state": "loading", "progress": f}))
            stages = [
                self._stage_view(peer, 0, real_layer_count(index), {"role": "rpc"})
                for peer in (self._me, *workers)
            ]
            active = Active(
                plan_id=plan_id,
                model=model,
                mode="tensor_rpc",
                stages=stages,
                route=LocalRoute(engine.client, info.unit_id),
                engine=engine,
                vocabulary_unit=info.unit_id,
                cells=Cells(cells=options.context_tokens, sessions=options.sessions),
                session_tokens=info.session_tokens,
            )
            active.release += [functools.partial(self._tunnel.shut, peer) for peer in workers]
            self._watch_engine(active)
            self.active[plan_id] = active
            return active

    async def streamed(self, model: KnownModel, resident_bytes_max: int, say: Say) -> Active:
        """One device, less memory than the model: layers come from the file as they are needed."""
        plan_id = f"streamed-{model.content_id[-12:]}"
        async with self._locks.setdefault(plan_id, asyncio.Lock()):
            active = self.active.get(plan_id)
            if active is not None and active.lost is None and active.engine.is_up:
                return active
            path = self._one_file(model, "streamed")
            index, _, options, _ = await self.brought(model, whole)
            spec = UnitSpec(
                model_path=path,
                resident_bytes_max=resident_bytes_max,
                context_tokens=options.context_tokens,
                batch_rows=limits.UNIT_BATCH_ROWS,
                sessions_max=options.sessions,
                threads=options.threads,
                threads_batch=options.threads,
                load_mode="mmap",
                repack=False,
            )
            engine = self._engine(model, "streamed")
            info = await engine.ensure(WHOLE, spec, lambda f: say({"state": "loading", "progress": f}))
            active = Active(
                plan_id=plan_id,
                model=model,
                mode="streamed",
                stages=[
                    self._stage_view(
                        self._me, 0, real_layer_count(index), {"resident_bytes_max": resident_bytes_max}
                    )
                ],
                route=LocalRoute(engine.client, info.unit_id),
                engine=engine,
                vocabulary_unit=info.unit_id,
                cells=Cells(cells=options.context_tokens, sessions=options.sessions),
                session_tokens=info.session_tokens,
            )
            self._watch_engine(active)
            self.active[plan_id] = active
            return active

    def _one_file(self, model: KnownModel, mode: str) -> str:
        paths = self._paths(model)
        if not model.is_complete_here or len(paths) != 1:
            raise PlanError(
                f"{mode} needs the whole model in one file on this device",
                hint=f"fetch it with: p2pnode pull {model.name}",
            )
        return str(paths[0])

    async def alone(self, model: KnownModel, say: Say) -> Active:
        """All layers and the output on this device, sampled by the unit that samples for pipelines too.

        A request that lost its ring goes on here with the state of its sampler.
        """
        await self._catalog.manifest(model.content_id, name=model.name)
        index, _ = await self._catalog.index(model.content_id, vocabulary=False)
        parts = [StagePart(self._me, 0, real_layer_count(index))]
        return await self.pipeline(f"alone-{model.content_id[-12:]}", model, parts, say)

    # --- pipelines -----------------------------------------------------------------------------------
    async def pipeline(self, plan_id: str, model: KnownModel, parts: Sequence[StagePart], say: Say) -> Active:
        """Prepare every device side by side, attach the ring, probe it."""
        async with self._locks.setdefault(plan_id, asyncio.Lock()):
            active = self.active.get(plan_id)
            if active is not None and active.lost is None and active.engine.is_up:
                return active
            active = await self._build(plan_id, model, parts, say)
            try:
                await self._probe(active)
            except BaseException:
                await self._end(active)
                raise
            self.active[plan_id] = active
            return active

    async def _build(self, plan_id: str, model: KnownModel, parts: Sequence[StagePart], say: Say) -> Active:
        index = await self._bring(model, output_part, say)
        if [0, *[p.layer_end for p in parts]] != [*[p.layer_first for p in parts], real_layer_count(index)]:
            raise PlanError("the stages do not cover every layer exactly once")
        # A group is led where stages are hosted, also when this head leads it: there is one way to do that.
        mine_first = parts[0].peer == self._me and not parts[0].followers
        remote = list(parts[1:] if mine_first else parts)
        options = self._options(index)
        orders = self._orders(plan_id, model, remote, first_stage=1 if mine_first else 0, options=options)
        views: dict[tuple[int, int], dict[str, Any]] = {}
        async with first_condition(), asyncio.TaskGroup() as group:
            head = group.create_task(
                self._load_head(model, parts[0] if mine_first else None, options, not remote, say)
            )
            for peer, order in orders:
                group.create_task(self._prepare(peer, order, views, say))
        engine, first, output = head.result()
        await self._link_lanes(plan_id, orders, views)
        stages = [views[number] for number in sorted(views)]
        if mine_first:
            info = engine.infos[FIRST]
            extra = {"model_bytes": info.model_bytes + engine.infos[OUTPUT].model_bytes}
            stages.insert(0, self._stage_view(self._me, parts[0].layer_first, parts[0].layer_end, extra))
        send = None
        stream: Stream | None = None
        if remote:
            arrived: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
            finished = asyncio.Event()

            async def take_return(back: Stream) -> None:
                if arrived.done():
                    raise PlanError("this plan's ring is closed already")
                await messages.send_message(back, messages.Answer(data={}))
                arrived.set_result(back)
                await finished.wait()

            self._hosting.returns[plan_id] = take_return
            stream = await self._hosting.attach(remote[0].peer, plan_id, orders[0][1].stage, [])
            send = OutboundFrames(stream).send
        route = PipelineRoute(engine.client, first_unit=first, output_unit=output, send=send)
        active = Active(
            plan_id=plan_id,
            model=model,
            mode=_mode_of(remote, mine_first=mine_first),
            stages=stages,
            route=route,
            engine=engine,
            vocabulary_unit=output,
            cells=Cells(cells=options.context_tokens, sessions=options.sessions),
            session_tokens=min(options.context_tokens, int(model.summary.get("context_length") or 2**31)),
        )
        active.on_lost.append(route.lost)
        if stream is not None:
            active.close += [stream.reset, finished.set, lambda: self._hosting.returns.pop(plan_id, None)]
            self._tasks.spawn(f"ring {plan_id}", self._read_ring(active, route, await arrived))
            self._tasks.spawn(f"trouble {plan_id}", self._hear_trouble(active, stream))
        self._watch_engine(active)
        return active

    def _orders(
        self,
        plan_id: str,
        model: KnownModel,
        remote: Sequence[StagePart],
        *,
        first_stage: int,
        options: UnitOptions,
    ) -> list[tuple[PeerId, StageOrder]]:
        orders: list[tuple[PeerId, StageOrder]] = []
        for number, part in enumerate(remote):
            is_last = number == len(remote) - 1
            following = self._me if is_last else remote[number + 1].peer
            link = self._links.links.get(following)
            where = self._my_addresses() if is_last else link.addresses if link else ()
            for rank, peer in enumerate((part.peer, *part.followers)):
                order = StageOrder(
                    plan_id=plan_id,
                    stage=first_stage + number,
                    model=model.content_id,
                    model_name=model.name,
                    layer_first=part.layer_first,
                    layer_end=part.layer_end,
                    is_last=is_last,
                    context_tokens=options.context_tokens,
                    sessions=options.sessions,
                    head=self._me,
                    next_peer=following,
                    next_stage=RETURN if is_last else first_stage + number + 1,
                    next_addresses=list(where),
                    rank=rank,
                    shares=list(part.shares),
                    followers=list(part.followers) if rank == 0 else [],
                )
                orders.append((peer, order))
        return orders

    async def _prepare(
        self, peer: PeerId, order: StageOrder, views: dict[tuple[int, int], dict[str, Any]], say: Say
    ) -> None:
        name = self._name_of(peer)
        answer = await self._links.call(
            peer,
            "stage.prepare",
            msgspec.to_builtins(order),
            on_progress=lambda data: say({"peer": peer, "name": name, **data}),
            timeout_s=limits.PREPARE_SILENCE_S_MAX,
        )
        view = self._stage_view(peer, order.layer_first, order.layer_end, answer)
        if order.shares:
            view.update(rank=order.rank, shares=order.shares)
        views[order.stage, order.rank] = view

    async def _link_lanes(
        self,
        plan_id: str,
        orders: Sequence[tuple[PeerId, StageOrder]],
        views: dict[tuple[int, int], dict[str, Any]],
    ) -> None:
        """Give every tensor group its lanes; its ranks are asked at once, because both ends must be there."""
        for stage in sorted({order.stage for _, order in orders if order.shares}):
            ranks = [(peer, order) for peer, order in orders if order.stage == stage]
            ports = [views[stage, order.rank].pop("ports") for _, order in ranks]
            ends = pair_up([peer for peer, _ in ranks], ports)
            async with first_condition(), asyncio.TaskGroup() as group:
                for (peer, order), mine in zip(ranks, ends, strict=True):
                    wish = {"plan_id": plan_id, "slot": slot(stage, order.rank), "ends": mine}
                    group.create_task(self._links.call(peer, "stage.link", wish))

    async def _load_head(
        self, model: KnownModel, first: StagePart | None, options: UnitOptions, is_whole: bool, say: Say
    ) -> tuple[EngineHost, int | None, int]:
        """The head's own units: always the output, and the first layers when they are here."""
        model_id = self._catalog.model_id(model.content_id)
        index, _ = await self._catalog.index(model.content_id, vocabulary=True)
        engine = self._engine(model, "head")
        paths = self._paths(model)
        output_spec = unit_spec(index, paths, output_part(index), options, model_id=model_id, is_last=True)
        output = await engine.ensure(OUTPUT, output_spec)
        if first is None:
            await engine.drop(FIRST)
            return engine, None, output.unit_id
        part = part_of_stage(index, first.layer_first, first.layer_end)
        await self._bring(model, lambda _: part, say)
        spec = unit_spec(index, paths, part, options, model_id=model_id, is_last=is_whole)
        info = await engine.ensure(FIRST, spec, lambda f: say({"state": "loading", "progress": f}))
        return engine, info.unit_id, output.unit_id

    async def _read_ring(self, active: Active, route: PipelineRoute, stream: Stream) -> None:
        reader = FrameReader(stream.read_exactly)
        try:
            while True:
                route.arrived(await reader.read())
        except P2PNodeError as error:
            # The way forward usually knows better who is missing: give its word a moment.
            await asyncio.sleep(limits.TROUBLE_GRACE_S)
            await self._lose(active, StageLost(f"the last stage went away: {error.message}"))

    async def _hear_trouble(self, active: Active, stream: Stream) -> None:
        first_remote = next((s["name"] for s in active.stages if s["peer"] != self._me), "the next device")
        try:
            notice = await messages.receive_message(stream)
            reason = (
                notice.message
                if isinstance(notice, messages.Refused)
                else "the first stage left the protocol"
            )
        except P2PNodeError as error:
            reason = f"the way to {first_remote} broke: {error.message}"
        await self._lose(active, StageLost(reason))

    async def _probe(self, active: Active) -> None:
        """One token through every stage: only then is a plan ready."""
        started_s = time.perf_counter()
        async with asyncio.timeout(limits.STAGE_ANSWER_S_MAX):
            await active.route.open(PROBE_SESSION, SamplingParams(temperature=0.0), [])
            try:
                await active.route.feed(Feed(PROBE_SESSION, 0, 0, [0], sample=True))
            finally:
                await active.route.free(PROBE_SESSION)
        active.probe_s = time.perf_counter() - started_s

    # --- shared --------------------------------------------------------------------------------------
    async def _bring(self, model: KnownModel, part_of: Callable[[ModelIndex], Part], say: Say) -> ModelIndex:
        """Fetch what a part on this device needs; returns the index with its vocabulary."""
        await self._catalog.manifest(model.content_id, name=model.name)
        slim, _ = await self._catalog.index(model.content_id, vocabulary=False)
        await self._catalog.fetch(
            model.content_id,
            wanted_tensors(slim, part_of(slim)),
            vocabulary=True,
            on_progress=lambda done, total: say({"state": "fetching", "done": done, "total": total}),
        )
        index, _ = await self._catalog.index(model.content_id, vocabulary=True)
        return index

    async def brought(
        self, model: KnownModel, part_of: Callable[[ModelIndex], Part]
    ) -> tuple[ModelIndex, list[Any], UnitOptions, bytes]:
        """A part on this disk, with what a unit of it is made from."""
        index = await self._bring(model, part_of, lambda _: None)
        return index, self._paths(model), self._options(index), self._catalog.model_id(model.content_id)

    def _paths(self, model: KnownModel) -> list[Any]:
        return list(self._catalog.store.paths(model.content_id))

    def _options(self, index: ModelIndex) -> UnitOptions:
        kv_bytes = 4 * real_layer_count(index) * index.parameter_int("embedding_length", 1024)
        heads, kv_heads = (
            index.parameter_int("attention.head_count", 1),
            index.parameter_int("attention.head_count_kv", 0),
        )
        kv_bytes = kv_bytes * (kv_heads or heads) // max(heads, 1)
        cells = max(
            limits.CONTEXT_TOKENS_MIN,
            min(limits.CONTEXT_TOKENS_MAX, limits.KV_BYTES_DEFAULT // max(kv_bytes, 1)),
        )
        return UnitOptions(cells // 256 * 256, limits.SESSIONS_ACTIVE_MAX, self._threads)

    def _stage_view(self, peer: PeerId, first: int, end: int, extra: dict[str, Any]) -> dict[str, Any]:
        return {
            "peer": peer,
            "name": self._name_of(peer),
            "layers": [first, end],
            **{k: v for k, v in extra.items() if k != "layers"},
        }

    def _watch_engine(self, active: Active) -> None:
        def died(reason: str) -> None:
            active.lose(StageLost(f"the engine on {self._name_of(self._me)} died ({reason})"))
            active.engine.listeners.remove(died)

        active.engine.listeners.append(died)

    async def _lose(self, active: Active, error: P2PNodeError) -> None:
        active.lose(error)
        await self._end(active)

    async def _end(self, active: Active) -> None:
        for close in active.close:
            close()
        active.close.clear()

    def lose_peer(self, peer: PeerId, reason: str) -> None:
        """A device wants out: plans on it end now, and what runs on them moves while it still answers."""
        for active in list(self.active.values()):
            if (
                active.lost is None
                and active.mode != "local"
                and any(s["peer"] == peer for s in active.stages)
            ):
                active.lose(StageLost(reason, peer=peer))

    async def give_up(self, active: Active, error: P2PNodeError) -> None:
        """A ring that lost a stage: its streams end, its other devices may keep what they loaded."""
        await self._lose(active, error)
        if self.active.get(active.plan_id) is active:
            del self.active[active.plan_id]

    async def release(self, plan_id: str, *, reason: str) -> None:
        """Give a plan up and tell its devices."""
        active = self.active.pop(plan_id, None)
        if active is None:
            return
        await self._lose(active, StageLost(f"the plan was ended: {reason}"))
        for stage in active.stages:
            if active.mode != "local":
                try:
                    await self._links.call(stage["peer"], "stage.release", {"plan_id": plan_id})
                except P2PNodeError:
                    continue  # it is gone, and with it what it held
        if not any(other.engine is active.engine for other in self.active.values()):
            self._engines = {
                key: engine for key, engine in self._engines.items() if engine is not active.engine
            }
            await active.engine.close()
        for undo in active.release:
            await undo()

    async def close(self) -> None:
        for active in self.active.values():
            await self._lose(active, StageLost("this device is stopping"))
        for engine in self._engines.values():
            await engine.close()
