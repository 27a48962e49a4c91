"""`ready` is true only while every stage of the plan that stands answers; the false cases, and the way back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnode.compute.wish import WishedMode
from p2pnode.node.core import Node
from p2pnode.node.planning import PlanRequest
from tests.integration.test_survival import sleep, wake
from tests.kit.mesh import MeshOfProcesses, NodeProcess, kill_now, mesh_of
from tests.kit.net import until
from tests.kit.node_here import node_here

DEMO = "p2pnode-demo"
PLAN: dict[str, Any] = {"model": DEMO, "mode": "pipeline", "devices": ["alpha", "beta"], "apply": True}


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[MeshOfProcesses]:
    with mesh_of(tmp_path, "alpha", "beta") as made:
        yield made


def ready(head: NodeProcess) -> None:
    head.until("readiness", "/status", lambda v: v["ready"] and not v["missing"], within_s=60)


def not_ready(head: NodeProcess, *words: str) -> None:
    """With a sentence about what is missing, for people; `/health` says no more than that it is so."""
    view = head.until("that something is missing", "/status", lambda v: not v["ready"], within_s=60)
    assert any(word in sentence for sentence in view["missing"] for word in words), view["missing"]


def engine_of(node: NodeProcess) -> int:
    (stage,) = node.api.get("/status")["hosted_stages"]
    return int(stage["engine_pid"])


def test_a_frozen_engine(mesh: MeshOfProcesses) -> None:
    """Its node answers for itself, not for the stage."""
    alpha, beta = mesh.nodes
    alpha.api.post("/plan", PLAN)
    assert alpha.api.get("/health")["ready"]
    pid = engine_of(beta)
    os.kill(pid, signal.SIGSTOP)
    try:
        not_ready(alpha, f"beta, which computes a part of {DEMO}")
        assert beta.api.get("/health")["ready"], "it leads no plan itself"
    finally:
        os.kill(pid, signal.SIGCONT)
    ready(alpha)
    assert alpha.infer(DEMO, "What is a mesh?")["stages"][1]["name"] == "beta"


def test_a_frozen_device(mesh: MeshOfProcesses) -> None:
    alpha, beta = mesh.nodes
    alpha.api.post("/plan", PLAN)
    sleep(beta)
    try:
        not_ready(alpha, "beta", f"the plan for {DEMO} does not stand")
    finally:
        wake(beta)
    ready(alpha)


def test_a_killed_stage(mesh: MeshOfProcesses) -> None:
    """Its engine is started again and the plan with it, before anybody asks."""
    alpha, beta = mesh.nodes
    alpha.api.post("/plan", PLAN)
    before = engine_of(beta)
    kill_now(before)
    not_ready(alpha, "beta", f"the plan for {DEMO} does not stand")
    ready(alpha)
    assert engine_of(beta) != before
    assert alpha.infer(DEMO, "What is a mesh?")["stages"][1]["name"] == "beta"


def test_a_stage_that_loads(mesh: MeshOfProcesses) -> None:
    """From the moment somebody applies a plan until its probe came through; here loading takes as long as the test."""
    alpha, beta = mesh.nodes
    sleep(beta)
    applying = threading.Thread(target=alpha.api.post, args=("/plan", PLAN))
    applying.start()
    try:
        not_ready(alpha, f"the plan for {DEMO} does not stand")
    finally:
        wake(beta)
        applying.join()
    assert alpha.api.get("/health")["ready"]


def test_a_device_that_is_gone_for_good(mesh: MeshOfProcesses) -> None:
    """Whoever insists on it waits; without the plan this device is ready by itself."""
    alpha, beta = mesh.nodes
    plan = alpha.api.post("/plan", PLAN)
    beta.kill()
    not_ready(alpha, "beta", f"the plan for {DEMO} does not stand")
    alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})
    ready(alpha)


@pytest.mark.parametrize(
    "mode", ["local", "pipeline", "tensor", "hybrid", "streamed", "tensor_rpc", "disaggregated"]
)
async def test_a_plan_of_any_mode_answers_when_it_is_asked(tmp_path: Path, mode: WishedMode) -> None:
    """The question goes to whoever computes in that mode, and to nobody else."""
    async with node_here(tmp_path / "head", "head") as head:
        invite = await head.mesh.invite(uses=1, expires_s=600, role="worker", label="")
        async with node_here(tmp_path / "other", "other", ticket=invite["ticket"]) as other:
            await until(lambda: bool(head.capability.measured.get("build")))
            await until(lambda: _is_told(head, other))
            model = head.catalog.resolve(DEMO)
            several = ["head", "other"] if mode in ("pipeline", "tensor", "hybrid") else None
            wish = PlanRequest(model=DEMO, mode=mode, devices=several)
            made = (await head.planning.make(wish, model)).plan
            assert head.readiness.missing() == []
            active = await head.choosing.apply(model, made, wish)
            await head.readiness.look()
            assert head.readiness.missing() == []
            assert active.is_usable


def _is_told(head: Node, other: Node) -> bool:
    link = head.links.links.get(other.me)
    return link is not None and link.status is not None and bool(link.status.capability.get("build"))
