"""llama.cpp's RPC through our streams, and a model streamed from its file: the same text as ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.mesh import MeshOfProcesses, children_of, mesh_of

DEMO = "p2pnode-demo"
PROMPT = "What is a mesh?"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    with mesh_of(tmp_path_factory.mktemp("modes"), "alpha", "beta") as made:
        for node in made.nodes:
            node.until("a measured machine", "/status", lambda s: s["capability"].get("can_rpc"))
        yield made


def test_rpc_twice(mesh: MeshOfProcesses) -> None:
    """Weights go to the worker over QUIC; ending the plan ends the worker, and a second plan works again."""
    alpha = mesh.nodes[0]
    local = alpha.infer(DEMO, PROMPT, mode="local")["text"]
    alpha.until(
        "the worker's build",
        "/peers",
        lambda v: all(p["self"] or p["capability"].get("build") for p in v["peers"]),
    )
    for _ in range(2):
        wish = {"model": DEMO, "mode": "tensor_rpc", "devices": ["alpha", "beta"], "apply": True}
        plan = alpha.api.post("/plan", wish)
        answer = alpha.infer(DEMO, PROMPT)
        assert (answer["mode"], answer["text"]) == ("tensor_rpc", local)
        assert [stage["name"] for stage in answer["stages"]] == ["alpha", "beta"]
        alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})


def test_streamed(mesh: MeshOfProcesses) -> None:
    alpha = mesh.nodes[0]
    local = alpha.infer(DEMO, PROMPT, mode="local")["text"]
    plan = alpha.api.post("/plan", {"model": DEMO, "mode": "streamed", "apply": True})
    answer = alpha.infer(DEMO, PROMPT)
    assert (answer["mode"], answer["text"]) == ("streamed", local)
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in children_of(alpha.process.pid)]
    assert any("_watch" in text and f"{DEMO}.gguf" in text for text in maps), "mapped without filling memory"
    alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})


def test_a_member_without_the_model_asks_one_that_has_it(mesh: MeshOfProcesses) -> None:
    """Federation: the answer is computed whole by the holder, and costs nothing on the same network."""
    alpha, beta = mesh.nodes
    beta.until("the mesh's models", "/models", lambda v: any(m["name"] == DEMO for m in v["models"]))
    answer = beta.infer(DEMO, PROMPT)
    assert [stage["name"] for stage in answer["stages"]] == ["alpha"]
    assert answer["cost_microunits"] == 0
    accepted = [e for e in alpha.events("RequestAccepted") if e["data"]["caller"] == beta.peer_id]
    assert len(accepted) == 1
