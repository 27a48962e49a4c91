"""Wishes that no mesh can fulfil are refused in words a person understands: each kind once, as a person would ask."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnode.endpoint import NodeError
from p2pnode.errors import EngineIncompatible
from p2pnode.node.planning import PlanRequest
from tests.kit.mesh import MeshOfProcesses, NodeProcess
from tests.kit.net import until
from tests.kit.node_here import node_here

DEMO = "p2pnode-demo"


def said(node: NodeProcess, *arguments: str) -> str:
    """What a person reads when a command is refused."""
    command = [sys.executable, "-m", "p2pnode", *arguments, "--data", str(node.data)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode == 1, found.stdout
    assert "Traceback" not in found.stderr
    assert not found.stdout.strip()
    return found.stderr


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    """Gamma's llama.cpp says that it is another one: it finds that package's version first."""
    folder = tmp_path_factory.mktemp("refusals")
    package = folder / "other" / "llama_cpp_python-0.0.1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 0.0.1\n")
    made = MeshOfProcesses(folder)
    try:
        made.first("alpha")
        made.join("beta")
        with pytest.MonkeyPatch.context() as changed:
            before = os.environ.get("PYTHONPATH", "")
            changed.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(package.parent), before])))
            made.join("gamma")
        for node in made.nodes:
            node.online(3)
        yield made
    finally:
        for node in reversed(made.nodes):
            node.stop()


def test_a_model_nobody_has(mesh: MeshOfProcesses) -> None:
    words = said(mesh.nodes[0], "plan", "no-such-model")
    assert "no device of this mesh has a model named 'no-such-model'" in words
    assert "p2pnode models" in words
    for path, wish in (
        ("/infer", {"prompt": "x"}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/plan", {}),
    ):
        with pytest.raises(
            NodeError, match="no device of this mesh has a model named 'no-such-model'"
        ) as caught:
            mesh.nodes[0].api.post(path, {"model": "no-such-model", **wish})
        assert caught.value.status == 404


def test_a_context_that_is_too_long(mesh: MeshOfProcesses) -> None:
    words = said(mesh.nodes[0], "plan", DEMO, "--context", "1000000")
    assert f"a context of 1000000 tokens was asked for, {DEMO} was made for" in words
    assert "hint:" in words


def test_a_model_too_large_everywhere(mesh: MeshOfProcesses) -> None:
    caps = [part for name in ("alpha", "beta", "gamma") for part in ("--max-memory", f"{name}=20M")]
    words = said(mesh.nodes[0], "plan", DEMO, *caps)
    assert f"no plan for {DEMO}: " in words
    assert "needs" in words
    assert "free" in words


def test_another_llama_cpp_is_left_out_of_plans(mesh: MeshOfProcesses) -> None:
    alpha = mesh.nodes[0]
    words = said(alpha, "plan", DEMO, "--mode", "pipeline", "--devices", "alpha,gamma")
    assert "gamma was asked for, but its llama.cpp is 0.0.1" in words
    assert "texts could differ" in words
    assert "p2pnode set plan.versions any" in words
    left_out = alpha.api.post("/plan", {"model": DEMO, "why": True})["rejections"]
    assert any(r["candidate"] == "gamma" and "its llama.cpp is 0.0.1" in r["reason"] for r in left_out)


async def test_another_llama_cpp_refuses_a_stage_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that planned before it knew, or that does not look: the device refuses before it fetches anything."""
    async with node_here(tmp_path / "head", "head") as head:
        invite = await head.mesh.invite(uses=1, expires_s=600, role="worker", label="")
        async with node_here(tmp_path / "host", "host", ticket=invite["ticket"]) as host:
            await until(lambda: host.me in head.links.links and head.links.links[host.me].status is not None)
            monkeypatch.setattr("p2pnode.node.rings.engine_version", lambda: "0.3.0")
            model = head.catalog.resolve(DEMO)
            wish = PlanRequest(model=DEMO, mode="pipeline", devices=["head", "host"])
            with pytest.raises(
                EngineIncompatible, match=r"this device computes with llama\.cpp .* with 0\.3\.0"
            ):
                await head.choosing.activate(model, wish)
            assert not host.hosting.stages
            assert not host.catalog.bytes_fetched


def test_another_llama_cpp_computes_where_somebody_allows_it(mesh: MeshOfProcesses) -> None:
    alpha = mesh.nodes[0]
    alpha.cli("set", "plan.versions", "any")
    try:
        wish = {"model": DEMO, "mode": "pipeline", "devices": ["alpha", "gamma"], "apply": True}
        plan = alpha.api.post("/plan", wish)
        assert any("texts may differ from one device's" in text for text in plan["reasons"])
        assert alpha.infer(DEMO, "What is a mesh?")["usage"]["completion_tokens"] > 5
        alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})
    finally:
        alpha.cli("set", "plan.versions", "same")


def test_a_setting_that_is_no_word(mesh: MeshOfProcesses) -> None:
    words = said(mesh.nodes[0], "set", "plan.battery", "sometimes")
    assert "plan.battery is one of avoid, use, never, not 'sometimes'" in words


def test_parts_of_a_model_that_nobody_completes(mesh: MeshOfProcesses) -> None:
    """Beta holds a slice; when the only whole copy goes, that is said, and not waited for."""
    alpha, beta, _ = mesh.nodes
    wish = {"model": DEMO, "mode": "pipeline", "devices": ["alpha", "beta"], "apply": True}
    alpha.api.post("/plan", wish)
    alpha.stop()
    beta.until("alpha to be away", "/peers", lambda v: any(
        p["name"] == "alpha" and p["state"] == "offline" for p in v["peers"]), within_s=60)  # fmt: skip
    words = said(beta, "run", DEMO, "Hello")
    assert " MB of this model could not be fetched: " in words
    assert "start a device that holds the model" in words
