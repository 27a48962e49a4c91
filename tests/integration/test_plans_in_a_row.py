"""Plans applied one right after another: answers that run go on with the same text, and the last one serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from p2pnode.compute.pipeline_route import PipelineRoute
from p2pnode.facade import Finished, GenerateRequest, SamplingParams, TextDelta
from p2pnode.node.core import Node
from p2pnode.node.faces import Faces
from tests.kit.net import until
from tests.kit.node_here import node_here

CUTS: list[list[list[Any]]] = [
    [["alpha", 0, 3], ["beta", 3, 8]],
    [["alpha", 0, 3], ["gamma", 3, 8]],  # the same first unit, another ring
    [["beta", 0, 5], ["alpha", 5, 6], ["gamma", 6, 8]],  # the same unit that samples
    [["alpha", 0, 3], ["beta", 3, 8]],  # the first one again, while its old ring may still be ending
    [["gamma", 0, 2], ["beta", 2, 4], ["alpha", 4, 8]],  # the unit that samples has layers now
    [["alpha", 0, 1], ["beta", 1, 4], ["gamma", 4, 8]],
]


def online(node: Node) -> int:
    return sum(link.is_up and link.status is not None for link in node.links.links.values())


async def ask(faces: Faces, texts: list[str], over: asyncio.Event) -> None:
    while not over.is_set():
        wish = GenerateRequest(
            "p2pnode-demo", "Once upon a time", max_tokens=40, sampling=SamplingParams(0.0)
        )
        events = [event async for event in faces.generate(wish)]
        texts.append("".join(event.text for event in events if isinstance(event, TextDelta)))


@asynccontextmanager
async def three(folder: Path) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node_here(folder / "alpha", "alpha"))]
        for name in ("beta", "gamma"):
            made = await nodes[0].mesh.invite(uses=1, expires_s=600, role="worker", label="")
            nodes.append(
                await stack.enter_async_context(node_here(folder / name, name, ticket=made["ticket"]))
            )
        await until(lambda: all(online(node) == 2 for node in nodes))
        yield nodes


async def test_answers_outlive_plans_in_a_row(tmp_path: Path) -> None:
    async with three(tmp_path) as nodes:
        faces, texts, over = Faces(nodes[0]), list[str](), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(ask(faces, texts, over))
            for cut in CUTS * 2:
                await faces.plan({"model": "p2pnode-demo", "blocks": cut, "apply": True})
            over.set()
        assert texts
        assert set(texts) == {texts[0]}


async def who(faces: Faces, mode: str) -> tuple[str, set[str]]:
    wish = GenerateRequest(
        "p2pnode-demo", "Once upon a time", max_tokens=3, mode=mode, sampling=SamplingParams(0.0)
    )
    (done,) = [event async for event in faces.generate(wish) if isinstance(event, Finished)]
    return done.mode, {str(stage["name"]) for stage in done.stages}


async def test_the_plan_applied_last_serves_and_the_one_before_ends(tmp_path: Path) -> None:
    """Whatever their ids are: each of two plans once after the other."""
    async with three(tmp_path) as (alpha, *_):
        faces = Faces(alpha)
        plans = alpha.ledger.state.plans.plans
        before = ""
        for devices in (["alpha", "beta", "gamma"], ["alpha", "beta"], ["alpha", "beta", "gamma"]):
            made = await faces.plan(
                {"model": "p2pnode-demo", "mode": "tensor", "devices": devices, "apply": True}
            )
            assert await who(faces, "auto") == ("tensor", set(devices))
            assert plans[made["plan_id"]].state == "active"
            assert [a.plan_id for a in alpha.routing.active.values() if a.mode != "local"] == [
                made["plan_id"]
            ]
            if before:
                assert (plans[before].state, plans[before].reason) == (
                    "abandoned", "another plan was applied in its place")  # fmt: skip
            before = made["plan_id"]


async def test_plans_of_one_device_end_like_others(tmp_path: Path) -> None:
    """They stand under ids that are not those they were proposed with; released or replaced, nothing of them stays."""
    model = "p2pnode-demo"
    async with node_here(tmp_path / "alpha", "alpha") as alpha:
        faces, active = Faces(alpha), alpha.routing.active
        for mode in ("local", "streamed"):
            made = await faces.plan({"model": model, "mode": mode, "apply": True})
            assert [one.mode for one in active.values()] == [mode]
            await faces.command("release_plan", {"plan_id": made["plan_id"]})
            assert not active
            assert not alpha.choosing.applied  # else it would be carried out again
        for mode in ("streamed", "local", "streamed", "local"):
            await faces.plan({"model": model, "mode": mode, "apply": True})
            assert [one.mode for one in active.values()] == [mode]
            assert await who(faces, "auto") == (mode, {"alpha"})
        states = [plan.state for plan in alpha.ledger.state.plans.plans.values()]
        assert states
        assert set(states) == {"abandoned"}


async def test_who_names_a_mode_gets_it_and_the_applied_plan_stays(tmp_path: Path) -> None:
    async with three(tmp_path) as (alpha, *_):
        faces = Faces(alpha)
        await faces.plan(
            {"model": "p2pnode-demo", "mode": "tensor", "devices": ["alpha", "beta"], "apply": True}
        )
        assert (await who(faces, "pipeline"))[0] == "pipeline"
        assert await who(faces, "auto") == ("tensor", {"alpha", "beta"})
        assert await who(faces, "tensor") == ("tensor", {"alpha", "beta"})


async def test_tokens_go_from_engine_to_engine_however_many_places_an_engine_has(tmp_path: Path) -> None:
    """Greetings of lanes wait for each other in a circle there: the head's place in the middle, two engines twice."""
    async with three(tmp_path) as (alpha, *_):
        faces = Faces(alpha)
        for cut in (
            [["beta", 0, 3], ["alpha", 3, 6], ["gamma", 6, 8]],
            [["alpha", 0, 2], ["beta", 2, 4], ["alpha", 4, 6], ["beta", 6, 8]],
            [["beta", 0, 1], ["beta", 1, 2], ["alpha", 2, 3], ["alpha", 3, 5], ["gamma", 5, 8]],
        ):
            made = await faces.plan({"model": "p2pnode-demo", "blocks": cut, "apply": True})
            active = alpha.routing.active[made["plan_id"]]
            assert isinstance(active.route, PipelineRoute)
            assert active.route.by_lanes
            assert (await who(faces, "pipeline"))[0] == "pipeline"
            assert active.route.by_lanes
