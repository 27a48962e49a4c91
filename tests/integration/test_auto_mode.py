"""Auto mode: a mesh that may act by itself loads the best model that fits before anybody asks."""

from __future__ import annotations

from pathlib import Path

from tests.kit.mesh import mesh_of

DEMO = "p2pnode-demo"


def test_a_fresh_mesh_answers_without_any_plan_typed(tmp_path: Path) -> None:
    """Allowed once; the model is loaded before anybody asks, and a request is answered at once."""
    with mesh_of(tmp_path, "alpha", "beta") as mesh:
        alpha = mesh.nodes[0]
        assert not alpha.api.get("/status")["engines"]
        alpha.api.post("/command/set", {"key": "auto.load", "value": "on"})
        alpha.until("a loaded model", "/status", lambda v: any(e["up"] for e in v["engines"]), within_s=60)
        answer = alpha.infer(DEMO, "What is a mesh?")
        assert answer["usage"]["completion_tokens"] > 5
