"""A node's memory is its share of the model and at most 200 MB more, node and engine together, as its command shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.kit.mesh import NodeProcess, mesh_of
from tests.kit.toy_models import TOYS, write_model

QWEN2_05B: dict[str, Any] = {
    "width": 896,
    "heads": 14,
    "kv_heads": 2,
    "head_width": 64,
    "ff": 4864,
    "vocabulary": 151_936,
}
LAYERS = 3
PROMPT = "w1 w22 w333 " * 60
"""Some hundred tokens: prompts use more room to compute than answers."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide and with a vocabulary as real ones have it; its other layers would only be weights."""
    toy = replace(
        TOYS["qwen2"], type="Q8_0", tied=True, text=True, layers=LAYERS, features=frozenset({"merges"}),
        parameters={"context_length": 32_768}, **QWEN2_05B,
    )  # fmt: skip
    return write_model(tmp_path_factory.mktemp("large") / "large.gguf", toy)


def memory_of(node: NodeProcess) -> dict[str, int]:
    memory: dict[str, int] = node.cli("status")["memory"]
    assert memory["allowed_bytes"] == memory["share_bytes"] + 200_000_000
    return memory


def test_a_head_with_a_large_vocabulary_keeps_the_bound(tmp_path: Path, model: Path) -> None:
    """The device that samples holds the vocabulary and the output besides its layers; another holds the rest."""
    with mesh_of(tmp_path, "alpha", "beta", first_arguments=("--model", str(model))) as mesh:
        alpha, beta = mesh.nodes
        blocks = [["alpha", 0, 2], ["beta", 2, LAYERS]]
        alpha.api.post("/plan", {"model": "large", "blocks": blocks, "apply": True})
        answer = alpha.infer("large", PROMPT, mode="pipeline", raw=True, max_tokens=16)
        assert answer["usage"]["prompt_tokens"] > 150
        head, other = memory_of(alpha), memory_of(beta)
        assert head["share_bytes"] > 896 * 151_936  # the output is part of it
        cells = head["conversations_bytes_max"] - other["conversations_bytes_max"]
        assert cells == other["conversations_bytes_max"] > 0  # two layers, and one
        for memory in (head, other):
            assert memory["node_and_engines_bytes"] <= memory["allowed_bytes"], memory
