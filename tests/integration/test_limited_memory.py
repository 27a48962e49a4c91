"""A head that may use little memory leads plans, wherever its own layers are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kit.mesh import MeshOfProcesses

DEMO = "p2pnode-demo"
QUESTION = "What is a peer?"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    """Alpha may use little, so what a plan needs here is counted before it is loaded; beta has the room."""
    made = MeshOfProcesses(tmp_path_factory.mktemp("limited"))
    try:
        made.first("alpha", "--memory-max", "150M")
        made.join("beta")
        for node in made.nodes:
            node.online(2)
        yield made
    finally:
        for node in reversed(made.nodes):
            node.stop()


@pytest.fixture(scope="module")
def expected(mesh: MeshOfProcesses) -> str:
    return str(mesh.nodes[1].infer(DEMO, QUESTION)["text"])


@pytest.mark.parametrize(
    "blocks",
    [
        [["alpha", 0, 3], ["beta", 3, 8]],
        [["beta", 0, 5], ["alpha", 5, 8]],
        [["alpha", 0, 2], ["beta", 2, 6], ["alpha", 6, 8]],
        [["beta", 0, 8]],
    ],
    ids=["first layers", "last layers", "both ends", "none"],
)
def test_what_a_head_with_little_memory_holds(
    mesh: MeshOfProcesses, expected: str, blocks: list[list[object]]
) -> None:
    alpha = mesh.nodes[0]
    plan = alpha.api.post("/plan", {"model": DEMO, "blocks": blocks, "apply": True})
    answer = alpha.infer(DEMO, QUESTION)
    assert answer["text"] == expected
    assert [[stage["name"], *stage["layers"]] for stage in answer["stages"]] == blocks
    alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})
