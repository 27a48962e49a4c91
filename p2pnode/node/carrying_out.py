"""A plan carried out: recorded, its devices prepared, probed, its spares warmed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from p2pnode import commands as c
from p2pnode import limits
from p2pnode.compute.plan import Plan, Spare
from p2pnode.errors import P2PNodeError
from p2pnode.events import types as facts
from p2pnode.facade import JsonObject
from p2pnode.node.active import Active
from p2pnode.node.catalog import KnownModel
from p2pnode.node.keyed_locks import KeyedLocks
from p2pnode.node.ledger import Ledger
from p2pnode.node.links import Links
from p2pnode.node.loading import Loads
from p2pnode.node.orders import HoldOrder
from p2pnode.node.planning import parts_of
from p2pnode.node.routing import Routing
from p2pnode.node.tasks import Tasks
from p2pnode.units import ContentId, PeerId


class CarryingOut:
    def __init__(
        self,
        *,
        me: PeerId,
        ledger: Ledger,
        links: Links,
        routing: Routing,
        tasks: Tasks,
        memory_max_bytes: int | None,
        loads: Loads,
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        self._me = me
        self._ledger = ledger
        self._links = links
        self._routing = routing
        self._tasks = tasks
        self._memory_max_bytes = memory_max_bytes
        self._loads = loads
        self._say = say
        self._made: dict[str, Plan] = {}
        """The newest plans, whose predictions are held against what is measured."""
        self._proposing: KeyedLocks[str] = KeyedLocks()
        self._at_work: Counter[ContentId] = Counter()

    async def locally(self, model: KnownModel) -> Active:
        """On this device alone, with whatever else is loaded."""

        async def load() -> Active:
            with self._loads.of(model.name) as say:
                return await self._routing.local(model, say)

        return await self._for_all(f"load {model.name}", load())

    async def _for_all(self, what: str, work: Coroutine[Any, Any, Active]) -> Active:
        """A model goes on loading when the request that began it goes away: the next one finds it further."""
        return await asyncio.shield(self._tasks.spawn(what, work))

    def is_at_work(self, content_id: ContentId) -> bool:
        """Whether a plan of a model is being carried out now."""
        return self._at_work.get(content_id, 0) > 0

    async def carry_out(self, model: KnownModel, made: Plan) -> Active:
        """Record a plan, prepare its devices, probe it; what failed is said to whoever watches."""
        self._at_work[model.content_id] += 1
        try:
            if made.mode == "local":
                return await self.locally(model)
            return await self._for_all(f"carry out {made.plan_id}", self._carry_out(model, made))
        finally:
            self._at_work[model.content_id] -= 1

    async def _carry_out(self, model: KnownModel, made: Plan) -> Active:
        started_s = time.monotonic()
        await self._propose(made, model)
        self.remember(made.plan_id, made)
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
        """Once, whoever carries it out at the same time; again when it had ended."""
        async with self._proposing.hold(made.plan_id):
            known = self._ledger.state.plans.plans.get(made.plan_id)
            if known is not None and not known.has_ended:
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

    async def end(self, plan_id: str, reason: str, *, stands_as: str | None = None) -> JsonObject:
        """For good, with a record of it; the fact, or the id alone of a plan that needs no record."""
        await self._routing.release(stands_as or plan_id, reason=reason)
        if plan_id not in self._ledger.state.plans.plans:
            return {"plan_id": stands_as or plan_id}
        return await self._ledger.do(c.AbandonPlan(plan_id=plan_id, reason=reason))

    def predicted(self, plan_id: str) -> Plan | None:
        """A plan with its prediction, if it is one of the newest."""
        return self._made.get(plan_id)

    def remember(self, plan_id: str, made: Plan) -> None:
        self._made[plan_id] = made
        while len(self._made) > limits.PLANS_KEPT_MAX:
            del self._made[next(iter(self._made))]
