"""Which plan a request runs on, plans carried out, and where a request goes on that lost its devices."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from p2pnode import commands as c
from p2pnode import limits
from p2pnode.compute import rates
from p2pnode.compute.calibration import Measured, comparison
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_options import EngineOptions
from p2pnode.compute.plan import Plan, Spare
from p2pnode.errors import EngineUnavailable, NoPlan, P2PNodeError, StageLost
from p2pnode.events import types as facts
from p2pnode.facade import GenerateRequest
from p2pnode.node.active import Active
from p2pnode.node.catalog import Catalog, KnownModel
from p2pnode.node.keyed_locks import KeyedLocks
from p2pnode.node.layer_rates import RATES_DOUBT
from p2pnode.node.ledger import Ledger
from p2pnode.node.links import Links
from p2pnode.node.loading import Loads
from p2pnode.node.orders import HoldOrder
from p2pnode.node.planning import Planning, PlanRequest, parts_of, spare_blocks
from p2pnode.node.requests import SURVIVABLE
from p2pnode.node.routing import Routing
from p2pnode.node.running import Running
from p2pnode.node.tasks import Tasks
from p2pnode.units import ContentId, PeerId

T = TypeVar("T")


class Choosing:
    def __init__(
        self,
        *,
        me: PeerId,
        ledger: Ledger,
        catalog: Catalog,
        links: Links,
        planning: Planning,
        routing: Routing,
        tasks: Tasks,
        memory_max_bytes: int | None,
        loads: Loads,
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        self._me = me
        self._ledger = ledger
        self._catalog = catalog
        self._links = links
        self._planning = planning
        self._routing = routing
        self._tasks = tasks
        self._memory_max_bytes = memory_max_bytes
        self._loads = loads
        self._say = say
        self._made: dict[str, Plan] = {}
        """Predictions of the newest plans, to be held against what is measured."""
        self._proposing: KeyedLocks[str] = KeyedLocks()
        self._at_work: Counter[ContentId] = Counter()
        self._adapted: dict[ContentId, tuple[Plan, float]] = {}
        """Plans that nobody applied, ended since adapters change, and when: what they loaded waits a moment."""
        self.applied: dict[ContentId, tuple[Plan, PlanRequest]] = {}
        """Plans somebody applied: carried out again after a loss, on the same devices while they are there."""

    def stands(self, model: KnownModel) -> bool:
        """Whether a plan of this device for a model stands, or shall stand."""
        return self._routing.of_model(model.content_id) is not None or model.content_id in self.applied

    def may_be_spread(self, model: KnownModel) -> bool:
        """Whether requests for a model could run elsewhere than on this device alone."""
        active = self._routing.of_model(model.content_id)
        is_spread = active is not None and active.mode != "local"
        return is_spread or model.content_id in self.applied or not model.is_complete_here

    async def choose(self, request: GenerateRequest) -> Active:
        """The plan a request runs on: the one applied for its model, else this device alone, else a new plan."""
        model = self._catalog.resolve(request.model)
        if request.mode == "local":
            return await self._locally(model)
        applied = self.applied.get(model.content_id)
        active = self._routing.of_model(model.content_id, None if request.mode == "auto" else request.mode)
        if active is not None and (active.mode != "local" or applied is None):
            return active
        if applied is not None:
            try:
                return await self._carry_out_again(model, *applied)
            except P2PNodeError as error:
                if not model.is_complete_here:
                    raise StageLost(
                        f"the plan for {model.name} cannot be carried out: {error.message}"
                    ) from error
                self._say({"kind": "fallback", "data": {"model": model.name, "reason": error.message}})
                return await self._locally(model)
        adapted = self._adapted.get(model.content_id)
        if adapted is not None and request.mode in ("auto", adapted[0].mode):
            try:
                if time.monotonic() < adapted[1] + limits.ADAPTED_KEPT_S:
                    return await self._carry_out_again(model, adapted[0], PlanRequest(model=model.name))
            except P2PNodeError:
                pass  # then a new plan
            finally:
                if self._adapted.get(model.content_id) is adapted:
                    del self._adapted[model.content_id]
        if request.mode == "auto" and model.is_complete_here:
            if self._routing.keeps(model.content_id):
                return await self._locally(model)  # it fits: it is loaded
            return await self._locally_if_it_fits(model)
        return await self.activate(model, PlanRequest(model=model.name, mode=request.mode))

    async def with_vocabulary(self, model: str, work: Callable[[EngineClient, int], Awaitable[T]]) -> T:
        """What an engine does with the vocabulary of a model; once more when it died since the last request."""
        request = GenerateRequest(model=model, prompt="")
        active = await self.choose(request)
        try:
            return await work(active.engine.client, active.vocabulary_unit)
        except EngineUnavailable:
            active = await self.choose(request)
            return await work(active.engine.client, active.vocabulary_unit)

    async def with_others(self, model: KnownModel) -> Active | None:
        """A plan for a model that has no room on this device alone; None where it has, or where nothing would fit."""
        try:
            await self._planning.make(PlanRequest(model=model.name, mode="local"), model)
        except NoPlan:
            with contextlib.suppress(NoPlan):
                return await self.activate(model, PlanRequest(model=model.name))
        return None

    async def _locally_if_it_fits(self, model: KnownModel) -> Active:
        """Alone where there is memory for it, else with others; alone all the same where nothing would fit."""
        made: Plan | None = None
        try:
            made = (await self._planning.make(PlanRequest(model=model.name, mode="local"), model)).plan
        except NoPlan:
            with contextlib.suppress(NoPlan):
                return await self.activate(model, PlanRequest(model=model.name))
        active = await self._locally(model)
        if made is not None:
            self._remember(active.plan_id, made)
        return active

    async def _locally(self, model: KnownModel) -> Active:
        async def load() -> Active:
            with self._loads.of(model.name) as say:
                return await self._routing.local(model, say)

        return await self._for_all(f"load {model.name}", load())

    async def _for_all(self, what: str, work: Coroutine[Any, Any, Active]) -> Active:
        """A model goes on loading when the request that began it goes away: the next one finds it further."""
        return await asyncio.shield(self._tasks.spawn(what, work))

    async def choose_again(self, running: Running, error: P2PNodeError) -> Active:
        """Where a running request goes on."""
        return await self.instead_of(running.active, error, running.request_id)

    async def instead_of(self, lost: Active, error: P2PNodeError, request_id: str) -> Active:
        """Another plan, without the devices that do not answer now, here alone if that is best."""
        self._routing.give_up(lost, error)
        active = await self._another(lost, error, request_id)
        if active.plan_id != lost.plan_id:
            # What the devices that are left had loaded for the old plan serves nobody now.
            self._tasks.spawn("release", self._routing.release_left(lost.plan_id))
        return active

    async def _another(self, lost: Active, error: P2PNodeError, request_id: str) -> Active:
        """A device may go while the next plan is being built on it: then once more, without it."""
        for left in range(limits.REPLAN_TRIES_MAX - 1, -1, -1):
            gone = await self._silent(lost)
            data = {"request_id": request_id, "reason": error.message, "gone": gone}
            self._say({"kind": "stage_lost", "data": data})
            try:
                return await self._instead(lost.model, lost, gone)
            except SURVIVABLE as again:
                if not left:
                    raise
                error = again
        raise AssertionError("the last try returns or raises")

    async def _instead(self, model: KnownModel, before: Active, gone: list[str]) -> Active:
        if before.plan_id.startswith("local-"):
            return await self._locally(model)
        await self._routing.settled(model.content_id)
        other = self._routing.of_model(model.content_id)
        if other is not None and other.mode != "local" and not {s["peer"] for s in other.stages} & set(gone):
            return other  # it stands already, and building another could take its layers
        if model.content_id in self.applied and not {s["peer"] for s in before.stages} & set(gone):
            with contextlib.suppress(P2PNodeError):
                return await self._carry_out_again(model, *self.applied[model.content_id])
        made = await self._plan_without(model, self._made.get(before.plan_id), gone)
        if made.mode == "local":
            with self._loads.of(model.name) as say:
                return await self._routing.alone(model, say)
        return await self.carry_out(model, made)

    async def _plan_without(self, model: KnownModel, before: Plan | None, gone: list[str]) -> Plan:
        """The spares that the plan named, if they can; else whatever is best now."""
        blocks = spare_blocks(before, gone) if before is not None and gone else None
        gone = [peer for peer in gone if self._is_up(peer)]  # the planner knows of no others
        if blocks is not None:
            with contextlib.suppress(P2PNodeError):
                wish = PlanRequest(model=model.name, exclude=gone, blocks=blocks)
                return (await self._planning.make(wish, model)).plan
        return (await self._planning.make(PlanRequest(model=model.name, exclude=gone), model)).plan

    def _is_up(self, peer: str) -> bool:
        link = self._links.links.get(PeerId(peer))
        return link is not None and link.is_up

    async def _silent(self, active: Active) -> list[str]:
        """Devices of a plan, and others that could take over, that do not answer a ping now.

        Nobody notices at once when a device goes that serves no plan, and it must not be planned with.
        """

        async def answers(peer: str) -> bool:
            link = self._links.links.get(PeerId(peer))
            if peer == self._me:
                return True
            if link is None or link.connection is None or not link.is_up:
                return False
            if link.status is not None and link.status.state != "active":
                return False
            try:
                is_needed = peer in planned
                await link.connection.ping(
                    timeout_s=limits.SILENCE_PING_S if is_needed else limits.SPARE_PING_S
                )
            except (P2PNodeError, TimeoutError):
                return False
            return True

        others = {peer for peer, link in self._links.links.items() if link.is_up}
        planned = {str(stage["peer"]) for stage in active.stages}
        peers = sorted(planned | others)
        found = await asyncio.gather(*(answers(peer) for peer in peers))
        return [peer for peer, is_there in zip(peers, found, strict=True) if not is_there]

    async def _carry_out_again(self, model: KnownModel, made: Plan, request: PlanRequest) -> Active:
        up = {link.peer_id for link in self._links.links.values() if link.is_up} | {self._me}
        wanted = self._planning.engine_of(request, model)
        if (
            not set(made.peers) <= up
            or EngineOptions.parse(made.engine).without_adapters != wanted.without_adapters
        ):
            return await self.activate(model, request)
        again = made.with_engine(wanted.text)  # where adapters changed its devices still have the weights
        if self.applied.get(model.content_id) == (made, request):
            self.applied[model.content_id] = (again, request)
        return await self.carry_out(model, again)

    async def renew(self, content_id: ContentId, reason: str, keep: bool) -> None:
        """End the plans of a model since its engine options change.

        With `keep` only adapters do: then what the same plan loads next is loaded already.
        """
        standing = self._routing.of_model(content_id)
        made = self._made.get(standing.plan_id) if standing is not None else None
        self._adapted.pop(content_id, None)
        if keep and made is not None and made.mode != "local" and content_id not in self.applied:
            self._adapted[content_id] = (made, time.monotonic())
        await self._routing.release_model(content_id, reason, keep)

    def is_at_work(self, content_id: ContentId) -> bool:
        """Whether a plan of a model is being carried out now."""
        return self._at_work.get(content_id, 0) > 0

    async def carry_out_applied(self, model: KnownModel) -> Active:
        """The plan somebody applied, as it was where its devices are there."""
        return await self._carry_out_again(model, *self.applied[model.content_id])

    async def activate(self, model: KnownModel, request: PlanRequest) -> Active:
        """Plan and carry out."""
        made = (await self._planning.make(request, model)).plan
        active = await self.carry_out(model, made)
        if model.content_id in self.applied:
            self.applied[model.content_id] = (made, request)
        return active

    async def apply(self, model: KnownModel, made: Plan, request: PlanRequest) -> Active:
        """Carry out a plan that somebody wants to stand; what runs on the one before moves to it."""
        before = self.applied.get(model.content_id)
        self.applied[model.content_id] = (made, request)
        try:
            return await self.carry_out(model, made)
        except BaseException:
            if self.applied.get(model.content_id) == (made, request):
                del self.applied[model.content_id]
                if before is not None:
                    self.applied[model.content_id] = before
            raise

    async def carry_out(self, model: KnownModel, made: Plan) -> Active:
        """Record a plan, prepare its devices, probe it; what failed is said to whoever watches."""
        self._at_work[model.content_id] += 1
        try:
            if made.mode == "local":
                return await self._locally(model)
            return await self._for_all(f"carry out {made.plan_id}", self._carry_out(model, made))
        finally:
            self._at_work[model.content_id] -= 1

    async def _carry_out(self, model: KnownModel, made: Plan) -> Active:
        started_s = time.monotonic()
        await self._propose(made, model)
        self._remember(made.plan_id, made)
        try:
            active = await self._build(model, made)
        except P2PNodeError as error:
            self._say({"kind": "plan_failed", "data": {"plan_id": made.plan_id, "reason": error.message}})
            raise
        plan = self._ledger.state.plans.plans.get(made.plan_id)
        if plan is None or plan.state == "proposed":
            await self._ledger.do(
                c.ActivatePlan(plan_id=made.plan_id, duration_ms=int((time.monotonic() - started_s) * 1000))
            )
        self._links.status_changed()
        for spare in made.spares:
            self._tasks.spawn(f"spare of {made.plan_id}", self._keep_warm(model, made, spare))
        return active

    async def _keep_warm(self, model: KnownModel, made: Plan, spare: Spare) -> None:
        """A spare holds the layers it may take over, so that an answer waits for loading and not for a download."""
        stage = made.stages[spare.stage]
        order = HoldOrder(
            model=model.content_id,
            model_name=model.name,
            layer_first=stage.layer_first,
            layer_end=stage.layer_end,
        )
        with contextlib.suppress(
            P2PNodeError
        ):  # it has no room, or went: another one is asked when it matters
            await self._links.call(
                PeerId(spare.peer),
                "stage.hold",
                msgspec.to_builtins(order),
                timeout_s=limits.PREPARE_SILENCE_S_MAX,
            )

    async def _build(self, model: KnownModel, made: Plan) -> Active:
        with self._loads.of(model.name) as say:
            if made.mode == "streamed":
                return await self._routing.streamed(model, self._resident_bytes(model), say)
            if made.mode == "tensor_rpc":
                workers = [PeerId(peer) for peer in made.peers if peer != self._me]
                return await self._routing.rpc(made.plan_id, model, workers, say)
            if made.mode == "disaggregated":
                return await self._routing.split(made.plan_id, model, parts_of(made), say)
            return await self._routing.pipeline(made.plan_id, model, parts_of(made), say)

    def _resident_bytes(self, model: KnownModel) -> int:
        """What `--memory-max` leaves, or half of the model where nothing was said."""
        half = int(model.summary.get("size_bytes") or 0) // 2
        return min(self._memory_max_bytes or half, half)

    async def _propose(self, made: Plan, model: KnownModel) -> None:
        """Once, whoever carries it out at the same time."""
        async with self._proposing.hold(made.plan_id):
            if made.plan_id in self._ledger.state.plans.plans:
                return
            await self._ledger.do(
                c.ProposePlan(
                    plan=facts.PlanProposed(
                        plan_id=made.plan_id,
                        model=model.content_id,
                        mode=made.mode,
                        stages=tuple(
                            (stage.peer, stage.layer_first, stage.layer_end) for stage in made.stages
                        ),
                        tokens_per_s_milli=int(made.prediction.tokens_per_s * 1000),
                        why="; ".join(made.reasons)[:500],
                    )
                )
            )

    def _remember(self, plan_id: str, made: Plan) -> None:
        self._made[plan_id] = made
        while len(self._made) > limits.PLANS_KEPT_MAX:
            del self._made[next(iter(self._made))]

    async def learn(self, running: Running) -> None:
        """Prediction beside measurement, for whoever watches: the next plan believes what this request showed."""
        session, count = running.session, len(running.session.generated)
        if running.recoveries or count < 2 or (made := await self._made_for(running.active)) is None:
            return
        measured = Measured(session.prefill_s, session.decode_s / (count - 1), count)
        now = await self._planning.learn(
            made, running.active.model, measured, len(session.prompt) + count // 2
        )
        data = {"request_id": running.request_id, "plan_id": running.active.plan_id}
        self._say({"kind": "prediction", "data": {**data, **comparison(made, measured, now)}})
        if count >= limits.CALIBRATION_TOKENS_MIN and rates.differs(now.decode_s, measured.decode_s):
            await self._doubt(made)

    async def _made_for(self, active: Active) -> Plan | None:
        """The plan behind what serves; a model that was loaded without one is as if planned for this device alone."""
        if active.plan_id not in self._made and active.mode == "local":
            with contextlib.suppress(P2PNodeError):
                request = PlanRequest(model=active.model.name, mode="local", anyway=True)
                self._remember(active.plan_id, (await self._planning.make(request, active.model)).plan)
        return self._made.get(active.plan_id)

    async def _doubt(self, made: Plan) -> None:
        """Have the devices of a plan time their layers again, each when it has time for that."""

        async def ask(peer: str) -> None:
            with contextlib.suppress(P2PNodeError):  # of a version that knows no doubts, or gone
                await self._links.call(PeerId(peer), RATES_DOUBT, {"model": made.content_id})

        await asyncio.gather(*(ask(peer) for peer in made.peers))
