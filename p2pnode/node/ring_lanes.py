"""Lanes of a ring as its head has them opened: among the ranks of a group, and from engine to engine all around."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from p2pnode import limits
from p2pnode.compute.engine_client import EngineClient
from p2pnode.errors import EngineUnavailable, P2PNodeError
from p2pnode.node.active import first_condition
from p2pnode.node.links import Links
from p2pnode.node.orders import Orders, Views, slot
from p2pnode.node.tensor import Lanes, hops_of, pair_up
from p2pnode.node.watched_calls import WatchedCalls
from p2pnode.units import PeerId


class RingLanes:
    def __init__(self, links: Links, calls: WatchedCalls) -> None:
        self._links = links
        self._calls = calls
        self._lanes = Lanes(links)

    async def link_groups(self, plan_id: str, orders: Orders, views: Views) -> None:
        """Give every tensor group its lanes; its ranks are asked at once, because both ends must be there."""
        for stage in sorted({order.stage for _, order in orders if order.shares}):
            ranks = [(peer, order) for peer, order in orders if order.stage == stage]
            ports = [views[stage, order.rank].pop("ports") for _, order in ranks]
            ends = pair_up([peer for peer, _ in ranks], ports)
            wishes = [
                (peer, {"plan_id": plan_id, "slot": slot(stage, order.rank), "ends": mine})
                for (peer, order), mine in zip(ranks, ends, strict=True)
            ]
            try:
                await self._ask_ranks("stage.link", wishes)
            except P2PNodeError:
                # Datagrams from engine to engine do not get through: a firewall, or a NAT. The nodes do.
                await self._ask_ranks("stage.carry", wishes)
                for _, order in ranks:
                    views[stage, order.rank]["exchange"] = "streams"

    async def _ask_ranks(self, method: str, wishes: Sequence[tuple[PeerId, dict[str, Any]]]) -> None:
        async with first_condition(), asyncio.TaskGroup() as group:
            for peer, wish in wishes:
                group.create_task(self._calls.call(peer, method, wish))

    async def open_ring(
        self,
        plan_id: str,
        orders: Orders,
        views: Views,
        client: EngineClient,
        first: int | None,
        output: int,
        stages: int,
    ) -> int | None:
        """Lanes from engine to engine, so that decoded tokens go around by themselves; without them streams do."""
        given = {key: view.pop("ring_ports", []) for key, view in views.items()}
        if not all(view.pop("rollback", False) for view in views.values()):
            return None  # a round that nobody asks for could not be taken back
        orders = [(peer, order) for peer, order in orders if order.rank == 0]
        ports = [given[order.stage, 0] for _, order in orders]
        if not orders or not all(ports) or not self._lanes.are_for_rings:
            return None
        opened: asyncio.Task[int] | None = None
        try:
            mine = await self._lanes.open(client, output, 2)
            (into, out), *others = hops_of([self._links.me, *(peer for peer, _ in orders)], [mine, *ports])
            onward, back = self._lanes.hop(out), self._lanes.hop(into)
            async with (
                first_condition(),
                asyncio.timeout(limits.CONTROL_TIMEOUT_S),
                asyncio.TaskGroup() as group,
            ):
                opened = group.create_task(client.open_ring(output, first, onward, back, stages=stages))
                for (peer, order), ends in zip(orders, others, strict=True):
                    wish = {"plan_id": plan_id, "slot": order.stage, "in": ends[0], "out": ends[1]}
                    wish["stages"] = stages
                    group.create_task(self._links.call(peer, "stage.ring", wish))
        except (P2PNodeError, TimeoutError):
            if opened is not None and not opened.cancelled() and opened.exception() is None:
                await close_ring(client, opened.result())  # its other devices have no part in it
            return None
        return opened.result()


async def close_ring(client: EngineClient, number: int) -> None:
    with contextlib.suppress(EngineUnavailable):  # it went with its engine
        await client.close_ring(number)
