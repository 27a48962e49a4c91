"""An adapter a person adds changes a model alike on one device and on several; each stage has its cut of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pnode.compute.ggml_types import F32
from p2pnode.compute.gguf import ModelIndex, ValueType, header_bytes, open_model, scalar
from p2pnode.endpoint import NodeError
from tests.kit.mesh import MeshOfProcesses, NodeProcess, mesh_of
from tests.kit.toy_adapters import adapter_bytes
from tests.kit.toy_models import Toy, write_model

DEMO = "p2pnode-demo"
DEMO_FILE = Path(__file__).parents[2] / "models" / f"{DEMO}.gguf"
PROMPT = "Tell me about a mesh of small computers in a house."


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    with mesh_of(tmp_path_factory.mktemp("adapters"), "alpha", "beta") as made:
        made.timed()
        yield made


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "pirate.gguf"
    path.write_bytes(adapter_bytes(open_model(DEMO_FILE)[0], ("attn_q.weight", "ffn_up.weight")))
    return path


def numbers_of(node: NodeProcess, mode: str, *, model: str = DEMO, cached: bool = False) -> list[float]:
    asked = {"model": model, "mode": mode, "temperature": 0, "max_tokens": 8, "logprobs": True}
    asked["messages"] = [{"role": "user", "content": PROMPT}]
    answer = node.api.post("/v1/chat/completions", {**asked, "cache_prompt": cached})
    return [float(each["logprob"]) for each in answer["choices"][0]["logprobs"]["content"]]


def same(values: list[float]) -> Any:
    return pytest.approx(values, rel=1e-3, abs=1e-3)


def test_an_adapter_acts_alike_in_every_mode(mesh: MeshOfProcesses, adapter: Path) -> None:
    alpha, beta = mesh.nodes
    usual = numbers_of(alpha, "local")
    plan = {"model": DEMO, "mode": "pipeline", "devices": ["alpha", "beta"], "stages": 2, "apply": True}
    alpha.api.post("/plan", plan)
    added = alpha.cli("adapters", "add", DEMO, str(adapter), "--scale", "0.05")
    assert (added["name"], added["size_bytes"]) == ("pirate", adapter.stat().st_size)
    alone = numbers_of(alpha, "local")
    assert alone != same(usual)
    assert numbers_of(alpha, "pipeline") == same(alone)
    assert (beta.data / "adapters" / f"{added['adapter']}.gguf").read_bytes() == adapter.read_bytes()
    # Other options leave it where it is, and a group of ranks has its shards of it.
    alpha.cli("set", f"engine.{DEMO}", "kv=f32")
    group = {"model": DEMO, "mode": "tensor", "devices": ["alpha", "beta"], "apply": True}
    answer = alpha.api.post("/plan", group)
    assert added["adapter"] in answer["engine"]
    assert len(numbers_of(alpha, "tensor")) == 8
    alpha.cli("set", f"engine.{DEMO}", "default")
    (row,) = alpha.cli("adapters", "list")["adapters"]
    assert (row["model"], row["name"], row["scale"]) == (DEMO, "pirate", 0.05)
    # Added again, it acts as strongly as was said last.
    alpha.cli("adapters", "add", DEMO, str(adapter), "--scale", "0")
    assert numbers_of(alpha, "local") == same(usual)
    alpha.cli("adapters", "remove", DEMO, "pirate")
    assert alpha.cli("adapters", "list")["adapters"] == []
    assert numbers_of(alpha, "local") == same(usual)
    assert not list((alpha.data / "adapters").glob("*.gguf"))


@pytest.mark.parametrize("mode", ["local", "pipeline", "tensor"])
def test_adapters_change_on_engines_that_stay(mesh: MeshOfProcesses, adapter: Path, mode: str) -> None:
    """No weights are loaded again anywhere, and nothing computed with other adapters is used."""
    alpha, beta = mesh.nodes

    plan_id = ""
    if mode != "local":
        wish = {"pipeline": {"stages": 2}, "tensor": {}}[mode]
        asked = {"model": DEMO, "mode": mode, "devices": ["alpha", "beta"], "apply": True, **wish}
        plan_id = alpha.api.post("/plan", asked)["plan_id"]

    def engines() -> list[int]:
        """Those of the plan here and of its stages there; others measure, or serve what an earlier test left."""
        ours = [one for one in alpha.api.get("/status")["engines"] if is_ours(one["plan_id"])]
        theirs = [one for one in beta.api.get("/status")["hosted_stages"] if is_ours(one["plan_id"])]
        return [*(int(one["pid"]) for one in ours), *(int(one["engine_pid"]) for one in theirs)]

    def is_ours(plan: str) -> bool:
        return plan == plan_id if plan_id else plan.startswith("local-")

    usual = numbers_of(alpha, mode, cached=True)
    before = engines()
    assert len(before) == (1 if mode == "local" else 2)
    alpha.cli("adapters", "add", DEMO, str(adapter), "--scale", "0.05")
    changed = numbers_of(alpha, mode, cached=True)
    assert changed != same(usual)
    alpha.cli("adapters", "add", DEMO, str(adapter), "--scale", "0.02")
    other = numbers_of(alpha, mode, cached=True)
    assert other != same(changed)
    alpha.cli("adapters", "remove", DEMO, "pirate")
    assert numbers_of(alpha, mode, cached=True) == same(usual)
    assert engines() == before


def test_a_plan_that_is_made_while_adapters_change_has_the_new_ones(
    mesh: MeshOfProcesses, adapter: Path
) -> None:
    """Answers have plans carried out again all the while, and some are half built when the next change comes."""
    alpha = mesh.nodes[0]
    plan = {"model": DEMO, "mode": "pipeline", "devices": ["alpha", "beta"], "stages": 2, "apply": True}
    alpha.api.post("/plan", plan)
    for last in (0.02, 0.05, 0.03):
        with ThreadPoolExecutor(2) as pool:
            asking = [pool.submit(numbers_of, alpha, "pipeline") for _ in range(6)]
            for scale in (0.04, 0.01, last):
                wish = {"model": DEMO, "path": str(adapter), "scale": scale}
                alpha.api.post("/command/add_adapter", wish)
            for asked in asking:
                assert len(asked.result()) == 8
        alone = numbers_of(alpha, "local")
        assert numbers_of(alpha, "pipeline") == same(alone)
        (row,) = alpha.cli("adapters", "list")["adapters"]
        assert row["scale"] == last
    alpha.cli("adapters", "remove", DEMO, "pirate")


def test_what_is_no_adapter_is_refused(mesh: MeshOfProcesses, adapter: Path, tmp_path: Path) -> None:
    alpha = mesh.nodes[0]
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(adapter.read_bytes()[:200])
    for wish, reason in (
        ({"path": str(DEMO_FILE)}, "not a LoRA adapter"),
        ({"path": str(tmp_path / "none.gguf")}, "there is no file"),
        ({"path": str(broken)}, "."),
        ({"path": str(adapter), "scale": "much"}, "scale is a number"),
        ({"path": str(adapter), "scale": 1e9}, "scale is a number"),
        ({"path": str(adapter), "model": "no-such"}, "no-such"),
    ):
        with pytest.raises(NodeError, match=reason) as refused:
            alpha.api.post("/command/add_adapter", {"model": DEMO, **wish})
        assert 400 <= refused.value.status < 500
    assert alpha.api.post("/command/adapters", {})["adapters"] == []
    command = [
        sys.executable,
        "-m",
        "p2pnode",
        "adapters",
        "remove",
        DEMO,
        "pirate",
        "--data",
        str(alpha.data),
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode != 0
    assert "no adapter called" in found.stderr
    with pytest.raises(NodeError, match="adapters as ID@SCALE"):
        alpha.api.post("/plan", {"model": DEMO, "mode": "local", "engine": {"lora": "../../etc/passwd"}})


def test_a_control_vector_acts_where_one_device_has_all_layers(mesh: MeshOfProcesses, tmp_path: Path) -> None:
    alpha = mesh.nodes[0]
    base = open_model(DEMO_FILE)[0]
    usual = numbers_of(alpha, "local")
    vector = tmp_path / "calm.gguf"
    vector.write_bytes(control_bytes(base, base.parameter_int("embedding_length")))
    added = alpha.cli("adapters", "add", DEMO, str(vector), "--scale", "0.2")
    (row,) = alpha.cli("adapters", "list")["adapters"]
    assert (row["kind"], row["name"], row["adapter"]) == ("control vector", "calm", added["adapter"])
    assert numbers_of(alpha, "local") != same(usual)
    plan = {"model": DEMO, "mode": "pipeline", "devices": ["alpha", "beta"], "stages": 2, "apply": True}
    with pytest.raises(NodeError, match="one device has all layers"):
        alpha.api.post("/plan", plan)
    alpha.cli("adapters", "add", DEMO, str(vector), "--scale", "0")
    assert numbers_of(alpha, "local") == same(usual)
    alpha.cli("adapters", "remove", DEMO, "calm")
    assert numbers_of(alpha, "local") == same(usual)
    vector.write_bytes(control_bytes(base, 64))
    with pytest.raises(NodeError, match="does not fit this model"):
        alpha.api.post("/command/add_adapter", {"model": DEMO, "path": str(vector)})


def control_bytes(base: ModelIndex, width: int) -> bytes:
    """Directions for two layers, as llama.cpp's generator writes them."""
    values = {"general.architecture": "controlvector", "controlvector.model_hint": base.architecture}
    entries = [scalar(key, ValueType.STRING, value) for key, value in values.items()]
    rows = np.random.default_rng(3).standard_normal((2, width), dtype=np.float32)
    infos = [(f"direction.{layer}", (width,), F32, 4 * width) for layer in (1, 2)]
    header, _ = header_bytes(entries, infos, 32)
    return header + rows.tobytes()


def test_an_adapter_acts_alike_in_a_group(mesh: MeshOfProcesses, tmp_path: Path) -> None:
    """Ranks have their shards of it, whatever their shares are: in F32, where sums differ least from those of one."""
    alpha, name = mesh.nodes[0], "wide"
    toy = Toy(
        "llama", text=True, vocabulary=320, layers=8, width=256, heads=8, kv_heads=4, head_width=32, ff=768
    )
    model = write_model(tmp_path / f"{name}.gguf", toy)
    alpha.cli("pull", str(model))
    usual = numbers_of(alpha, "local", model=name)
    adapter = tmp_path / "pirate.gguf"
    adapter.write_bytes(adapter_bytes(open_model(model)[0], ("attn_q.weight", "ffn_up.weight")))
    alpha.cli("adapters", "add", name, str(adapter), "--scale", "0.2")
    alone = numbers_of(alpha, "local", model=name)
    assert max(abs(a - b) for a, b in zip(alone, usual, strict=True)) > 0.5
    alpha.api.post("/plan", {"model": name, "mode": "tensor", "devices": ["alpha", "beta"], "apply": True})
    assert numbers_of(alpha, "tensor", model=name) == pytest.approx(alone, abs=0.02)
