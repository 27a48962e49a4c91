"""Random models of many architectures on real nodes: what can be planned answers as one device does, the rest says why.

Their cuts are proved number by number in tests/unit/compute; here it is planning, options and engines that must know
them: lists by layer, experts, recurrent and sliding layers, latent attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from p2pnode.endpoint import NodeError
from tests.kit.mesh import MeshOfProcesses, mesh_of
from tests.kit.toy_models import TOYS, write_model

FAMILIES = (
    "lfm2",
    "granitehybrid",
    "deepseek2",
    "gpt-oss",
    "gemma3",
    "gemma4",
    "mixtral",
    "phi3",
    "phi3-long-rope",
)
SHARDED = {"gpt-oss", "gemma3", "mixtral"}
PROMPT = "w1 w5 w6 w7 w8"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    root = tmp_path_factory.mktemp("families")
    with mesh_of(root, "alpha", "beta") as made:
        for name in FAMILIES:
            toy = replace(TOYS[name], text=True, vocabulary=320)
            made.nodes[0].cli("pull", str(write_model(root / f"{name}.gguf", toy)))
        yield made


def answer(mesh: MeshOfProcesses, name: str, mode: str, **wish: Any) -> str:
    """Planned by hand, asked greedily, and given back."""
    alpha = mesh.nodes[0]
    plan = alpha.api.post("/plan", {"model": name, "mode": mode, "apply": True, **wish})
    found = alpha.infer(name, PROMPT, raw=True, mode=mode, max_tokens=6, cache_prompt=False)
    assert found["mode"] == mode
    alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})
    return str(found["text"])


@pytest.mark.parametrize("name", FAMILIES)
def test_modes_answer_alike_or_say_why_not(mesh: MeshOfProcesses, name: str) -> None:
    alone = answer(mesh, name, "local", devices=["alpha"])
    both = {"devices": ["alpha", "beta"]}
    assert answer(mesh, name, "pipeline", stages=2, **both) == alone
    assert answer(mesh, name, "disaggregated", **both) == alone
    if name in SHARDED:
        assert answer(mesh, name, "tensor", **both) == alone
        return
    with pytest.raises(NodeError, match=r"cannot be cut by heads: \w"):
        answer(mesh, name, "tensor", **both)
