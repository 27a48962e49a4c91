"""Devices time real layers of models they do not hold, and the ways to each other; all of it is told and recorded."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from p2pnode.machine import now_ms
from tests.kit.mesh import MeshOfProcesses, NodeProcess

DEMO = "p2pnode-demo"


def peer_named(view: dict[str, Any], name: str) -> dict[str, Any]:
    return next(peer for peer in view["peers"] if peer["name"] == name)


def test_speeds_and_links_are_measured_told_and_recorded(tmp_path: Path) -> None:
    mesh = MeshOfProcesses(tmp_path)
    with contextlib.ExitStack() as ending:
        ending.callback(lambda: [node.stop() for node in reversed(mesh.nodes)])
        alpha = mesh.first()
        beta = mesh.join("beta", "--metered")
        (manifest,) = [m["manifest"] for m in alpha.api.get("/models")["models"] if m["name"] == DEMO]

        def is_measured(view: dict[str, Any]) -> bool:
            entry = peer_named(view, "beta")
            return manifest in entry.get("capability", {}).get("rates", {}) and bool(entry["measured"])

        entry = peer_named(alpha.until("measurements of beta", "/peers", is_measured, within_s=60), "beta")
        decode, prefill, overhead = entry["capability"]["rates"][manifest]
        assert decode > 0
        assert prefill > decode
        assert 0 < overhead < 1
        assert entry["capability"]["is_metered"] is True
        assert entry["link"]["rtt_ms"] > 0
        assert entry["link"]["bytes_per_s"] > 0
        assert entry["measured"]["bytes_per_s"] > 0
        (fact,) = [e for e in alpha.events("PeerMeasured") if e["data"]["peer"] == entry["peer"]]
        assert fact["data"]["rtt_us"] > 0
        # Timed from the manifest alone: no weight came over the wire for it.
        models = beta.api.get("/models")["models"]
        assert next(m for m in models if m["name"] == DEMO)["here"] == "part"
        remembered = json.loads((beta.data / "rates.json").read_text())
        context = entry["capability"]["context_rates"][manifest]
        assert context > 0
        assert remembered[manifest]["rates"] == [decode, prefill, overhead, context]
        answer = alpha.api.post("/plan", {"model": DEMO, "why": True})
        reasons = {r["candidate"]: r["reason"] for r in answer["rejections"]}
        assert (
            reasons["beta"] == "its traffic costs money, and it would have to fetch: it lacks 8 of 8 layers"
        )


def rate_of(node: NodeProcess, manifest: str) -> float:
    return float(node.api.get("/status")["capability"].get("rates", {}).get(manifest, [0.0])[0])


def until_timed(node: NodeProcess, manifest: str) -> float:
    node.until("its speed", "/status", lambda v: manifest in v["capability"].get("rates", {}), within_s=60)
    return rate_of(node, manifest)


def test_a_speed_that_was_measured_far_too_low_is_corrected_by_a_request(tmp_path: Path) -> None:
    """As on a machine that compiled something while it was timed: no restart, no command."""
    node = NodeProcess(tmp_path, "alpha")
    try:
        (manifest,) = [m["manifest"] for m in node.api.get("/models")["models"] if m["name"] == DEMO]
        true_rate = until_timed(node, manifest)
        node.stop()
        file = node.data / "rates.json"
        document = json.loads(file.read_text())
        document[manifest]["rates"][0] = true_rate / 50
        document[manifest] |= {"spread": 1.0, "load": 0.0, "tries": 0, "at_ms": now_ms() - 60_000}
        document[manifest]["due_ms"] = now_ms() + 24 * 3600 * 1000
        file.write_text(json.dumps(document))

        node = NodeProcess(tmp_path, "alpha")
        assert until_timed(node, manifest) == true_rate / 50
        before = node.api.post("/plan", {"model": DEMO})["prediction"]["tokens_per_s"]
        node.infer(DEMO, "Tell me a story about the sea.")
        node.until(
            "another timing",
            "/status",
            lambda v: v["capability"]["rates"][manifest][0] > true_rate / 10,
            within_s=90,
        )
        assert node.api.post("/plan", {"model": DEMO})["prediction"]["tokens_per_s"] > 2 * before
        assert node.process.poll() is None
    finally:
        node.stop()
