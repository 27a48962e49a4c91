"""Where a request goes on that lost its devices: another plan, without those that do not answer now."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from p2pnode import limits
from p2pnode.compute.plan import Plan
from p2pnode.errors import P2PNodeError
from p2pnode.node.active import Active, plan_id_alone
from p2pnode.node.carrying_out import CarryingOut
from p2pnode.node.catalog import KnownModel
from p2pnode.node.choosing import Choosing
from p2pnode.node.links import Links
from p2pnode.node.loading import Loads
from p2pnode.node.planning import Planning, PlanRequest, spare_blocks
from p2pnode.node.requests import SURVIVABLE
from p2pnode.node.routing import Routing
from p2pnode.node.running import Running
from p2pnode.node.tasks import Tasks
from p2pnode.units import PeerId


class Failover:
    def __init__(
        self,
        *,
        me: PeerId,
        links: Links,
        planning: Planning,
        routing: Routing,
        choosing: Choosing,
        carrying_out: CarryingOut,
        tasks: Tasks,
        loads: Loads,
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        self._me = me
        self._links = links
        self._planning = planning
        self._routing = routing
        self._choosing = choosing
        self._carrying_out = carrying_out
        self._tasks = tasks
        self._loads = loads
        self._say = say

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
        if before.plan_id == plan_id_alone("local", model.content_id):
            return await self._carrying_out.locally(model)
        await self._routing.settled(model.content_id)
        other = self._choosing.standing(model)
        if other is not None and other.mode != "local" and not {s["peer"] for s in other.stages} & set(gone):
            return other  # it stands already, and building another could take its layers
        if model.content_id in self._choosing.applied and not {s["peer"] for s in before.stages} & set(gone):
            with contextlib.suppress(P2PNodeError):
                return await self._choosing.carry_out_again(model, *self._choosing.applied[model.content_id])
        made = await self._plan_without(model, self._carrying_out.predicted(before.plan_id), gone)
        if made.mode == "local":
            with self._loads.of(model.name) as say:
                return await self._routing.alone(model, say)
        return await self._carrying_out.carry_out(model, made)

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
