"""What a plan predicted held against what its request showed, so that the next one is believed for a reason."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from p2pnode import limits
from p2pnode.compute import rates
from p2pnode.compute.calibration import Measured, comparison
from p2pnode.compute.plan import Plan
from p2pnode.errors import P2PNodeError
from p2pnode.node.active import Active
from p2pnode.node.carrying_out import CarryingOut
from p2pnode.node.layer_rates import RATES_DOUBT
from p2pnode.node.links import Links
from p2pnode.node.planning import Planning, PlanRequest
from p2pnode.node.running import Running
from p2pnode.units import PeerId


class Learning:
    def __init__(
        self,
        *,
        links: Links,
        planning: Planning,
        carrying_out: CarryingOut,
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        self._links = links
        self._planning = planning
        self._carrying_out = carrying_out
        self._say = say
        self._last: dict[str, dict[str, Any]] = {}
        """By plan: the last request's prediction beside its measurement."""

    def of(self, plan_id: str) -> dict[str, Any] | None:
        """Of the last request on a plan; None where there was none."""
        return self._last.get(plan_id)

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
        found = comparison(made, measured, now)
        self._last.pop(made.plan_id, None)
        self._last[made.plan_id] = found
        while len(self._last) > limits.PLANS_KEPT_MAX:
            del self._last[next(iter(self._last))]
        self._say({"kind": "prediction", "data": {**data, **found}})
        if count >= limits.CALIBRATION_TOKENS_MIN and rates.differs(now.decode_s, measured.decode_s):
            await self._doubt(made)

    async def _made_for(self, active: Active) -> Plan | None:
        """The plan behind what serves; a model that was loaded without one is as if planned for this device alone."""
        if self._carrying_out.predicted(active.plan_id) is None and active.mode == "local":
            with contextlib.suppress(P2PNodeError):
                request = PlanRequest(model=active.model.name, mode="local", anyway=True)
                self._carrying_out.remember(
                    active.plan_id, (await self._planning.make(request, active.model)).plan
                )
        return self._carrying_out.predicted(active.plan_id)

    async def _doubt(self, made: Plan) -> None:
        """Have the devices of a plan time their layers again, each when it has time for that."""

        async def ask(peer: str) -> None:
            with contextlib.suppress(P2PNodeError):  # of a version that knows no doubts, or gone
                await self._links.call(PeerId(peer), RATES_DOUBT, {"model": made.content_id})

        await asyncio.gather(*(ask(peer) for peer in made.peers))
