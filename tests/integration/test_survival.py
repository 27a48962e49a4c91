"""A running answer survives its stages: killed engines, killed and sleeping nodes, and nodes that leave politely."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.mesh import MeshOfProcesses, NodeProcess, children_of, kill_now, mesh_of

DEMO = "p2pnode-demo"
MESSAGES = [{"role": "user", "content": "Tell me a story about three small computers."}]
TOKENS = 160
THREE_STAGES = {
    "model": DEMO,
    "mode": "pipeline",
    "devices": ["alpha", "beta", "gamma"],
    "stages": 3,
    "apply": True,
}


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[MeshOfProcesses]:
    with mesh_of(tmp_path, "alpha", "beta", "gamma", "delta") as made:
        yield made


def kill_engine(node: NodeProcess) -> None:
    kill_now(node.api.get("/status")["hosted_stages"][0]["engine_pid"])


def kill_node(node: NodeProcess) -> None:
    node.kill()


def leave(node: NodeProcess) -> None:
    node.process.send_signal(signal.SIGTERM)


def sleep(node: NodeProcess) -> None:
    """The whole device: engines pass tokens on without their node."""
    for pid in (node.process.pid, *children_of(node.process.pid)):
        with contextlib.suppress(ProcessLookupError):  # an engine that only timed layers
            os.kill(pid, signal.SIGSTOP)


def wake(node: NodeProcess) -> None:
    if node.process.poll() is None:
        for pid in (*children_of(node.process.pid), node.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def answer_while(
    head: NodeProcess, after_tokens: int, trouble: Callable[[], None], **wish: Any
) -> tuple[str, dict[str, Any]]:
    """The streamed text and its last event; the trouble comes after some tokens."""
    document = {"model": DEMO, "messages": MESSAGES, "temperature": 0, "max_tokens": TOKENS, **wish}
    pieces: list[str] = []
    end: dict[str, Any] = {}
    for event in head.api.stream("/infer/stream", document):
        if event["type"] == "text":
            pieces.append(event["text"])
            if len(pieces) == after_tokens:
                trouble()
        elif event["type"] == "finished":
            end = event
    return "".join(pieces), end


@pytest.mark.parametrize("trouble", [kill_engine, kill_node, leave, sleep], ids=lambda f: f.__name__)
def test_the_answer_goes_on(mesh: MeshOfProcesses, trouble: Callable[[NodeProcess], None]) -> None:
    """Same stream, same tokens; the record says what was lost and how long it took."""
    alpha, _, gamma, _ = mesh.nodes
    alpha.api.post("/plan", THREE_STAGES)
    sampling = {"temperature": 0.9, "seed": 7} if trouble is kill_node else {}
    undisturbed, _ = answer_while(alpha, 0, lambda: None, **sampling)
    text, end = answer_while(alpha, 20, lambda: trouble(gamma), **sampling)
    wake(gamma)
    assert text == undisturbed
    assert end["usage"]["completion_tokens"] > 25
    if trouble is not kill_engine:
        assert "gamma" not in [stage["name"] for stage in end["stages"]]
    lost, recovered = alpha.events("StageLost", "StageRecovered")[:2]
    assert (lost["type"], recovered["type"]) == ("StageLost", "StageRecovered")
    times = [recovered["data"][f"{name}_ms"] for name in ("detected", "replanned", "refilled", "resumed")]
    assert times == sorted(times)


def test_a_spare_that_fell_asleep_is_not_chosen(mesh: MeshOfProcesses) -> None:
    """It served no plan, so nobody had noticed; planning with it would have ended the answer."""
    alpha, _, gamma, delta = mesh.nodes
    plan = {"model": DEMO, "mode": "pipeline", "devices": ["alpha", "beta", "gamma"], "apply": True}
    alpha.api.post("/plan", plan)
    undisturbed, _ = answer_while(alpha, 0, lambda: None)

    def trouble() -> None:
        sleep(delta)
        leave(gamma)

    text, end = answer_while(alpha, 20, trouble)
    wake(delta)
    assert text == undisturbed
    assert {stage["name"] for stage in end["stages"]} <= {"alpha", "beta"}


def test_an_answer_moves_when_another_plan_takes_its_layers(mesh: MeshOfProcesses) -> None:
    """Two cuts of one model cannot both stand on its head: what runs on the first goes on with the second."""
    alpha = mesh.nodes[0]
    alpha.api.post("/plan", {"model": DEMO, "mode": "pipeline", "devices": ["alpha", "beta"], "apply": True})
    undisturbed, _ = answer_while(alpha, 0, lambda: None)
    blocks = [["alpha", 0, 1], ["gamma", 1, 6], ["beta", 6, 8]]
    applied: dict[str, Any] = {}

    def replace() -> None:
        applied.update(alpha.api.post("/plan", {"model": DEMO, "blocks": blocks, "apply": True}))

    text, end = answer_while(alpha, 20, replace)
    assert text == undisturbed
    assert [[s["name"], *s["layers"]] for s in end["stages"]] == blocks
    live = [plan["plan_id"] for plan in alpha.api.get("/plans")["plans"] if plan.get("live")]
    assert live == [applied["plan_id"]]
    assert alpha.api.get("/health")["ready"]
    for node in mesh.nodes[1:3]:
        node.until("only the new plan's stage", "/status", lambda v: [
            s["plan_id"] for s in v["hosted_stages"]] == [applied["plan_id"]])  # fmt: skip


def test_a_lost_head_frees_the_others(mesh: MeshOfProcesses) -> None:
    """The client hears that its node is gone; the stages hold no session any more."""
    alpha, beta, gamma, _ = mesh.nodes
    alpha.api.post("/plan", THREE_STAGES)
    events = alpha.api.stream("/infer/stream", {"model": DEMO, "messages": MESSAGES, "max_tokens": TOKENS})
    next(events)
    alpha.kill()
    with pytest.raises(Exception, match=r"went away|IncompleteRead|ended") as caught:
        for _ in events:
            pass
    assert "Traceback" not in str(caught.value)
    for node in (beta, gamma):
        node.until("the loss of the head", "/peers", lambda v: any(
            p["name"] == "alpha" and p["state"] == "offline" for p in v["peers"]), within_s=60)  # fmt: skip
        assert node.api.get("/health")["status"] == "ok"
