"""Auto mode: every half minute or on change, the best plan of every model, and the choice between them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from p2pnode import limits
from p2pnode.compute.auto import Current, Option, decide
from p2pnode.errors import P2PNodeError
from p2pnode.node.planning import PlanRequest
from p2pnode.projections.settings import value_of

if TYPE_CHECKING:
    from p2pnode.node.core import Node

SETTING = "auto.load"
"""`on` lets this node load and plan models by itself."""


class AutoMode:
    """Evaluates models x mesh for one node; acts only when its operator allows it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._since_s = 0.0

    @property
    def is_on(self) -> bool:
        return value_of(self._node.ledger.state.settings, SETTING, "off") == "on"

    async def run(self) -> None:
        """Every half minute, and soon after a device or a model came or went."""
        while True:
            seen = self._mesh_now()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.AUTO_INTERVAL_S):
                    await self._change_of(seen)
            if self.is_on and self._node.state == "active":
                try:
                    await self.evaluate()
                except (
                    P2PNodeError
                ) as error:  # a device went while its part was prepared: there is a next look
                    self._node.say({"kind": "auto", "data": {"action": "failed", "reason": error.message}})

    async def _change_of(self, seen: object) -> None:
        while self._mesh_now() == seen:
            await self._node.links.wait_for_change()
        await asyncio.sleep(limits.AUTO_SETTLE_S)

    def _mesh_now(self) -> object:
        """Who is there and computes, which models there are, and whether this may act at all."""
        node = self._node
        links = [link for link in node.links.links.values() if link.is_up]
        there = {(link.peer_id, link.status.state if link.status else "") for link in links}
        models = {(model.content_id, model.is_complete_here, model.holders) for model in node.catalog.known()}
        return there, models, self.is_on

    async def evaluate(self) -> str:
        """One look: what was decided, in words."""
        node = self._node
        options: list[Option] = []
        default = node.catalog.resolve(None).content_id if node.catalog.known() else ""
        for model in node.catalog.known():
            try:
                plan = (await node.planning.make(PlanRequest(model=model.name), model)).plan
            except P2PNodeError:
                continue
            options.append(
                Option(plan, float(model.summary.get("size_bytes") or 0), model.content_id == default)
            )
        decision = decide(self._current(options), options, now_s=time.monotonic())
        if decision.action == "activate" and decision.plan is not None:
            model = node.catalog.resolve(decision.plan.content_id)
            await node.choosing.apply(model, decision.plan, PlanRequest(model=model.name))
            self._since_s = time.monotonic()
        node.say({"kind": "auto", "data": {"action": decision.action, "reason": decision.reason}})
        return decision.reason

    def _current(self, options: list[Option]) -> Current | None:
        node = self._node
        for content_id, (plan, asked) in node.choosing.applied.items():
            active = node.routing.of_model(content_id)
            quality = next((o.quality for o in options if o.plan.content_id == content_id), 0.0)
            return Current(
                plan,
                quality,
                self._since_s,
                is_broken=active is None,
                is_busy=bool(node.requests.running),
                was_asked_for=asked.mode != "auto" or bool(asked.devices),
            )
        return None
