"""A model that comes in several files answers as the one file does, in every mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.gguf_files import split
from tests.kit.mesh import MeshOfProcesses, NodeProcess, mesh_of, proc_of_children

DEMO, SPLIT = "p2pnode-demo", "split"
PROMPT = "What is a mesh?"
FILES = 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    whole = (Path(__file__).parents[2] / "models" / f"{DEMO}.gguf").read_bytes()
    paths = [folder / f"{SPLIT}-{number:05}-of-{FILES:05}.gguf" for number in range(1, FILES + 1)]
    for path, part in zip(paths, split(whole, FILES), strict=True):
        path.write_bytes(part)
    return paths


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, files: list[Path]) -> Iterator[MeshOfProcesses]:
    """The first device is told any one of the files; the other one fetches what it computes."""
    first = ("--model", str(files[1]))
    with mesh_of(tmp_path_factory.mktemp("split"), "alpha", "beta", first_arguments=first) as made:
        made.measured()
        yield made


@pytest.fixture(scope="module")
def text(mesh: MeshOfProcesses) -> str:
    """What the one file answers."""
    return str(mesh.nodes[0].infer(DEMO, PROMPT, mode="local")["text"])


def answer_of(node: NodeProcess, **wish: Any) -> dict[str, Any]:
    plan = node.api.post("/plan", {"model": SPLIT, "apply": True, **wish})
    answer = node.infer(SPLIT, PROMPT, mode=wish["mode"])
    node.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})
    return answer


@pytest.mark.parametrize(
    "wish",
    [
        {"mode": "local"},
        {"mode": "pipeline", "devices": ["alpha", "beta"], "stages": 2},
        {"mode": "tensor", "devices": ["alpha", "beta"]},
        {"mode": "disaggregated", "devices": ["alpha", "beta"]},
        {"mode": "streamed"},
        {"mode": "tensor_rpc", "devices": ["alpha", "beta"]},
    ],
    ids=lambda wish: str(wish["mode"]),
)
def test_every_mode_takes_several_files(mesh: MeshOfProcesses, text: str, wish: dict[str, Any]) -> None:
    answer = answer_of(mesh.nodes[0], **wish)
    assert (answer["mode"], answer["text"]) == (wish["mode"], text)


def test_all_files_can_be_mapped(mesh: MeshOfProcesses, text: str, files: list[Path]) -> None:
    alpha = mesh.nodes[0]
    alpha.cli("set", "device.engine", "load=mmap")
    try:
        assert alpha.infer(SPLIT, PROMPT, mode="local")["text"] == text
        maps = proc_of_children(alpha.process.pid, "maps")
        assert any(all(path.name in each for path in files) for each in maps)
    finally:
        alpha.cli("set", "device.engine", "default")


def test_a_fetched_model_of_several_files_streams(mesh: MeshOfProcesses, text: str) -> None:
    """The other device keeps them under names of its own."""
    beta = mesh.nodes[1]
    beta.until("the mesh's models", "/models", lambda v: any(m["name"] == SPLIT for m in v["models"]))
    beta.cli("pull", SPLIT)
    assert answer_of(beta, mode="streamed")["text"] == text
