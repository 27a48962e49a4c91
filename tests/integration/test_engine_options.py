"""Engine options a person chooses: alike on all devices of a plan, kept, shown, refused before llama.cpp sees them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnode.endpoint import NodeError
from tests.kit.mesh import MeshOfProcesses, NodeProcess, mesh_of
from tests.kit.toy_models import TOYS, write_model

DEMO = "p2pnode-demo"
PROMPT = "Tell me about a mesh of small computers in a house."


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    root = tmp_path_factory.mktemp("options")
    narrow = write_model(root / "narrow.gguf", TOYS["llama"])
    with mesh_of(root, "alpha", "beta", first_arguments=("--model", str(narrow))) as made:
        yield made


def plan(node: NodeProcess, mode: str, **wish: Any) -> dict[str, Any]:
    return dict(node.api.post("/plan", {"model": DEMO, "mode": mode, **wish}))


def text_of(node: NodeProcess, mode: str) -> str:
    answer = node.infer(DEMO, PROMPT, mode=mode, cache_prompt=False)
    assert answer["mode"] == mode
    return str(answer["text"])


def numbers_of(node: NodeProcess, mode: str) -> list[float]:
    """Log-probabilities of an answer: rounded keys show here first."""
    asked = {"model": DEMO, "mode": mode, "temperature": 0, "max_tokens": 16, "logprobs": True}
    asked["messages"] = [{"role": "user", "content": PROMPT}]
    answer = node.api.post("/v1/chat/completions", {**asked, "cache_prompt": False})
    return [float(each["logprob"]) for each in answer["choices"][0]["logprobs"]["content"]]


def stage_memory(answer: dict[str, Any]) -> int:
    return sum(stage["memory_bytes"] for stage in answer["stages"])


def test_a_pipeline_keeps_keys_and_values_as_the_model_does_alone(mesh: MeshOfProcesses) -> None:
    alpha = mesh.nodes[0]
    plain = plan(alpha, "pipeline", devices=["alpha", "beta"], stages=2)
    assert plain["engine"] == ""
    usual = numbers_of(alpha, "local")
    answer = alpha.cli(
        "plan", DEMO, "--mode", "pipeline", "--devices", "alpha,beta", "--stages", "2", "--apply",
        "--engine", "kv=q4_0",
    )  # fmt: skip
    assert answer["engine"] == "kv=q4_0"
    assert answer["plan_id"] != plain["plan_id"]
    assert stage_memory(answer) < stage_memory(plain), "the planner counts keys and values by their type"
    assert text_of(alpha, "pipeline") == text_of(alpha, "local")
    apart = numbers_of(alpha, "pipeline")
    assert apart == pytest.approx(numbers_of(alpha, "local"), rel=1e-3, abs=1e-4)
    assert apart != pytest.approx(usual, rel=1e-2, abs=1e-3), "four bits say something else"
    (setting,) = [s for s in alpha.api.get("/settings")["settings"] if s["key"].startswith("engine.")]
    assert setting["value"] == "kv=q4_0"
    # Another choice ends what was loaded with this one; the applied plan is made again with it.
    alpha.cli("set", f"engine.{DEMO}", "kv=q8_0")
    assert text_of(alpha, "pipeline") == text_of(alpha, "local")
    alpha.cli("set", f"engine.{DEMO}", "default")
    assert plan(alpha, "pipeline", devices=["alpha", "beta"], stages=2)["engine"] == ""


def test_positions_are_stretched_alike(mesh: MeshOfProcesses) -> None:
    alpha = mesh.nodes[0]
    usual = text_of(alpha, "local")
    wish = {"rope": "linear", "rope_scale": 0.25, "context": 4096}
    answer = plan(alpha, "pipeline", devices=["alpha", "beta"], stages=2, apply=True, engine=wish)
    assert answer["engine"] == "context=4096 rope=linear rope_scale=0.25"
    stretched = text_of(alpha, "pipeline")
    assert stretched == text_of(alpha, "local")
    assert stretched != usual
    alpha.cli("set", f"engine.{DEMO}", "default")
    assert text_of(alpha, "local") == usual


@pytest.mark.parametrize(
    ("mode", "words"),
    [("pipeline", "rows=f16"), ("pipeline", "rows=bf16"), ("pipeline", "rows=q8_0"), ("tensor", "sums=f16")],
)
def test_what_travels_can_be_smaller(mesh: MeshOfProcesses, mode: str, words: str) -> None:
    """Close to what the exact rows and sums give, and not the same: so it was done."""
    alpha = mesh.nodes[0]
    wish: dict[str, Any] = {"devices": ["alpha", "beta"], "apply": True}
    if mode == "pipeline":
        wish["stages"] = 2
    plan(alpha, mode, **wish, engine={})
    exact = numbers_of(alpha, mode)
    name, _, value = words.partition("=")
    assert plan(alpha, mode, **wish, engine={name: value})["engine"] == words
    rounded = numbers_of(alpha, mode)
    assert rounded != exact
    assert rounded[:4] == pytest.approx(exact[:4], rel=0.1, abs=0.05)
    alpha.cli("set", f"engine.{DEMO}", "default")


@pytest.mark.parametrize(
    "wish",
    [
        {"rope": "yarn", "rope_scale": 0.5, "yarn_context": 512},
        {
            "rope": "yarn",
            "rope_scale": 0.25,
            "yarn_context": 256,
            "yarn_ext": 1.0,
            "yarn_attn": 1.2,
            "yarn_beta_fast": 16,
        },
        {"rope_base": 50000},
    ],
    ids=["yarn", "yarn-own-factors", "base"],
)
def test_rope_options_mean_the_same_on_every_stage(mesh: MeshOfProcesses, wish: dict[str, Any]) -> None:
    """Over real nodes, pipeline and one device alike; and they do change what is computed."""
    alpha = mesh.nodes[0]
    usual = numbers_of(alpha, "local")
    answer = plan(alpha, "pipeline", devices=["alpha", "beta"], stages=2, apply=True, engine=wish)
    assert answer["engine"].count("=") == len(wish)
    assert text_of(alpha, "pipeline") == text_of(alpha, "local")
    apart = numbers_of(alpha, "pipeline")
    assert apart == pytest.approx(numbers_of(alpha, "local"), rel=1e-3, abs=1e-4)
    assert apart != pytest.approx(usual, rel=1e-2, abs=1e-3)
    alpha.cli("set", f"engine.{DEMO}", "default")
    assert numbers_of(alpha, "local") == pytest.approx(usual, rel=1e-3, abs=1e-4)


def test_a_device_maps_a_whole_model_when_told(mesh: MeshOfProcesses) -> None:
    alpha = mesh.nodes[0]
    usual = text_of(alpha, "local")
    alpha.cli("set", "device.engine", "load=mmap")
    alpha.cli("set", f"engine.{DEMO}", "kv=q8_0")  # ends what is loaded
    alpha.cli("set", f"engine.{DEMO}", "default")
    assert text_of(alpha, "local") == usual
    children = Path(f"/proc/{alpha.process.pid}/task/{alpha.process.pid}/children").read_text().split()
    maps = "".join(Path(f"/proc/{child}/maps").read_text() for child in children)
    assert "p2pnode-demo.gguf" in maps
    alpha.cli("set", "device.engine", "default")


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"kv": "q9"}, "must be one of"),
        ({"kv": "q8_0", "flash": "off"}, "need flash attention"),
        ({"rope_scale": 0.5}, "only with rope"),
        ({"context": "1e99"}, "whole number"),
        ({"gpu": 3}, "is no engine option"),
        ({"kv": True}, "engine"),
    ],
)
def test_http_refuses(mesh: MeshOfProcesses, wish: dict[str, Any], reason: str) -> None:
    alpha = mesh.nodes[0]
    with pytest.raises(NodeError, match=reason) as refused:
        plan(alpha, "local", apply=True, engine=wish)
    assert refused.value.status == 400
    assert alpha.infer(DEMO, PROMPT)["text"]


def test_the_command_refuses(mesh: MeshOfProcesses) -> None:
    alpha = mesh.nodes[0]
    for arguments, reason in (
        (("plan", DEMO, "--engine", "kv=q9"), "must be one of"),
        (("plan", DEMO, "--engine", "kv"), "is no engine option"),
        (("set", f"engine.{DEMO}", "flash=perhaps"), "must be one of"),
        (("set", "device.engine", "load=somehow"), "must be one of"),
        (("set", "engine.narrow", "kv=q8_0"), "use kv=f16"),
        (("set", "engine.no-such-model", "kv=q8_0"), "no-such-model"),
    ):
        command = [sys.executable, "-m", "p2pnode", *arguments, "--data", str(alpha.data)]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert found.returncode != 0, arguments
        assert reason in found.stderr
