"""Tensor groups over real QUIC and real lanes: the same greedy text as one device alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnode.models.importer import read_manifest
from tests.kit.mesh import MeshOfProcesses, NodeProcess, kill_now, mesh_of

DEMO = "p2pnode-demo"
DEMO_FILE = Path(__file__).parents[2] / "models/p2pnode-demo.gguf"
PROMPT = "What is a mesh?"
NAMES = ("alpha", "beta", "gamma", "delta")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    with mesh_of(tmp_path_factory.mktemp("tensor"), *NAMES) as made:
        for node in made.nodes:
            node.api.post("/command/set", {"key": "device.timing", "value": "once"})
        made.timed()
        yield made


def apply(node: NodeProcess, **wish: Any) -> dict[str, Any]:
    plan: dict[str, Any] = node.api.post("/plan", {"model": DEMO, "apply": True, **wish})
    return plan


def test_a_rank_fetches_its_shard_once(mesh: MeshOfProcesses) -> None:
    """On the wire: the shard, the table of digests and a frame for each tile; for the same group again nothing.

    These ranks look token ids up, so the header with its vocabulary comes too.
    """
    header = read_manifest([DEMO_FILE]).files[0].header_size
    alpha, *others = mesh.nodes[:3]
    devices = [node.name for node in mesh.nodes[:3]]
    plan = apply(alpha, mode="tensor", devices=devices)
    hosted = [node.api.get("/status")["hosted_stages"][0] for node in others]
    for node, stage in zip(others, hosted, strict=True):
        (table,) = node.data.rglob("shards/*/table")
        tiles = table.stat().st_size // 32
        assert stage["bytes_wanted"] < stage["bytes_fetched"]
        assert stage["bytes_fetched"] < stage["bytes_wanted"] + header + 42 * tiles + 1000
        strips = sum(path.stat().st_size for path in table.parent.glob("*-*-*[0-9]"))
        assert strips <= stage["bytes_wanted"]
    whole = plan["stages"][0]["bytes_wanted"]
    assert sum(stage["bytes_wanted"] for stage in hosted) < whole, "two of three shards, and whole norms"
    alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})
    # Before a request teaches who is how fast: the same shares.
    again = apply(alpha, mode="tensor", devices=devices)
    assert [node.api.get("/status")["hosted_stages"][0]["bytes_fetched"] for node in others] == [0, 0]
    assert not list(alpha.data.rglob("shards/*/*.have")), "who holds the model has no need of strips"
    together = alpha.infer(DEMO, PROMPT, mode="tensor")
    assert together["text"] == alpha.infer(DEMO, PROMPT, mode="local")["text"]
    alpha.api.post("/command/release_plan", {"plan_id": again["plan_id"]})


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_group_answers_as_one(mesh: MeshOfProcesses, ranks: int) -> None:
    alpha = mesh.nodes[0]
    local = alpha.infer(DEMO, PROMPT, mode="local")
    plan = apply(alpha, mode="tensor", devices=list(NAMES[:ranks]))
    together = alpha.infer(DEMO, PROMPT, mode="tensor")
    assert together["mode"] == "tensor"
    assert {stage["name"] for stage in together["stages"]} == set(NAMES[:ranks])
    assert (together["text"], together["usage"]) == (local["text"], local["usage"])
    alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})


def test_a_pipeline_of_groups_answers_as_one(mesh: MeshOfProcesses) -> None:
    """Two stages of two devices each: rows go from group to group, sums stay inside."""
    alpha = mesh.nodes[0]
    local = alpha.infer(DEMO, PROMPT, mode="local")
    plan = apply(alpha, mode="hybrid", stages=2, devices=list(NAMES))
    together = alpha.infer(DEMO, PROMPT, mode="hybrid")
    assert together["mode"] == "hybrid"
    assert {stage["name"] for stage in together["stages"]} == set(NAMES)
    assert (together["text"], together["usage"]) == (local["text"], local["usage"])
    alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})


def test_a_lost_rank_does_not_end_the_answer(mesh: MeshOfProcesses) -> None:
    """A follower's engine is killed in the middle: the same text, from whoever is left."""
    alpha, beta = mesh.nodes[:2]
    messages = [{"role": "user", "content": PROMPT}]
    document = {"model": DEMO, "messages": messages, "temperature": 0, "max_tokens": 120}
    undisturbed = alpha.api.post("/infer", {**document, "mode": "local"})["text"]
    apply(alpha, mode="tensor", devices=["alpha", "beta"])
    pieces: list[str] = []
    for event in alpha.api.stream("/infer/stream", document):
        if event["type"] == "text":
            pieces.append(event["text"])
            if len(pieces) == 10:
                kill_now(beta.api.get("/status")["hosted_stages"][0]["engine_pid"])
    assert "".join(pieces) == undisturbed
    assert alpha.api.get("/health")["status"] == "ok"
