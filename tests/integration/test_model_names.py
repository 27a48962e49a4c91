"""One file under several names: every name is listed and answers, and the demo model stays what it is called."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from p2pnode.endpoint import NodeError
from p2pnode.node.life import demo_model_path
from tests.kit.mesh import mesh_of

DEMO = "p2pnode-demo"
COPIES = ("a-copy", "zz-copy")


def rows(document: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in document["models"]}


def test_a_copy_of_the_demo_model_hides_nothing(tmp_path: Path) -> None:
    """Names before and after its own in the alphabet; on the device itself and for another that has no copy."""
    demo = demo_model_path()
    assert demo is not None
    arguments: list[str] = []
    for name in COPIES:
        shutil.copy(demo, tmp_path / f"{name}.gguf")
        arguments += ["--model", str(tmp_path / f"{name}.gguf")]
    with mesh_of(tmp_path, "alpha", "beta", first_arguments=tuple(arguments)) as mesh:
        alpha, beta = mesh.nodes
        found = rows(alpha.cli("models"))
        assert set(found) == {DEMO, *COPIES}
        assert {row["manifest"] for row in found.values()} == {found[DEMO]["manifest"]}
        assert [name for name, row in found.items() if row["default"]] == [DEMO]
        assert {model["id"] for model in alpha.api.get("/v1/models")["data"]} == set(found)
        texts = {alpha.infer(name, "What is a mesh?")["text"] for name in found}
        assert len(texts) == 1

        elsewhere = rows(beta.cli("models"))
        assert elsewhere[DEMO]["holders"] == [alpha.peer_id]
        assert beta.infer(DEMO, "What is a mesh?")["text"] in texts

        alpha.api.post("/command/remove_model", {"model": "zz-copy"})
        assert set(rows(alpha.cli("models"))) == {DEMO, "a-copy"}
        with pytest.raises(NodeError):
            alpha.infer("zz-copy", "What is a mesh?")
        assert alpha.infer(DEMO, "What is a mesh?")["text"] in texts
