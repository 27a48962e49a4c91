"""A device that says nothing any more: shown as it is, gone soon, and back when it is back."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from p2pnode.cli.mesh_commands import peer_state
from tests.kit.mesh import NodeProcess, mesh_of


def entry_of(view: dict[str, Any], name: str) -> dict[str, Any]:
    return next(peer for peer in view["peers"] if peer["name"] == name)


def until_state(node: NodeProcess, name: str, state: str) -> dict[str, Any]:
    view = node.until(f"{name} {state}", "/peers", lambda v: entry_of(v, name)["state"] == state)
    return entry_of(view, name)


def lost(log: dict[str, Any], node: NodeProcess) -> list[dict[str, Any]]:
    return [e for e in log["entries"] if e["type"] == "PeerLost" and e["data"]["peer"] == node.peer_id]


def test_a_killed_device_is_suspect_and_then_offline(tmp_path: Path) -> None:
    with mesh_of(tmp_path, "alpha", "beta", "gamma") as mesh:
        alpha, beta, gamma = mesh.nodes
        beta.kill()
        suspect = until_state(alpha, "beta", "suspect")
        assert suspect["silent_ms"] >= 2000
        assert suspect["lost_reason"] == f"silent for {suspect['silent_ms'] / 1000:.0f} s"
        assert peer_state(suspect) == f"suspect, {suspect['lost_reason']}"
        reasons = {
            r["candidate"]: r["reason"]
            for r in alpha.api.post("/plan", {"model": "p2pnode-demo", "why": True})["rejections"]
        }
        assert reasons["beta"].startswith("it may be gone: silent for ")
        gone = until_state(alpha, "beta", "offline")
        assert gone["lost_reason"].startswith("silent for ")
        told = alpha.until("the loss in the record", "/log/entries?limit=1000", lambda v: lost(v, beta))
        (fact,) = lost(told, beta)  # shown a moment before it is recorded
        assert fact["data"]["reason"] == gone["lost_reason"]
        assert entry_of(alpha.api.get("/peers"), "gamma")["state"] == "online"
        assert gamma.process.poll() is None
        mesh.nodes.remove(beta)


def test_a_frozen_device_comes_back_by_itself(tmp_path: Path) -> None:
    with mesh_of(tmp_path, "alpha", "beta") as mesh:
        alpha, beta = mesh.nodes
        beta.process.send_signal(signal.SIGSTOP)
        until_state(alpha, "beta", "suspect")
        beta.process.send_signal(signal.SIGCONT)
        until_state(alpha, "beta", "online")
        beta.process.send_signal(signal.SIGSTOP)
        until_state(alpha, "beta", "offline")
        beta.process.send_signal(signal.SIGCONT)
        until_state(alpha, "beta", "online")
        until_state(beta, "alpha", "online")
