"""Both directions of each link, of real processes: one way that is closed, and a device that stops."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnode.cli.main import run_command
from tests.integration.test_survival_paths import free_udp_port, relay
from tests.kit.mesh import MeshOfProcesses, NodeProcess


def link(view: dict[str, Any], one: NodeProcess, other: NodeProcess) -> dict[str, Any]:
    found = [row for row in view["links"] if set(row["peers"]) == {one.peer_id, other.peer_id}]
    return found[0] if found else {"state": "", "directions": []}


def way(view: dict[str, Any], one: NodeProcess, other: NodeProcess) -> dict[str, Any]:
    """From one to the other."""
    ways = link(view, one, other)["directions"]
    return next((found for found in ways if found["from"] == one.peer_id), {"state": ""})


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[MeshOfProcesses]:
    mesh = MeshOfProcesses(tmp_path)
    yield mesh
    for node in reversed(mesh.nodes):
        node.stop()


def test_a_direction_that_is_closed_is_shown_by_all_with_its_reason(
    mesh: MeshOfProcesses, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gamma announces a port where nobody answers and calls the others itself; a relay at that port opens the way."""
    inside, outside = free_udp_port(), free_udp_port()
    announced = f"/ip4/127.0.0.1/udp/{outside}/quic-v1"
    alpha, beta = mesh.first("alpha"), mesh.join("beta")
    gamma = mesh.join("gamma", "--listen", f"/ip4/127.0.0.1/udp/{inside}/quic-v1", "--announce", announced)
    for node in mesh.nodes:
        node.online(3)

    nobody = [{"address": announced, "reason": "nothing listens there"}]

    def is_one_way(view: dict[str, Any]) -> bool:
        """With the lasting reason: who joined a moment ago is not listened to for some seconds."""
        rows = [link(view, node, gamma) for node in (alpha, beta)]
        ways = [found for row in rows for found in row["directions"]]
        reasons = [way(view, node, gamma).get("tried") for node in (alpha, beta)]
        is_answered = all(found["last_good_ms"] for found in ways)
        states = [row["state"] for row in (*rows, link(view, alpha, beta))]
        return states == ["one_way", "one_way", "both"] and reasons == [nobody] * 2 and is_answered

    for node in mesh.nodes:
        view = node.until("one way to gamma", "/peers", is_one_way)
        open_way, closed = way(view, gamma, alpha), way(view, alpha, gamma)
        assert (open_way["state"], open_way["opened"], open_way["tried"]) == ("ok", True, [])
        assert (closed["state"], closed["opened"]) == ("unreachable", False)
        for found in (open_way, closed):
            assert found["rtt_ms"] > 0
            assert found["last_good_ms"] > 1_600_000_000_000
            assert found["told_by"] == found["from"]
    data = ["--data", str(alpha.data)]
    assert run_command(["peers", *data]) == 0
    assert "one way: from it" in capsys.readouterr().out
    assert run_command(["peers", "--links", *data]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    (row,) = [row for row in rows if row[:2] == ["alpha", "gamma"]]
    assert (row[2], row[5]) == ("not reachable", f"{announced}: nothing listens there")
    run_command(["doctor", *data])
    assert "this device does not reach gamma by itself" in capsys.readouterr().out
    metrics = alpha.api.get("/metrics")
    short = gamma.peer_id[-8:]
    assert f'p2pnode_link_reachable{{direction="out",peer="{short}"}} 0.0' in metrics
    assert f'p2pnode_link_reachable{{direction="in",peer="{short}"}} 1.0' in metrics
    with relay(outside, inside):
        alpha.until("both ways", "/peers", lambda v: link(v, alpha, gamma)["state"] == "both", within_s=90.0)


def test_a_stopped_device_is_reached_by_nobody_and_what_it_said_grows_old(mesh: MeshOfProcesses) -> None:
    """Its last word is kept with its time; the others say themselves why they do not reach it."""
    alpha, beta, gamma = mesh.first("alpha"), mesh.join("beta"), mesh.join("gamma")
    for node in mesh.nodes:
        node.online(3)
    alpha.until("all both ways", "/peers", lambda v: [row["state"] for row in v["links"]] == ["both"] * 3)
    gamma.process.send_signal(signal.SIGSTOP)
    try:
        view = alpha.until(
            "nobody reaches it",
            "/peers",
            lambda v: link(v, alpha, gamma)["state"] == link(v, beta, gamma)["state"] == "none",
            within_s=90.0,
        )
        assert way(view, alpha, gamma)["state"] == way(view, beta, gamma)["state"] == "unreachable"
        assert all(entry["reason"] for entry in way(view, beta, gamma)["tried"])
        last = way(view, gamma, alpha)
        assert last["state"] == "unknown"
        assert last["last_good_ms"] <= last["told_ms"]
    finally:
        gamma.process.send_signal(signal.SIGCONT)
    alpha.until(
        "all both ways again",
        "/peers",
        lambda v: [row["state"] for row in v["links"]] == ["both"] * 3,
        within_s=120.0,
    )
