"""Adapters change while plans are built and answers run: what stands has the last ones, and no answer fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest

from p2pnode.compute.gguf import open_model
from p2pnode.facade import Finished, GenerateRequest, Mode, SamplingParams, TextDelta
from p2pnode.node.core import Node
from p2pnode.node.faces import Faces
from tests.kit.net import until
from tests.kit.node_here import node_here
from tests.kit.toy_adapters import adapter_bytes

DEMO = "p2pnode-demo"
DEMO_FILE = Path(__file__).parents[2] / "models" / f"{DEMO}.gguf"
PLAN = {"model": DEMO, "blocks": [["alpha", 0, 3], ["beta", 3, 8]], "apply": True}
LOCAL, PIPELINE = (mode for mode in get_args(Mode) if mode in ("local", "pipeline"))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "pirate.gguf"
    path.write_bytes(adapter_bytes(open_model(DEMO_FILE)[0], ("attn_q.weight", "ffn_up.weight")))
    return path


@asynccontextmanager
async def two_nodes(folder: Path) -> AsyncIterator[tuple[Node, Node]]:
    async with AsyncExitStack() as stack:
        alpha = await stack.enter_async_context(node_here(folder / "alpha", "alpha"))
        made = await alpha.mesh.invite(uses=1, expires_s=600, role="worker", label="")
        beta = await stack.enter_async_context(node_here(folder / "beta", "beta", ticket=made["ticket"]))
        await until(lambda: all(link.is_up and link.status for link in alpha.links.links.values()))
        yield alpha, beta


async def numbers(faces: Faces, mode: Mode, tokens: int = 8) -> list[float]:
    sampling = SamplingParams(temperature=0.0, logprobs=1)
    wish = GenerateRequest(DEMO, "Once upon a time", max_tokens=tokens, sampling=sampling, mode=mode)
    events = [event async for event in faces.generate(wish)]
    assert isinstance(events[-1], Finished)
    return [each.logprob for event in events if isinstance(event, TextDelta) for each in event.logprobs]


def running_engines(*nodes: Node) -> set[tuple[str, str, int | None]]:
    """Of which device, for what, which process."""
    return {
        (node.name, engine.purpose, engine.pid)
        for node in nodes
        for engine in node.engine_hosts
        if engine.is_up
    }


def same(values: list[float]) -> Any:
    return pytest.approx(values, rel=1e-3, abs=1e-3)


async def test_a_plan_half_built_when_adapters_change_stands_with_the_new_ones(
    tmp_path: Path, adapter: Path
) -> None:
    """As after a loss: a plan is carried out again, nobody can end it before it stands, and adapters change."""
    async with two_nodes(tmp_path) as (alpha, _):
        faces = Faces(alpha)
        await faces.plan(PLAN)
        await faces.command("add_adapter", {"model": DEMO, "path": str(adapter), "scale": 0.05})
        before = await numbers(faces, PIPELINE)
        model = alpha.catalog.resolve(DEMO)
        ((identity, _),) = alpha.engine_options.of_model(model.content_id).adapters
        (standing,) = alpha.routing.active
        await alpha.routing.release(standing, reason="a test")
        locks = alpha.adapters.locks
        async with locks.hold(identity):
            again = asyncio.ensure_future(alpha.choosing.carry_out_applied(model))
            await until(lambda: locks.users(identity) > 1)
            await faces.command("add_adapter", {"model": DEMO, "path": str(adapter), "scale": 0.02})
        await again
        after = await numbers(faces, PIPELINE)
        assert after != same(before)
        assert await numbers(faces, LOCAL) == same(after)


@pytest.mark.parametrize("mode", [LOCAL, PIPELINE])
async def test_answers_outlive_changes_of_adapters(tmp_path: Path, adapter: Path, mode: Mode) -> None:
    """Each goes on with what acts from then on; what is asked afterwards is as if nothing else had ever acted."""
    async with two_nodes(tmp_path) as (alpha, beta):
        faces, over, answered = Faces(alpha), asyncio.Event(), 0
        if mode == PIPELINE:
            await faces.plan(PLAN)
        usual = await numbers(faces, mode)
        engines = running_engines(alpha, beta)

        async def ask() -> None:
            nonlocal answered
            while not over.is_set():
                assert len(await numbers(faces, mode, 40)) == 40
                answered += 1

        def has_more(than: int) -> bool:
            return answered > than

        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(ask())
            for number in range(6):
                scale = 0.05 / (1 + number)
                await faces.command("add_adapter", {"model": DEMO, "path": str(adapter), "scale": scale})
                await until(partial(has_more, answered))
            await faces.command("remove_adapter", {"model": DEMO, "adapter": "pirate"})
            over.set()
        assert await numbers(faces, mode) == same(usual)
        assert running_engines(alpha, beta) == engines
