"""llama.cpp's RPC through our streams, and a model streamed from its file: the same text as ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnode.endpoint import NodeError
from tests.kit.mesh import MeshOfProcesses, mesh_of, proc_of_children

DEMO, OTHER = "p2pnode-demo", "other"
PROMPT = "What is a mesh?"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    root = tmp_path_factory.mktemp("modes")
    data = bytearray((Path(__file__).parents[2] / "models" / f"{DEMO}.gguf").read_bytes())
    data[-100] ^= 1  # another model to whoever counts
    (root / f"{OTHER}.gguf").write_bytes(data)
    with mesh_of(root, "alpha", "beta", first_arguments=("--model", str(root / f"{OTHER}.gguf"))) as made:
        made.measured()
        yield made


def rpc_plan(mesh: MeshOfProcesses, model: str, **wish: Any) -> str:
    asked = {"model": model, "mode": "tensor_rpc", "devices": ["alpha", "beta"], "apply": True, **wish}
    return str(mesh.nodes[0].api.post("/plan", asked)["plan_id"])


def workers_of(mesh: MeshOfProcesses) -> int:
    """llama.cpp's RPC servers that the second device runs."""
    commands = proc_of_children(mesh.nodes[1].process.pid, "cmdline")
    return sum("p2pnode.compute.rpc_server" in command for command in commands)


@pytest.mark.parametrize("engine", [{}, {"rpc_split": "tensor"}, {"flash": "off"}, {"kv": "q8_0"}])
def test_rpc_by_layers_and_by_rows(mesh: MeshOfProcesses, engine: dict[str, str]) -> None:
    """Weights go to the worker over QUIC; ending the plan ends the worker, and another plan works again."""
    alpha = mesh.nodes[0]
    plan = rpc_plan(mesh, DEMO, engine=engine)
    answer = alpha.infer(DEMO, PROMPT)
    assert answer["mode"] == "tensor_rpc"
    assert [stage["name"] for stage in answer["stages"]] == ["alpha", "beta"]
    assert workers_of(mesh) == 1
    alpha.api.post("/command/release_plan", {"plan_id": plan})
    assert workers_of(mesh) == 0
    assert answer["text"] == alpha.infer(DEMO, PROMPT, mode="local")["text"]
    alpha.cli("set", f"engine.{DEMO}", "default")


def test_two_models_at_once_have_a_worker_each(mesh: MeshOfProcesses) -> None:
    """A worker of llama.cpp's serves one client; and the end of one plan is not the end of the other."""
    alpha = mesh.nodes[0]
    texts = [alpha.infer(model, PROMPT, mode="local")["text"] for model in (DEMO, OTHER)]
    plans = [rpc_plan(mesh, model) for model in (DEMO, OTHER)]
    assert workers_of(mesh) == 2
    assert [alpha.infer(model, PROMPT, mode="tensor_rpc")["text"] for model in (DEMO, OTHER)] == texts
    alpha.api.post("/command/release_plan", {"plan_id": plans[0]})
    answer = alpha.infer(OTHER, PROMPT)
    assert (answer["mode"], answer["text"]) == ("tensor_rpc", texts[1])
    alpha.api.post("/command/release_plan", {"plan_id": plans[1]})
    assert workers_of(mesh) == 0


def test_a_wrong_split_is_named(mesh: MeshOfProcesses) -> None:
    with pytest.raises(NodeError, match="rpc_split is 'rows', must be one of layer, tensor"):
        rpc_plan(mesh, DEMO, engine={"rpc_split": "rows"})


def test_streamed(mesh: MeshOfProcesses) -> None:
    alpha = mesh.nodes[0]
    local = alpha.infer(DEMO, PROMPT, mode="local")["text"]
    plan = alpha.api.post("/plan", {"model": DEMO, "mode": "streamed", "apply": True})
    answer = alpha.infer(DEMO, PROMPT)
    assert (answer["mode"], answer["text"]) == ("streamed", local)
    maps = proc_of_children(alpha.process.pid, "maps")
    assert any("_watch" in text and f"{DEMO}.gguf" in text for text in maps), "mapped without filling memory"
    alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})


def test_a_member_without_the_model_asks_one_that_has_it(mesh: MeshOfProcesses) -> None:
    """Federation: the answer is computed whole by the holder, and costs nothing on the same network.

    The asking device has no room: one with room fetches the model where its holder was measured in a busy moment.
    """
    alpha, gamma = mesh.nodes[0], mesh.join("gamma", "--memory-max", "1M")
    try:
        gamma.until("the mesh's models", "/models", lambda v: any(m["name"] == DEMO for m in v["models"]))
        answer = gamma.infer(DEMO, PROMPT)
        assert [stage["name"] for stage in answer["stages"]] == ["alpha"]
        assert answer["cost_microunits"] == 0
        assert answer["text"] == alpha.infer(DEMO, PROMPT, mode="local")["text"]
        accepted = [e for e in alpha.events("RequestAccepted") if e["data"]["caller"] == gamma.peer_id]
        assert len(accepted) == 1
    finally:
        mesh.nodes.remove(gamma)
        gamma.stop()
