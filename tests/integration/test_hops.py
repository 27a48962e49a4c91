"""The hops of a real pipeline's answer: live, as a metric, and as a trace of one request."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import P2PNodeError
from tests.kit.mesh import MeshOfProcesses, NodeProcess, mesh_of

MODEL = "p2pnode-demo"
WIDTH = 128
"""Bytes of a row are at least as many as the model has columns."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    with mesh_of(tmp_path_factory.mktemp("hops"), "alpha", "beta", "gamma") as mesh:
        # The head first: every device is sent rows, where a first stage elsewhere would be sent tokens alone.
        blocks = [["alpha", 0, 3], ["beta", 3, 6], ["gamma", 6, 8]]
        mesh.nodes[0].api.post("/plan", {"model": MODEL, "blocks": blocks, "apply": True})
        yield mesh


def test_an_answer_is_seen_hop_by_hop(mesh: MeshOfProcesses, tmp_path: Path) -> None:
    head = mesh.nodes[0]
    seen: list[dict[str, Any]] = []
    ready, enough = threading.Event(), threading.Event()

    def watch() -> None:
        feed = head.api.stream("/api/live")
        for item in feed:
            ready.set()
            if item["kind"] == "hops":
                seen.append(item["data"])
                enough.set()
                break
        feed.close()  # type: ignore[attr-defined]

    thread = threading.Thread(target=watch)
    thread.start()
    request_id = ""
    while not enough.is_set():
        answer = head.infer(MODEL, "Tell me a long story.", max_tokens=200)
        request_id = answer["request_id"]
    thread.join(30)
    by_stage = {hop["stage"]: hop for hop in seen[0]["hops"]}
    assert {"0", "1", "2", "output"} == set(by_stage)
    assert {hop["name"] for hop in by_stage.values()} == {"alpha", "beta", "gamma"}
    assert all(hop["steps"] > 0 and hop["step_ms"] > 0 and 0 < hop["busy"] <= 1 for hop in by_stage.values())
    assert min(hop["layers"] for hop in by_stage.values()) == [0, 0]
    text = head.api.get("/metrics")
    appended = next(line for line in text.splitlines() if line.startswith("p2pnode_log_append_seconds_count"))
    assert float(appended.split()[1]) > 0
    for stage in by_stage:
        count = next(
            line
            for line in text.splitlines()
            if line.startswith(f'p2pnode_hop_seconds_count{{stage="{stage}"}}')
        )
        assert float(count.split()[1]) > 0

    trace = head.api.get(f"/sessions/{request_id}/trace")
    spans = {event["name"]: event for event in trace["traceEvents"] if event["ph"] == "X"}
    assert spans["prefill"]["dur"] > 0
    assert spans["decode"]["args"]["tokens"] == answer["usage"]["completion_tokens"]
    assert trace["otherData"]["request_id"] == request_id
    head.until(
        "a trace with hops",
        f"/sessions/{request_id}/trace",
        lambda found: len({e["name"] for e in found["traceEvents"] if e["ph"] == "C"}) >= 8,
    )
    json.dumps(trace)


def test_bytes_of_tensors_are_counted(mesh: MeshOfProcesses) -> None:
    """Decoded rows pass by lanes, prompts by streams; both ends count them, an idle device none."""

    def moved(node: NodeProcess) -> dict[tuple[str, str], float]:
        found = re.findall(
            r'^p2pnode_tensor_bytes_total\{direction="(\w+)",way="(\w+)"\} (\S+)$',
            node.api.get("/metrics"),
            re.MULTILINE,
        )
        return {(direction, way): float(value) for direction, way, value in found}

    before = [moved(node) for node in mesh.nodes]
    head = mesh.nodes[0]
    tokens = head.infer(MODEL, "Tell me a long story.", max_tokens=100)["usage"]["completion_tokens"]
    assert tokens > 10
    for node, was in zip(mesh.nodes, before, strict=True):
        grown = {key: value - was[key] for key, value in moved(node).items()}
        assert set(grown) == {(d, w) for d in ("received", "sent") for w in ("lane", "stream")}
        assert sum(v for (d, _), v in grown.items() if d == "sent") > tokens * WIDTH, node.name
        assert sum(v for (d, _), v in grown.items() if d == "received") > tokens * WIDTH, node.name
        assert all(grown[direction, "lane"] > 0 for direction in ("received", "sent")), node.name


def test_only_the_head_is_told(mesh: MeshOfProcesses) -> None:
    """A request that nobody knows has no trace; another device's traces are its own."""
    for node in mesh.nodes[:2]:
        with pytest.raises(P2PNodeError, match="no trace"):
            node.api.get("/sessions/chatcmpl-none/trace")
