"""A stage that this device holds for a head, and the ring that runs through it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from p2pnode.compute.engine_options import EngineOptions
from p2pnode.compute.row_tally import TalliedStage
from p2pnode.compute.stage import StageServer
from p2pnode.errors import StageLost
from p2pnode.node.engine_share import StageEngine
from p2pnode.node.orders import StageOrder

UNIT = "stage"


@dataclass(slots=True)
class HostedStage:
    """A stage as it stands on this device."""

    order: StageOrder
    engine: StageEngine
    bytes_fetched: int
    bytes_wanted: int
    servers: int = 0
    serving: list[StageServer] = field(default_factory=list)
    alone_since_s: float | None = None
    """When its head was first found to be away."""
    ports: list[int] = field(default_factory=list)
    """Lanes to the other ranks."""
    ring_ports: list[int] = field(default_factory=list)
    """Lanes from the stage before and to the one after."""
    layers_total: int = 0
    """Of the whole model."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    ring: asyncio.Task[None] | None = None
    """What runs through it now, or will when the ring before has let go of it."""

    async def run(self, ring: Coroutine[Any, Any, None]) -> None:
        """Run a ring through this stage in place of the one before.

        A head has one ring of a plan. Where it attaches another, the one before is broken, whether its end arrived
        here or not; and what that one frees in the end must not be what the new one computes for.
        """

        async def in_turn() -> None:
            try:
                async with self.turn:
                    await ring
            finally:
                ring.close()  # where it never began

        self.cancel_ring()
        self.ring = mine = asyncio.ensure_future(in_turn())
        try:
            await asyncio.wait([mine])
        except asyncio.CancelledError:
            mine.cancel()
            await asyncio.gather(mine, return_exceptions=True)
            raise
        if mine.cancelled():
            raise StageLost("another ring of its plan runs through this stage now, or none any more")
        await mine

    def cancel_ring(self) -> None:
        if self.ring is not None:
            self.ring.cancel()

    async def end_ring(self) -> None:
        """Until nothing runs through it."""
        self.cancel_ring()
        async with self.turn:
            return

    @property
    def layers(self) -> tuple[int, int]:
        return (self.order.layer_first, self.order.layer_end)

    @property
    def sends_halves(self) -> bool:
        """Whether its partial sums travel as float16: every rank's order says the same."""
        return EngineOptions.parse(self.order.engine).sums == "f16"

    @property
    def sessions(self) -> int:
        """Answers of its head that this stage holds something for."""
        return sum(len(server.sessions) for server in self.serving)

    @property
    def tallied(self) -> TalliedStage:
        """What its work is counted under."""
        order = self.order
        return TalliedStage(
            order.plan_id, order.head, self.layers, order.rank, tuple(order.shares), self.layers_total
        )
