"""The bound on memory in every place of a pipeline, for a real model's width, layers and vocabulary with its merges."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.integration.test_memory import PROMPT, QWEN2_05B, memory_of
from tests.kit.mesh import MeshOfProcesses, mesh_of
from tests.kit.toy_models import TOYS, write_model

LAYERS = 24
MARGIN_BYTES = 4_000_000
"""Left of the 200 MB after a conversation of 736 tokens, whose keys and values are kept and counted."""
MARGIN_OF_TWO_PLACES_BYTES = 1_000_000
"""The same of a head with two units, whose contexts and buffers are there twice."""

Blocks = list[tuple[str, int, int]]
BOTH_ENDS: Blocks = [("alpha", 0, 8), ("beta", 8, 16), ("alpha", 16, LAYERS)]
"""A device that is head and a later stage of one plan."""
IN_THE_MIDDLE: Blocks = [("beta", 0, 4), ("alpha", 4, 20), ("gamma", 20, LAYERS)]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    """Three devices; half a gigabyte of weights is not kept after the tests."""
    root = tmp_path_factory.mktemp("places")
    toy = replace(
        TOYS["qwen2"], type="Q8_0", tied=True, text=True, layers=LAYERS,
        features=frozenset({"merges", "same_layers"}), parameters={"context_length": 32_768}, **QWEN2_05B,
    )  # fmt: skip
    try:
        model = write_model(root / "half.gguf", toy)
        with mesh_of(root, "alpha", "beta", "gamma", first_arguments=("--model", str(model))) as made:
            yield made
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param(
            [("alpha", 0, LAYERS - 1), ("beta", LAYERS - 1, LAYERS)], id="head with the first layers"
        ),
        pytest.param([("alpha", 0, 1), ("beta", 1, LAYERS)], id="tail with nearly all layers"),
        pytest.param([("beta", 0, 1), ("alpha", 1, LAYERS)], id="head with the last layers and the output"),
        pytest.param(
            [("alpha", 0, 1), ("beta", 1, LAYERS - 1), ("gamma", LAYERS - 1, LAYERS)],
            id="middle with nearly all layers",
        ),
        pytest.param(BOTH_ENDS, id="head with the first and the last layers"),
        pytest.param([("alpha", 0, 12), ("beta", 12, LAYERS)], id="head with the first half"),
        pytest.param(IN_THE_MIDDLE, id="head in the middle"),
        pytest.param(BOTH_ENDS, id="head with the first and the last layers, planned again"),
    ],
)
def test_every_place_keeps_the_bound(mesh: MeshOfProcesses, blocks: Blocks) -> None:
    """Asked twice, one plan after the other: what one request needs is used again, and nothing grows.

    A head that comes back to places it had before finds the memory of the plans between given back.
    """
    alpha = mesh.nodes[0]
    margin = MARGIN_OF_TWO_PLACES_BYTES if blocks in (BOTH_ENDS, IN_THE_MIDDLE) else MARGIN_BYTES
    alpha.api.post("/plan", {"model": "half", "blocks": blocks, "apply": True})
    seen = []
    for _ in range(2):
        answer = alpha.infer("half", PROMPT, mode="pipeline", raw=True, max_tokens=16)
        assert [stage["layers"] for stage in answer["stages"]] == [[first, end] for _, first, end in blocks]
        memories = [memory_of(node) for node in mesh.nodes]
        for memory in memories:
            spare = memory["allowed_bytes"] - memory["node_and_engines_bytes"]
            assert spare >= margin, (memory, seen)
        seen.append([memory["node_and_engines_bytes"] for memory in memories])
    assert max(memory["share_bytes"] for memory in memories) > 300_000_000
    for first, *_, last in zip(*seen, strict=True):
        assert last - first < 6_000_000, seen  # kept prefixes once more, at most
