"""A head that has a later place of its own ring too: one engine for both, and the text of the model whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from p2pnode.errors import P2PNodeError
from tests.kit.mesh import MeshOfProcesses, NodeProcess, kill_now, mesh_of

MODEL = "p2pnode-demo"
PROMPT = "Tell me a story about three small computers."
CUTS = {
    "first and last": [("alpha", 0, 3), ("beta", 3, 6), ("alpha", 6, 8)],
    "first and middle": [("alpha", 0, 2), ("beta", 2, 4), ("alpha", 4, 6), ("beta", 6, 8)],
    "middle": [("beta", 0, 3), ("alpha", 3, 6), ("beta", 6, 8)],
    "first, middle and last": [("alpha", 0, 2), ("beta", 2, 4), ("alpha", 4, 5), ("beta", 5, 6), ("alpha", 6, 8)],
    "side by side": [("alpha", 0, 3), ("alpha", 3, 8)],
}  # fmt: skip


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    with mesh_of(tmp_path_factory.mktemp("places"), "alpha", "beta") as made:
        yield made


@pytest.fixture(scope="module")
def expected(mesh: MeshOfProcesses) -> str:
    return str(mesh.nodes[0].infer(MODEL, PROMPT, mode="local", max_tokens=40)["text"])


def plan(node: NodeProcess, name: str) -> str:
    applied = node.api.post("/plan", {"model": MODEL, "blocks": CUTS[name], "apply": True})
    assert [(s["name"], *s["layers"]) for s in applied["stages"]] == CUTS[name]
    return str(applied["plan_id"])


@pytest.mark.parametrize("name", CUTS)
def test_one_engine_computes_both(mesh: MeshOfProcesses, expected: str, name: str) -> None:
    alpha = mesh.nodes[0]
    for _ in range(2):  # what the first one leaves is not in the way of the second
        plan_id = plan(alpha, name)
        for _ in range(2):
            assert alpha.infer(MODEL, PROMPT, mode="pipeline", max_tokens=40)["text"] == expected
        status = alpha.api.get("/status")
        engines = {engine["pid"] for engine in status["engines"] if engine["plan_id"] == plan_id}
        assert len(engines) == 1
        assert {stage["engine_pid"] for stage in status["hosted_stages"]} <= engines
        alpha.api.post("/command/release_plan", {"plan_id": plan_id})
        assert alpha.api.get("/status")["hosted_stages"] == []


def test_both_are_loaded_again_when_their_engine_is_killed(mesh: MeshOfProcesses, expected: str) -> None:
    alpha = mesh.nodes[0]
    plan(alpha, "first and middle")
    [stage] = alpha.api.get("/status")["hosted_stages"]
    kill_now(stage["engine_pid"])
    for left in range(5, -1, -1):
        try:
            answer = alpha.infer(MODEL, PROMPT, mode="pipeline", max_tokens=40)
        except P2PNodeError:  # who asks before the plan is made again is told so
            assert left
        else:
            break
    assert answer["text"] == expected
    [again] = alpha.api.get("/status")["hosted_stages"]
    assert again["up"]
    assert again["engine_pid"] != stage["engine_pid"]
