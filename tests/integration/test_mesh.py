"""Three devices as real processes: pipelines equal the local answer, shares are fetched, engines may die."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pnode.endpoint import NodeError
from tests.kit.mesh import MeshOfProcesses, NodeProcess, children_of, kill_now, mesh_of
from tests.kit.toy_models import TOYS, write_model

WIDE: dict[str, Any] = {
    "width": 256,
    "heads": 8,
    "kv_heads": 4,
    "head_width": 32,
    "ff": 512,
    "layers": 5,
    "vocabulary": 320,
}
FAMILIES = ("llama", "qwen2", "qwen3")
TYPES = ("F16", "Q8_0", "Q4_K")
DEMO = "p2pnode-demo"


def toy_name(family: str, kind: str) -> str:
    return f"{family}-{kind.lower()}"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    root = tmp_path_factory.mktemp("mesh")
    arguments: list[str] = []
    for seed, (family, kind) in enumerate((f, k) for f in FAMILIES for k in TYPES):
        toy = replace(TOYS[family], type=kind, seed=seed, text=True, **WIDE)
        arguments += ["--model", str(write_model(root / f"{toy_name(family, kind)}.gguf", toy))]
    with mesh_of(root, "alpha", "beta", "gamma", first_arguments=tuple(arguments)) as made:
        yield made


def apply(node: NodeProcess, model: str, *devices: str) -> dict[str, Any]:
    plan: dict[str, Any] = node.api.post(
        "/plan",
        {"model": model, "mode": "pipeline", "stages": len(devices), "devices": list(devices), "apply": True},
    )
    return plan


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_pipelines_equal_local(mesh: MeshOfProcesses, family: str, kind: str) -> None:
    """Greedy text of two and three stages is the local text, for every family and quantisation promised."""
    alpha, model = mesh.nodes[0], toy_name(family, kind)
    prompt = "The quick brown fox jumps over the lazy dog. " * 3
    local = alpha.infer(model, prompt, mode="local", raw=True, max_tokens=24)
    assert local["usage"]["completion_tokens"] > 1
    for devices in (
        ("alpha", "beta"),
        ("alpha", "beta", "gamma"),
        ("gamma", "beta"),
        ("beta", "alpha", "gamma"),
        ("gamma", "beta", "alpha"),
    ):
        plan = apply(alpha, model, *devices)
        assert [stage["name"] for stage in plan["stages"]] == list(devices)
        together = alpha.infer(model, prompt, mode="pipeline", raw=True, max_tokens=24)
        assert (together["text"], together["usage"]) == (local["text"], local["usage"]), devices
        assert [stage["name"] for stage in together["stages"]] == list(devices)
        alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})


def test_a_device_fetches_its_layers_once(mesh: MeshOfProcesses) -> None:
    """Bytes on the wire are those of the layers and little more; a second plan fetches nothing."""
    alpha = mesh.nodes[0]
    plan = apply(alpha, DEMO, "alpha", "beta", "gamma")
    for stage in plan["stages"][1:]:
        assert stage["bytes_wanted"] <= stage["bytes_fetched"] <= stage["bytes_wanted"] * 1.01 + 4096
    text = alpha.infer(DEMO, "What is a mesh?", mode="pipeline")["text"]
    assert text == alpha.infer(DEMO, "What is a mesh?", mode="local")["text"]
    alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})
    blocks = [[stage["name"], *stage["layers"]] for stage in plan["stages"]]
    again = alpha.api.post("/plan", {"model": DEMO, "blocks": blocks, "apply": True})
    assert [stage.get("bytes_fetched", 0) for stage in again["stages"]] == [0, 0, 0]
    alpha.api.post("/command/release_plan", {"plan_id": again["plan_id"]})


def test_memory_is_the_share_and_at_most_200_mb(tmp_path: Path) -> None:
    """`p2pnode status` shows what is resident and what may be: the weights of the stages here and 200 MB."""
    # A mesh of its own: heads keep whole models that were asked for before, each in an engine.
    with mesh_of(tmp_path, "alpha", "beta", "gamma") as mesh:
        alpha, beta, gamma = mesh.nodes
        plan = apply(alpha, DEMO, "alpha", "beta", "gamma")
        alpha.infer(DEMO, "What is a mesh?", mode="pipeline")
        for node, stage in zip(mesh.nodes, plan["stages"], strict=True):
            memory = node.cli("status")["memory"]
            assert stage["model_bytes"] <= memory["share_bytes"], stage["name"]
            assert memory["allowed_bytes"] == memory["share_bytes"] + 200_000_000
            assert memory["node_and_engines_bytes"] <= memory["allowed_bytes"], stage["name"]
        for node, stage in ((beta, plan["stages"][1]), (gamma, plan["stages"][2])):
            assert node.cli("status")["memory"]["share_bytes"] == stage["model_bytes"]
        alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})


def test_a_killed_engine_is_recorded_and_restarted(mesh: MeshOfProcesses) -> None:
    """kill -9 of a stage's engine: its node lives, records both facts, and serves again."""
    alpha, beta = mesh.nodes[:2]
    plan = apply(alpha, DEMO, "alpha", "beta")
    before = alpha.infer(DEMO, "What is a mesh?")
    (hosted,) = beta.api.get("/status")["hosted_stages"]
    kill_now(hosted["engine_pid"])
    beta.until(
        "a restarted engine",
        "/status",
        lambda s: s["hosted_stages"][0]["up"] and s["hosted_stages"][0]["engine_pid"] != hosted["engine_pid"],
    )
    assert {e["type"] for e in beta.events("EngineDied", "EngineRestarted")} == {
        "EngineDied",
        "EngineRestarted",
    }
    assert alpha.infer(DEMO, "What is a mesh?")["text"] == before["text"]
    plans = [p["plan_id"] for p in alpha.api.get("/plans")["plans"] if p.get("live")]
    for plan_id in {*plans, plan["plan_id"]}:
        alpha.api.post("/command/release_plan", {"plan_id": plan_id})


def test_the_head_engine_killed_between_requests(mesh: MeshOfProcesses) -> None:
    """The next request waits for the restart and answers the same."""
    alpha = mesh.nodes[0]
    before = alpha.infer(DEMO, "What is a mesh?", mode="local")["text"]
    engines = alpha.api.get("/status")["engines"]
    (pid,) = [e["pid"] for e in engines if e["purpose"] == f"{DEMO} (local)"]
    assert pid in children_of(alpha.process.pid)
    kill_now(pid)
    assert alpha.infer(DEMO, "What is a mesh?", mode="local")["text"] == before
    assert alpha.api.get("/health")["status"] == "ok"


def test_every_record_verifies_while_running(mesh: MeshOfProcesses) -> None:
    for node in mesh.nodes:
        command = [sys.executable, "-m", "p2pnode", "log", "verify", "--data", str(node.data), "--json"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr
        assert json.loads(found.stdout)["size"] > 3


def test_a_stranger_gets_nothing(mesh: MeshOfProcesses, tmp_path: Path) -> None:
    """A device of another mesh that dials a member is not let in, and says why."""
    alpha = mesh.nodes[0]
    address = alpha.hello["addresses"][0]
    stranger = NodeProcess(tmp_path, "stranger", "--peer", address)
    try:
        stranger.until(
            "the refusal", "/peers", lambda v: any(p.get("tried") for p in v["peers"]) or len(v["peers"]) == 1
        )
        assert all(p["name"] != "stranger" for p in alpha.api.get("/peers")["peers"])
        with pytest.raises(NodeError):
            stranger.api.post("/plan", {"model": toy_name("llama", "F16")})
    finally:
        assert stranger.stop() == 0


def test_a_used_ticket_is_refused(mesh: MeshOfProcesses, tmp_path: Path) -> None:
    ticket = mesh.nodes[0].invite()
    late = NodeProcess(tmp_path, "first", ticket)
    assert late.stop() == 0
    command = [sys.executable, "-m", "p2pnode", "join", ticket, "--data", str(tmp_path / "second"), "--no-mdns",
               "--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--api", "127.0.0.1:0"]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 1
    assert "used up" in found.stderr
    assert "p2pnode invite" in found.stderr
    assert "Traceback" not in found.stderr
