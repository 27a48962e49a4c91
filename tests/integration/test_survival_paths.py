"""More ways to lose a stage: a cut link, a device that rests, one that sleeps and comes back; and a lost head."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_survival import DEMO, MESSAGES, TOKENS, answer_while, mesh, sleep, wake
from tests.kit.mesh import MeshOfProcesses

__all__ = ["mesh"]

RELAY = Path(__file__).resolve().parents[2] / "tools" / "udp_relay.py"


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def relay(listen: int, to: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, str(RELAY), "--listen", f"127.0.0.1:{listen}", "--to", f"127.0.0.1:{to}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def pipeline(node: Any, *names: str) -> dict[str, Any]:
    document = {
        "model": DEMO,
        "mode": "pipeline",
        "devices": list(names),
        "stages": len(names),
        "apply": True,
    }
    plan: dict[str, Any] = node.api.post("/plan", document)
    return plan


def test_a_link_is_cut(tmp_path: Path) -> None:
    """Gamma lives on and is reached by nobody: all ways to it lead through one relay, which ends."""
    inside, outside = free_udp_port(), free_udp_port()
    mesh = MeshOfProcesses(tmp_path)
    with relay(outside, inside) as way:
        try:
            gamma = mesh.first(
                "gamma", "--listen", f"/ip4/127.0.0.1/udp/{inside}/quic-v1",
                "--announce", f"/ip4/127.0.0.1/udp/{outside}/quic-v1",
            )  # fmt: skip
            alpha, beta = mesh.join("alpha"), mesh.join("beta")
            for node in mesh.nodes:
                node.online(3)
            alpha.api.post("/command/pull", {"model": DEMO})
            beta.api.post("/command/pull", {"model": DEMO})
            pipeline(alpha, "alpha", "beta", "gamma")
            undisturbed, _ = answer_while(alpha, 0, lambda: None)
            text, end = answer_while(alpha, 20, way.kill)
            assert text == undisturbed
            assert "gamma" not in [stage["name"] for stage in end["stages"]]
            assert gamma.api.get("/health")["status"] == "ok"
            assert [event["type"] for event in alpha.events("StageLost", "StageRecovered")[:2]] == [
                "StageLost", "StageRecovered"
            ]  # fmt: skip
        finally:
            for node in reversed(mesh.nodes):
                node.stop()


@pytest.mark.parametrize(("command", "state"), [("pause", "paused"), ("drain", "draining")])
def test_work_moves_before_a_device_rests(mesh: MeshOfProcesses, command: str, state: str) -> None:
    alpha, _, gamma, _ = mesh.nodes
    pipeline(alpha, "alpha", "beta", "gamma")
    undisturbed, _ = answer_while(alpha, 0, lambda: None)
    text, end = answer_while(alpha, 20, lambda: gamma.api.post(f"/command/{command}", {}))
    assert text == undisturbed
    assert "gamma" not in [stage["name"] for stage in end["stages"]]
    assert gamma.api.get("/status")["state"] == state
    gamma.until("no stage is left there", "/status", lambda v: not v["hosted_stages"])
    rejections = alpha.api.post("/plan", {"model": DEMO, "why": True})["rejections"]
    assert {"candidate": "gamma", "reason": "it is paused", "numbers": {}} in rejections
    gamma.api.post("/command/resume", {})
    alpha.until("gamma computes again", "/peers", lambda v: any(
        p["name"] == "gamma" and p["device_state"] == "active" for p in v["peers"] if not p["self"]))  # fmt: skip
    pipeline(alpha, "alpha", "gamma")


def test_a_spare_holds_what_it_may_take_over(mesh: MeshOfProcesses) -> None:
    """Before anything is lost: a plan on the spare would fetch nothing."""
    alpha = mesh.nodes[0]
    plan = pipeline(alpha, "alpha", "beta")
    first, end = plan["stages"][1]["layers"]
    blocks = [[["alpha", 0, first], [name, first, end]] for name in ("gamma", "delta")]

    def lacks(cut: list[list[Any]]) -> int:
        return int(alpha.api.post("/plan", {"model": DEMO, "blocks": cut})["stages"][1]["fetch_bytes"])

    alpha.until("a spare with these layers", "/peers", lambda _: not all(lacks(cut) for cut in blocks))


def test_a_laptop_sleeps_and_comes_back(mesh: MeshOfProcesses) -> None:
    """The answer goes on without it, and later it computes again as if nothing had been."""
    alpha, _, gamma, _ = mesh.nodes
    pipeline(alpha, "alpha", "beta", "gamma")
    undisturbed, _ = answer_while(alpha, 0, lambda: None)
    text, _ = answer_while(alpha, 20, lambda: sleep(gamma))
    wake(gamma)
    assert text == undisturbed
    alpha.online(4)
    pipeline(alpha, "alpha", "gamma")
    text, end = answer_while(alpha, 0, lambda: None)
    assert text == undisturbed
    assert [stage["name"] for stage in end["stages"]] == ["alpha", "gamma"]


def test_a_lost_head_frees_every_session(mesh: MeshOfProcesses) -> None:
    alpha, beta, gamma, _ = mesh.nodes
    pipeline(alpha, "alpha", "beta", "gamma")
    events = alpha.api.stream("/infer/stream", {"model": DEMO, "messages": MESSAGES, "max_tokens": TOKENS})
    next(event for event in events if event["type"] == "text")
    for node in (beta, gamma):
        assert [stage["sessions"] for stage in node.api.get("/status")["hosted_stages"]] == [1]
    alpha.kill()
    for node in (beta, gamma):
        node.until("the session is freed", "/status", lambda v: all(
            stage["sessions"] == 0 for stage in v["hosted_stages"]), within_s=60)  # fmt: skip
