"""A node that stops leaves no process behind, whatever its rooms were about to start.

The rooms close one after the other, and what runs in the background goes on until after that: a plan that is carried
out again, a stage another device asks for. Here it asks as late as it can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import EngineUnavailable
from p2pnode.node.core import Node
from p2pnode.node.orders import StageOrder
from tests.kit.children import children
from tests.kit.net import until
from tests.kit.node_here import node_here

LAYERS = 4
Ask = Callable[[Node], Awaitable[object]]


def stage(node: Node) -> Awaitable[object]:
    model = node.catalog.resolve(None)
    order = StageOrder(
        plan_id="p", stage=1, model=model.content_id, model_name=model.name, layer_first=0, layer_end=LAYERS,
        is_last=False, context_tokens=2048, sessions=4, head=node.me, previous_peer=node.me, next_peer=node.me,
        next_stage=-1, next_addresses=[],
    )  # fmt: skip
    return node.hosting.prepare(order, lambda _: None)


async def worker(node: Node) -> object:
    return await node.links.call(node.me, "rpc.start", {"plan": "p", "build": await node.tunnel.build()})


ASKS: dict[str, Ask] = {
    "plan": lambda node: node.routing.local(node.catalog.resolve(None), lambda _: None),
    "ring": lambda node: node.routing.alone(node.catalog.resolve(None), lambda _: None),
    "stage": stage,
    "embedding": lambda node: node.embedding.embed(node.catalog.resolve(None), [[1, 2, 3]]),
    "rpc worker": worker,
}


@pytest.mark.parametrize("what", ASKS)
async def test_who_asks_when_the_rooms_are_closed_gets_none(tmp_path: Path, what: str) -> None:
    """Between the end of the rooms and the end of what runs in the background."""
    before, outcomes = children(), []
    async with node_here(tmp_path) as node:

        async def ask_at_the_end() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                outcomes.extend(await asyncio.gather(ASKS[what](node), return_exceptions=True))

        node.tasks.spawn(what, ask_at_the_end())
        await asyncio.sleep(0)  # it begins
    (outcome,) = outcomes
    assert isinstance(outcome, EngineUnavailable), outcome
    assert "is stopping" in outcome.message
    assert children() == before


@pytest.mark.parametrize("what", ASKS)
async def test_a_node_that_stops_while_one_starts_ends_it(tmp_path: Path, what: str) -> None:
    """For something in the background of the node, which nobody awaits."""
    before = children()
    async with node_here(tmp_path) as node:
        at_rest = children()

        async def ask() -> Any:
            return await ASKS[what](node)

        node.tasks.spawn(what, ask())
        await until(lambda: bool(children() - at_rest))
    assert node.processes.count == 0
    assert children() == before
