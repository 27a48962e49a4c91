"""Devices time real layers of models they do not hold, and the ways to each other; all of it is told and recorded."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from tests.kit.mesh import MeshOfProcesses

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
        assert remembered[manifest]["rates"] == [decode, prefill, overhead]
        answer = alpha.api.post("/plan", {"model": DEMO, "why": True})
        reasons = {r["candidate"]: r["reason"] for r in answer["rejections"]}
        assert (
            reasons["beta"] == "its traffic costs money, and it would have to fetch: it lacks 8 of 8 layers"
        )
