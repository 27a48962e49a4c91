"""A model that does not fit here is answered whole by the device that can, and when that goes away by the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from p2pnode.events.verify import verify_folder
from p2pnode.facade import Finished, GenerateRequest, SamplingParams
from tests.kit.mesh import MeshOfProcesses, NodeProcess
from tests.kit.node_here import node_here

DEMO = "p2pnode-demo"
ASKED: dict[str, Any] = {"model": DEMO, "prompt": "Once upon a time", "max_tokens": 120}
LONG = {"max_tokens": 100}


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[MeshOfProcesses]:
    """Alpha and gamma have the model; beta has it too, and not enough memory for it."""
    made = MeshOfProcesses(tmp_path)
    try:
        made.first("alpha")
        made.join("beta", "--memory-max", "56M")
        made.join("gamma")
        for node in made.nodes:
            node.online(3)
        for node in made.nodes[1:]:
            node.api.post("/command/pull", {"model": DEMO})
            node.until("the model", "/models", lambda v: any(m["here"] == "complete" for m in v["models"]))
        others = {made.nodes[0].peer_id, made.nodes[2].peer_id}
        made.nodes[1].until("both holders", "/models", lambda v: others <= set(holders_in(v)))
        yield made
    finally:
        for node in reversed(made.nodes):
            node.stop()


def holders_in(view: dict[str, Any]) -> list[str]:
    (model,) = [m for m in view["models"] if m["name"] == DEMO]
    return list(model["holders"])


def served_by(node: NodeProcess) -> list[str]:
    return [event["data"]["peer"] for event in node.events("RequestForwarded")]


def stream(node: NodeProcess, trouble: Any = None, **wish: Any) -> str:
    pieces: list[str] = []
    with closing(node.api.stream("/infer/stream", {**ASKED, **wish})) as events:
        for event in events:
            if event["type"] == "text":
                pieces.append(event["text"])
                if len(pieces) == 5 and trouble is not None:
                    trouble()
    return "".join(pieces)


def test_it_goes_where_it_fits_and_the_plan_says_so(mesh: MeshOfProcesses) -> None:
    alpha, beta, gamma = mesh.nodes
    answer = beta.infer(DEMO, "What is a mesh?")
    assert served_by(beta)[0] in (alpha.peer_id, gamma.peer_id)
    assert answer["stages"][0]["name"] in ("alpha", "gamma")
    reasons = beta.api.post("/plan", {"model": DEMO, "why": True})["rejections"]
    told = {r["candidate"]: r["reason"] for r in reasons}
    assert {"whole by alpha", "whole by gamma"} <= set(told)
    assert "tokens/s expected; requests go there when" in told["whole by alpha"]


def long_seed(node: NodeProcess) -> int:
    """One whose answer does not end by itself, so that its device can go away in the middle of it."""
    for seed in range(50):
        answer = node.infer(DEMO, ASKED["prompt"], raw=True, **LONG, temperature=0.9, seed=seed)
        if answer["usage"]["completion_tokens"] == LONG["max_tokens"]:
            return seed
    raise AssertionError("every answer of this model is short")


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_an_answer_goes_on_when_who_serves_it_dies(mesh: MeshOfProcesses, temperature: float) -> None:
    """The same stream: no word twice, none missing."""
    alpha, beta, gamma = mesh.nodes
    by_id = {alpha.peer_id: alpha, gamma.peer_id: gamma}
    sampling = {"temperature": temperature, **({"seed": long_seed(alpha)} if temperature else {})}
    text = stream(beta, lambda: by_id[served_by(beta)[0]].kill(), **LONG, **sampling)
    first, second = served_by(beta)
    assert {first, second} == set(by_id)
    whole = by_id[second].infer(DEMO, ASKED["prompt"], raw=True, **LONG, **sampling)
    assert text == whole["text"]
    assert verify_folder(beta.data).ok


def test_chance_is_given_a_seed_that_a_second_device_can_use(mesh: MeshOfProcesses) -> None:
    beta = mesh.nodes[1]
    text = stream(beta, temperature=0.9)
    (forwarded,) = beta.events("RequestForwarded")
    seed = forwarded["data"]["seed"]
    assert seed is not None
    served = next(node for node in mesh.nodes if node.peer_id == forwarded["data"]["peer"])
    again = served.infer(DEMO, ASKED["prompt"], raw=True, max_tokens=120, temperature=0.9, seed=seed)
    assert text == again["text"]


def test_nobody_is_asked_where_the_operator_says_never(mesh: MeshOfProcesses) -> None:
    beta = mesh.nodes[1]
    beta.cli("set", "serve.elsewhere", "never")
    assert beta.infer(DEMO, "What is a mesh?")["usage"]["completion_tokens"] > 5
    assert served_by(beta) == []


async def test_prediction_stands_beside_measurement_after_a_request(tmp_path: Path) -> None:
    """For a model that this device computes alone, too: the live feed has both, and the next plan has learned."""
    async with node_here(tmp_path / "alone") as node:
        heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        node.telemetry.append(lambda item: heard.put_nowait(item) if item["kind"] == "prediction" else None)
        request = GenerateRequest(
            model=DEMO, prompt="Once upon a time", max_tokens=20, sampling=SamplingParams(temperature=0.0)
        )
        before = node.planning.calibration
        (*_, last) = [event async for event in node.generate(request)]
        assert isinstance(last, Finished)
        async with asyncio.timeout(30):  # who learns plans first, after the answer
            item = (await heard.get())["data"]
        assert item["request_id"] == last.request_id
        assert item["token_count"] == 20
        assert item["predicted_tokens_per_s"] > 0
        assert item["measured_tokens_per_s"] > 0
        assert node.planning.calibration != before
