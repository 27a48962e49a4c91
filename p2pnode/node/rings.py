"""Rings of stages as their head builds them: prepared side by side, attached in a circle, probed, listened to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from p2pnode import limits
from p2pnode.compute.care import Policy
from p2pnode.compute.engine_version import engine_version
from p2pnode.compute.part import Part, real_layer_count
from p2pnode.compute.pipeline_route import PipelineRoute
from p2pnode.compute.route import Feed
from p2pnode.compute.scheduler import Cells
from p2pnode.errors import (
    CreditEnded,
    NotFound,
    P2PNodeError,
    PlanError,
    ReceiptOwed,
    StageLost,
)
from p2pnode.facade import SamplingParams
from p2pnode.node.active import Active, Announce, Say, StagePart, first_condition, mode_of, stage_view
from p2pnode.node.bringing import Bringing
from p2pnode.node.catalog import KnownModel
from p2pnode.node.engines import EngineHost, EnginePool
from p2pnode.node.grants import OPEN, Announcement
from p2pnode.node.links import Links
from p2pnode.node.orders import (
    PROBE_SESSION,
    RETURN,
    Orders,
    OutboundFrames,
    StageOrder,
    Views,
    check_versions,
)
from p2pnode.node.ring_lanes import RingLanes, close_ring
from p2pnode.node.ring_streams import RingEnds, attach_ring, hear_trouble, read_ring
from p2pnode.node.stage_streams import StageStreams
from p2pnode.node.tasks import Tasks
from p2pnode.node.units import UnitOptions, output_part, part_of_stage, unit_spec
from p2pnode.node.watched_calls import WatchedCalls
from p2pnode.units import PeerId

OUTPUT, FIRST = "output", "first"


@dataclass(frozen=True, slots=True)
class _Own:
    """The head's own layers, at the ends of the ring."""

    first: StagePart | None
    last: StagePart | None
    """In the unit that samples; only where other devices come between."""

    @classmethod
    def of(cls, me: PeerId, parts: Sequence[StagePart]) -> _Own:
        ends = (parts[0], parts[-1])
        first, last = (part if part.peer == me and not part.followers else None for part in ends)
        return cls(first, last if len(parts) > (1 if first is None else 2) else None)

    @property
    def parts(self) -> list[StagePart]:
        return [part for part in (self.first, self.last) if part is not None]


class Rings:
    def __init__(
        self,
        *,
        me: PeerId,
        my_addresses: Callable[[], Sequence[str]],
        links: Links,
        streams: StageStreams,
        tasks: Tasks,
        bringing: Bringing,
        engines: EnginePool,
        make_up: Callable[[PeerId], Awaitable[None]],
        policy: Callable[[], Policy] = Policy,
    ) -> None:
        self._policy = policy
        self._me = me
        self._make_up = make_up
        self._my_addresses = my_addresses
        self._links = links
        self._streams = streams
        self._tasks = tasks
        self._bringing = bringing
        self._engines = engines
        self._name_of = links.name_of
        self._calls = WatchedCalls(links)
        self._lanes = RingLanes(links, self._calls)

    async def build(self, plan_id: str, model: KnownModel, parts: Sequence[StagePart], say: Say) -> Active:
        """A ring that answered its probe; after a failure no device keeps what it prepared."""
        index = await self._bringing.bring(model, output_part, say)
        if [0, *[p.layer_end for p in parts]] != [*[p.layer_first for p in parts], real_layer_count(index)]:
            raise PlanError("the stages do not cover every layer exactly once")
        # A group is led where stages are hosted, also when this head leads it: there is one way to do that.
        mine = _Own.of(self._me, parts)
        remote = [part for part in parts if part not in (mine.first, mine.last)]
        options = self._bringing.options(model, index)
        table = await self._shard_table(model, remote)
        orders = self._orders(plan_id, model, remote, mine, options=options, table=table)
        try:
            active = await self._stand_up(plan_id, model, mine, remote, orders, options, say)
            active.prefixes = prefixes = self._bringing.prefixes(index, active.route, options)
            if prefixes is not None:
                # This head's own unit may serve the next plan; nobody there would know of these.
                active.close.append(lambda: self._tasks.spawn("forget prefixes", prefixes.clear()))
            try:
                await self._probe(active)
            except BaseException as error:
                active.end(StageLost(f"the plan did not answer its probe: {error}"))
                raise
        except BaseException:
            await self.release(plan_id, {peer for peer, _ in orders})
            raise
        return active

    async def _stand_up(
        self,
        plan_id: str,
        model: KnownModel,
        mine: _Own,
        remote: Sequence[StagePart],
        orders: Orders,
        options: UnitOptions,
        say: Say,
    ) -> Active:
        views: Views = {}
        async with first_condition(), asyncio.TaskGroup() as group:
            head = group.create_task(self._load_head(model, mine, options, not remote, say))
            for peer, order in orders:
                group.create_task(self._prepare(peer, order, views, say))
        engine, first, output = head.result()
        await self._lanes.link_groups(plan_id, orders, views)
        stages = [views[number] for number in sorted(views)]
        for part, at in ((mine.first, 0), (mine.last, len(stages) + 1)):
            if part is not None:
                # What samples is counted with its own layers, or with the first ones where it has none.
                units = [OUTPUT] if part is mine.last else [FIRST] if mine.last else [FIRST, OUTPUT]
                extra = {"model_bytes": sum(engine.infos[name].model_bytes for name in units)}
                stages.insert(at, self._view(self._me, part.layer_first, part.layer_end, extra))
        client = engine.client
        peers = {peer for peer, _ in orders}
        stage_count = len(remote) + len(mine.parts)
        ring: RingEnds | None = None
        if remote:
            first_stage = orders[0][1].stage
            ring = await attach_ring(self._streams, plan_id, remote[0].peer, remote[-1].peer, first_stage)
        ring_number = await self._lanes.open_ring(plan_id, orders, views, client, first, output, stage_count)
        route = PipelineRoute(
            client,
            first_unit=first,
            output_unit=output,
            send=OutboundFrames(ring.forward).send if ring else None,
            stages=stage_count,
            output_has_layers=mine.last is not None,
            ask=lambda: self._calls.ask_all(peers),
            ring=ring_number,
        )
        active = Active(
            plan_id=plan_id,
            model=model,
            mode=mode_of(remote, has_own=bool(mine.parts)),
            stages=stages,
            route=route,
            units=(output,) if first is None else (first, output),
            engine=engine,
            vocabulary_unit=output,
            cells=Cells(cells=options.context_tokens, sessions=options.sessions),
            session_tokens=min(
                options.context_tokens,
                options.engine.stretched(int(model.summary.get("context_length") or 2**31)),
            ),
            options=options.engine.text,
        )
        active.announce = self._announcing(plan_id, peers)
        active.on_lost.append(route.lost)
        if ring_number is not None:
            active.close.append(lambda: self._tasks.spawn("close ring", close_ring(client, ring_number)))
        if ring is not None:
            active.close.append(ring.end)
            self._tasks.spawn(f"ring {plan_id}", read_ring(active, route, ring.back))
            self._tasks.spawn(f"trouble {plan_id}", hear_trouble(active, ring.forward, self._me))
        active.follow_engine(self._name_of(self._me))
        return active

    async def _shard_table(self, model: KnownModel, remote: Sequence[StagePart]) -> str:
        """What ranks without the whole model verify their tiles by; hashed once, when the first one asks for it."""
        ranks = {peer for part in remote if part.shares for peer in (part.peer, *part.followers)}
        return await self._bringing.shard_table(model) if ranks - {self._me, *model.holders} else ""

    # --- preparing -----------------------------------------------------------------------------------
    def _orders(
        self,
        plan_id: str,
        model: KnownModel,
        remote: Sequence[StagePart],
        mine: _Own,
        *,
        options: UnitOptions,
        table: str,
    ) -> Orders:
        orders: Orders = []
        first_stage = 0 if mine.first is None else 1
        for number, part in enumerate(remote):
            is_last = number == len(remote) - 1
            following = self._me if is_last else remote[number + 1].peer
            before = remote[number - 1].peer if number else self._me
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
                    is_last=is_last and mine.last is None,
                    context_tokens=options.context_tokens,
                    sessions=options.sessions,
                    prefix_bytes=options.prefix_bytes,
                    engine=options.engine.text,
                    head=self._me,
                    previous_peer=before if rank == 0 else part.peer,
                    next_peer=following,
                    next_stage=RETURN if is_last else first_stage + number + 1,
                    next_addresses=list(where),
                    rank=rank,
                    shares=list(part.shares),
                    shard_table=table if part.shares else "",
                    followers=list(part.followers) if rank == 0 else [],
                    llama=engine_version(),
                    any_llama=self._policy().versions == "any",
                )
                orders.append((peer, order))
        return orders

    async def _prepare(self, peer: PeerId, order: StageOrder, views: Views, say: Say) -> None:
        name = self._name_of(peer)
        answer = await self._links.call(
            peer,
            "stage.prepare",
            msgspec.to_builtins(order),
            on_progress=lambda data: say({"peer": peer, "name": name, **data}),
            timeout_s=limits.PREPARE_SILENCE_S_MAX,
        )
        if answer.pop("engine", "") != order.engine:
            raise PlanError(f"{name} runs an older version, which cannot load a model with {order.engine}")
        check_versions(order, str(answer.pop("llama", "")), name)
        view = self._view(peer, order.layer_first, order.layer_end, answer)
        if order.shares:
            view.update(rank=order.rank, shares=order.shares)
        views[order.stage, order.rank] = view

    async def _load_head(
        self, model: KnownModel, mine: _Own, options: UnitOptions, is_whole: bool, say: Say
    ) -> tuple[EngineHost, int | None, int]:
        """The head's own units: the output with the last layers if they are here, and the first layers if those are."""
        bringing = self._bringing
        index, model_id = await bringing.full_index(model), bringing.model_id(model)
        engine, paths = self._engines.of(model, "head"), bringing.paths(model)
        own, part = output_part(index), None
        if mine.last is not None:
            own = Part(mine.last.layer_first, mine.last.layer_end, output=True)
            await bringing.bring(model, lambda _: own, say)
        if mine.first is not None:
            part = part_of_stage(index, mine.first.layer_first, mine.first.layer_end)
            await bringing.bring(model, lambda _: part, say)
        spec = unit_spec(index, paths, own, options, model_id=model_id, is_last=True)

        def progress(fraction: float) -> None:
            say({"state": "loading", "progress": fraction})

        spec = await bringing.adapted(model, index, own, options, spec)
        output = await engine.ensure(OUTPUT, spec, progress)
        if part is None:
            await engine.drop(FIRST)
            return engine, None, output.unit_id
        spec = unit_spec(index, paths, part, options, model_id=model_id, is_last=is_whole)
        spec = await bringing.adapted(model, index, part, options, spec)
        info = await engine.ensure(FIRST, spec, progress)
        return engine, info.unit_id, output.unit_id

    def _view(self, peer: PeerId, first: int, end: int, extra: dict[str, Any]) -> dict[str, Any]:
        return stage_view(self._name_of(peer), peer, first, end, extra)

    # --- the circle ----------------------------------------------------------------------------------
    async def _probe(self, active: Active) -> None:
        """One token through every stage: only then is a plan ready."""
        started_s = time.perf_counter()
        try:
            async with asyncio.timeout(limits.STAGE_ANSWER_S_MAX):
                await active.route.open(PROBE_SESSION, SamplingParams(temperature=0.0), [])
                try:
                    await active.route.feed(Feed(PROBE_SESSION, 0, 0, [0], sample=True))
                finally:
                    await active.route.free(PROBE_SESSION)
        except TimeoutError:
            raise StageLost("the plan did not answer its probe in time") from None
        active.probe_s = time.perf_counter() - started_s

    def _announcing(self, plan_id: str, peers: set[PeerId]) -> Announce | None:
        """All devices of a ring are told at once, before its first frame."""

        async def announce(request_id: str, session: int, prompt_tokens: int, trace: str) -> int:
            asked = msgspec.to_builtins(Announcement(plan_id, session, request_id, prompt_tokens, trace))
            async with first_condition(), asyncio.TaskGroup() as group:
                told = [group.create_task(self._announce_to(peer, asked)) for peer in sorted(peers)]
            return min(task.result() for task in told)

        return announce if peers else None

    async def _announce_to(self, peer: PeerId, asked: dict[str, Any]) -> int:
        try:
            try:
                answer = await self._calls.call(peer, OPEN, asked)
            except ReceiptOwed:
                await self._make_up(peer)
                answer = await self._calls.call(peer, OPEN, asked)
            return int(answer.get("positions", 0))
        except (NotFound, CreditEnded) as error:
            raise StageLost(
                f"{self._name_of(peer)} does not work for this device: {error.message}", peer=peer
            ) from None

    # --- ending --------------------------------------------------------------------------------------
    async def release(self, plan_id: str, peers: set[PeerId], *, keep: bool = False) -> None:
        """Devices give back what they hold for a plan; those that do not answer have nothing to give.

        With `keep` the weights stay loaded for a moment, for a plan that differs in adapters alone.
        """
        wish = {"plan_id": plan_id, **({"keep": True} if keep else {})}
        await asyncio.gather(*(self._release_one(wish, peer) for peer in sorted(peers)))

    async def _release_one(self, wish: dict[str, Any], peer: PeerId) -> None:
        try:
            await self._links.call(peer, "stage.release", wish, timeout_s=limits.GOODBYE_S_MAX)
        except P2PNodeError:
            return  # it is gone, and with it what it held
