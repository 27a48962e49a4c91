"""A tensor group whose engines' datagrams get nowhere: the nodes carry the sums, and the text is the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pnode import limits
from p2pnode.compute.engine_protocol import LaneToRank
from p2pnode.errors import NotFound, RemoteProtocolError, StreamReset
from p2pnode.facade import GenerateRequest, SamplingParams, TextDelta
from p2pnode.node.core import Node
from p2pnode.node.faces import Faces
from p2pnode.node.reduce_streams import REDUCE
from p2pnode.node.tensor import Lanes
from p2pnode.transport import messages
from tests.kit.net import quic, running, until
from tests.kit.node_here import become_member, node_here

DEMO = "p2pnode-demo"
NAMES = ("alpha", "beta", "gamma")


@asynccontextmanager
async def mesh(folder: Path, count: int) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        alpha = await stack.enter_async_context(node_here(folder / "alpha"))
        nodes = [alpha]
        for name in NAMES[1:count]:
            ticket = (await alpha.mesh.invite(uses=1, expires_s=600, role="worker", label=""))["ticket"]
            nodes.append(await stack.enter_async_context(node_here(folder / name, name, ticket=ticket)))
        for node in nodes:
            others = [other.me for other in nodes if other is not node]
            await until(
                lambda node=node, others=others: all(  # type: ignore[misc]
                    peer in node.links.links and node.links.links[peer].status is not None for peer in others
                )
            )
        yield nodes


async def text(node: Node, mode: str) -> str:
    """What greedy decoding writes; never empty, so that two answers can differ."""
    request = GenerateRequest(
        DEMO, "Once upon a time", mode=mode, max_tokens=24, sampling=SamplingParams(temperature=0.0)
    )
    said = "".join([event.text async for event in node.generate(request) if isinstance(event, TextDelta)])
    assert len(said) > 20
    return said


@pytest.fixture
def no_datagrams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes lead to a port where nobody is."""
    way = Lanes._rank_way

    def nowhere(self: Lanes, end: Any) -> LaneToRank:
        return replace(way(self, end), peer_port=9)

    monkeypatch.setattr(Lanes, "_rank_way", nowhere)


@pytest.mark.parametrize("ranks", [2, 3])
async def test_the_sums_go_over_the_nodes(tmp_path: Path, no_datagrams: None, ranks: int) -> None:
    async with mesh(tmp_path, ranks) as nodes:
        alpha = nodes[0]
        plan = await Faces(alpha).plan(
            {"model": DEMO, "mode": "tensor", "devices": list(NAMES[:ranks]), "apply": True}
        )
        assert plan["mode"] == "tensor"
        assert await text(alpha, "tensor") == await text(alpha, "local")
        (active,) = [a for a in alpha.routing.active.values() if a.plan_id == plan["plan_id"]]
        assert {stage.get("exchange") for stage in active.stages if "rank" in stage} == {"streams"}
        await Faces(alpha).command("release_plan", {"plan_id": plan["plan_id"]})
        carried = [t for t in asyncio.all_tasks() if t.get_name().startswith("reduce ")]
        await until(lambda: all(task.done() for task in carried))  # engines that end take their streams along


async def test_only_ranks_that_are_expected_are_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = quic("mallory")
    async with running(member), node_here(tmp_path) as node:
        connection = await become_member(member, node)
        stream = await connection.open_stream("/p2pnode/control/1")
        asked = {"plan_id": "none", "slot": 1, "ends": []}
        await messages.send_message(stream, messages.Call(method="stage.carry", arguments=asked))
        answer = await messages.receive_message(stream)
        assert isinstance(answer, messages.Refused)
        assert answer.code == NotFound.code
        monkeypatch.setattr(limits, "CONTROL_TIMEOUT_S", 0.1)
        for call in ({"token": "0" * 64}, {}, {"token": ["x"]}):
            stream = await connection.open_stream(REDUCE)
            await messages.send_message(stream, messages.Call(method="reduce", arguments=call))
            with pytest.raises((StreamReset, RemoteProtocolError)):
                await messages.receive_message(stream)
        assert node.reduce_streams._expected == {}
