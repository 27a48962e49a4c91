"""Whether this node would answer a request now: every stage of the plans that stand has answered a question lately.

A plan is probed with a token when it is built. Later its stages are asked again and again for what they count: the
answer comes from the engine itself, so a frozen device, a frozen engine and one that loads are all found silent.
While a request runs on a plan its tokens are the answer, and who leads it notices a loss sooner than this.
A plan somebody applied that lost a device is carried out again as soon as that is possible.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from p2pnode import limits
from p2pnode.errors import P2PNodeError
from p2pnode.node.active import Active
from p2pnode.node.catalog import Catalog
from p2pnode.node.choosing import Choosing
from p2pnode.node.links import Links
from p2pnode.node.routing import Routing
from p2pnode.node.running import Running
from p2pnode.units import ContentId, PeerId


class Readiness:
    def __init__(
        self,
        *,
        me: PeerId,
        links: Links,
        catalog: Catalog,
        routing: Routing,
        choosing: Choosing,
        is_at_work: Callable[[ContentId], bool],
        running: Callable[[], Mapping[str, Running]],
        may_act: Callable[[], bool],
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        self._me = me
        self._links = links
        self._catalog = catalog
        self._routing = routing
        self._choosing = choosing
        self._is_at_work = is_at_work
        self._running = running
        self._may_act = may_act
        """Whether applied plans are carried out again from here: not while paused, or while auto mode decides."""
        self._say = say
        self._silent: dict[str, list[str]] = {}
        """By plan: what its devices did not answer."""
        self._failed: dict[ContentId, str] = {}
        """By model: why its applied plan could not be carried out again."""
        self._again_s: dict[ContentId, float] = {}
        self.asleep: set[ContentId] = set()
        """Models unloaded for others: the next request loads them, which is no trouble."""

    def missing(self) -> list[str]:
        """What keeps this node from being ready, in sentences; nothing when it is."""
        found: list[str] = []
        for content_id, (made, _) in self._choosing.applied.items():
            active = self._routing.of_model(content_id)
            if active is None and content_id not in self.asleep:
                found.append(self._failed.get(content_id) or f"the plan for {made.model} does not stand")
        for active in self._standing():
            found += self._silent.get(active.plan_id, [])
        return found

    async def run(self) -> None:
        while True:
            before = self.missing()
            await self.look()
            await self._carry_out_again()
            if (after := self.missing()) != before:
                self._say({"kind": "ready", "data": {"ready": not after, "missing": after}})
            await asyncio.sleep(limits.READY_LOOK_S)

    async def look(self) -> None:
        """Ask the stages of all plans that nothing runs on, all at once."""
        busy = {request.active.plan_id for request in self._running().values()}
        idle = [active for active in self._standing() if active.plan_id not in busy]
        found = await asyncio.gather(*(self._ask_all(active) for active in idle))
        asked = {active.plan_id: silent for active, silent in zip(idle, found, strict=True)}
        # Tokens of a running answer speak for its stages.
        self._silent = {plan_id: silent for plan_id, silent in asked.items() if silent}
        self.asleep -= {active.model.content_id for active in self._standing()}

    def _standing(self) -> list[Active]:
        return [active for active in self._routing.active.values() if active.is_usable]

    async def _ask_all(self, active: Active) -> list[str]:
        wanted: dict[PeerId, list[list[int]]] = {}
        for stage in active.stages:
            wanted.setdefault(PeerId(str(stage["peer"])), []).append(list(stage["layers"]))
        others = [] if active.mode == "tensor_rpc" else [peer for peer in wanted if peer != self._me]
        silent = await asyncio.gather(
            self._ask_engine(active), *(self._ask(active, peer, wanted[peer]) for peer in sorted(others))
        )
        return [why for why in silent if why is not None]

    async def _ask_engine(self, active: Active) -> str | None:
        """The engine here; it samples for every plan."""
        try:
            async with asyncio.timeout(limits.READY_ANSWER_S):
                await active.engine.client.stats()
        except (P2PNodeError, TimeoutError):
            return f"the engine for {active.model.name} on this device does not answer"
        return None

    async def _ask(self, active: Active, peer: PeerId, layers: list[list[int]]) -> str | None:
        name, model = self._links.name_of(peer), active.model.name
        try:
            answer = await self._links.call(
                peer, "stage.times", {"plan_id": active.plan_id}, timeout_s=limits.READY_ANSWER_S
            )
        except (P2PNodeError, TimeoutError) as error:
            why = error.message if isinstance(error, P2PNodeError) else "it does not answer"
            return f"{name}, which computes a part of {model}: {why}"
        rows = answer.get("stages")
        told = [row.get("layers") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        if all(part in told for part in layers):
            return None
        return f"{name} has not loaded its part of {model}"

    async def _carry_out_again(self) -> None:
        """Plans that somebody applied and that do not stand, one try each and then later again."""
        for content_id in list(self._choosing.applied):
            if self._routing.of_model(content_id) is not None or content_id in self.asleep:
                self._failed.pop(content_id, None)
                self._again_s.pop(content_id, None)
                continue
            if not self._may_act() or self._is_used(content_id) or self._is_at_work(content_id):
                continue
            if time.monotonic() < self._again_s.get(content_id, 0.0):
                continue
            try:
                await self._choosing.carry_out_applied(self._catalog.resolve(content_id))
            except P2PNodeError as error:
                self._failed[content_id] = error.message
                self._again_s[content_id] = time.monotonic() + limits.READY_AGAIN_S

    def _is_used(self, content_id: ContentId) -> bool:
        """A request of this model is being moved by whoever leads it."""
        return any(request.active.model.content_id == content_id for request in self._running().values())
