"""Which plan a request runs on, and the plans that somebody wants to stand."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from p2pnode import limits
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_options import EngineOptions
from p2pnode.compute.plan import Plan
from p2pnode.errors import EngineUnavailable, NoPlan, P2PNodeError, StageLost
from p2pnode.facade import GenerateRequest, JsonObject
from p2pnode.node.active import Active, plan_id_alone
from p2pnode.node.carrying_out import CarryingOut
from p2pnode.node.catalog import Catalog, KnownModel
from p2pnode.node.links import Links
from p2pnode.node.planning import Planning, PlanRequest
from p2pnode.node.routing import Routing
from p2pnode.units import ContentId, PeerId

T = TypeVar("T")


class Choosing:
    def __init__(
        self,
        *,
        me: PeerId,
        catalog: Catalog,
        links: Links,
        planning: Planning,
        routing: Routing,
        carrying_out: CarryingOut,
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        self._me = me
        self._catalog = catalog
        self._links = links
        self._planning = planning
        self._routing = routing
        self._carrying_out = carrying_out
        self._say = say
        self._adapted: dict[ContentId, tuple[Plan, float]] = {}
        """Plans that nobody applied, ended since adapters change, and when: what they loaded waits a moment."""
        self.applied: dict[ContentId, tuple[Plan, PlanRequest]] = {}
        """Plans somebody applied: carried out again after a loss, on the same devices while they are there."""

    def standing(self, model: KnownModel, mode: str = "auto") -> Active | None:
        """The plan applied for a model where it stands, else the newest that does; of that mode, unless it is auto."""
        wanted = None if mode == "auto" else mode
        if (applied := self.applied.get(model.content_id)) is not None:
            active = self._routing.active.get(standing_id(applied[0]))
            if active is not None and active.is_usable and wanted in (None, active.mode):
                return active
        return self._routing.of_model(model.content_id, wanted)

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
            return await self._carrying_out.locally(model)
        applied = self.applied.get(model.content_id)
        if applied is not None and request.mode not in ("auto", applied[0].mode):
            applied = None  # who names another mode wants that one, once
        active = self.standing(model, request.mode)
        if active is not None and (active.mode != "local" or applied is None or applied[0].mode == "local"):
            return active
        if applied is not None:
            return await self._applied_or_local(model, *applied)
        if (active := await self._as_before(model, request.mode)) is not None:
            return active
        if request.mode == "auto" and model.is_complete_here:
            if self._routing.keeps(model.content_id):
                return await self._carrying_out.locally(model)  # it fits: it is loaded
            return await self._locally_if_it_fits(model)
        return await self.activate(model, PlanRequest(model=model.name, mode=request.mode))

    async def _applied_or_local(self, model: KnownModel, made: Plan, request: PlanRequest) -> Active:
        """The applied plan, once more; this device alone where that cannot be and it has the model."""
        try:
            return await self.carry_out_again(model, made, request)
        except P2PNodeError as error:
            if not model.is_complete_here:
                raise StageLost(
                    f"the plan for {model.name} cannot be carried out: {error.message}"
                ) from error
            self._say({"kind": "fallback", "data": {"model": model.name, "reason": error.message}})
            return await self._carrying_out.locally(model)

    async def _as_before(self, model: KnownModel, mode: str) -> Active | None:
        """The plan that ended a moment ago since adapters changed: its devices still have the weights."""
        adapted = self._adapted.get(model.content_id)
        if adapted is None or mode not in ("auto", adapted[0].mode):
            return None
        try:
            if time.monotonic() < adapted[1] + limits.ADAPTED_KEPT_S:
                return await self.carry_out_again(model, adapted[0], PlanRequest(model=model.name))
        except P2PNodeError:
            pass  # then a new plan
        finally:
            if self._adapted.get(model.content_id) is adapted:
                del self._adapted[model.content_id]
        return None

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
        active = await self._carrying_out.locally(model)
        if made is not None:
            self._carrying_out.remember(active.plan_id, made)
        return active

    async def carry_out_again(self, model: KnownModel, made: Plan, request: PlanRequest) -> Active:
        """A plan as it was, where its devices are there and its options still wanted; else a new one."""
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
        return await self._carrying_out.carry_out(model, again)

    async def renew(self, content_id: ContentId, reason: str, keep: bool) -> None:
        """End the plans of a model since its engine options change.

        With `keep` only adapters do: then what the same plan loads next is loaded already.
        """
        standing = self._routing.of_model(content_id)
        made = self._carrying_out.predicted(standing.plan_id) if standing is not None else None
        self._adapted.pop(content_id, None)
        if keep and made is not None and made.mode != "local" and content_id not in self.applied:
            self._adapted[content_id] = (made, time.monotonic())
        await self._routing.release_model(content_id, reason, keep)

    async def carry_out_applied(self, model: KnownModel) -> Active:
        """The plan somebody applied, as it was where its devices are there."""
        return await self.carry_out_again(model, *self.applied[model.content_id])

    async def activate(self, model: KnownModel, request: PlanRequest) -> Active:
        """Plan and carry out."""
        made = (await self._planning.make(request, model)).plan
        active = await self._carrying_out.carry_out(model, made)
        applied = self.applied.get(model.content_id)
        if applied is not None and applied[1] == request:
            self.applied[model.content_id] = (made, request)
        return active

    async def apply(self, model: KnownModel, made: Plan, request: PlanRequest) -> Active:
        """Carry out a plan that somebody wants to stand; what runs on the one before moves to it."""
        before = self.applied.get(model.content_id)
        self.applied[model.content_id] = (made, request)
        try:
            active = await self._carrying_out.carry_out(model, made)
        except BaseException:
            if self.applied.get(model.content_id) == (made, request):
                del self.applied[model.content_id]
                if before is not None:
                    self.applied[model.content_id] = before
            raise
        if before is not None and before[0].plan_id != made.plan_id:
            stood_as = standing_id(before[0])
            if stood_as == active.plan_id:  # streamed as before, by a plan with other numbers
                stood_as = before[0].plan_id
            await self._carrying_out.end(
                before[0].plan_id, "another plan was applied in its place", stands_as=stood_as
            )
        return active

    async def release(self, plan_id: str, reason: str) -> JsonObject:
        """End a plan, which nobody wants to stand any more; by the id it was proposed with or stands under."""
        for content_id, (made, _) in list(self.applied.items()):
            stands_as = standing_id(made)
            if plan_id in (made.plan_id, stands_as):
                del self.applied[content_id]
                return await self._carrying_out.end(made.plan_id, reason, stands_as=stands_as)
        return await self._carrying_out.end(plan_id, reason)


def standing_id(made: Plan) -> str:
    """The id a plan has while it stands: of a model on one device alone there is one, whatever was planned."""
    if made.mode in ("local", "streamed"):
        return plan_id_alone(made.mode, ContentId(made.content_id))
    return made.plan_id
