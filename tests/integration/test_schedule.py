"""A device lends itself in the hours that its owner named: its work moves first, and others hear until when."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from p2pnode import limits
from p2pnode.errors import RequestError
from p2pnode.node.core import Node
from p2pnode.node.faces import Faces
from tests.integration.test_survival import DEMO, answer_while, mesh
from tests.integration.test_survival_paths import pipeline
from tests.kit.mesh import MeshOfProcesses
from tests.kit.node_here import node_here

__all__ = ["mesh"]

NIGHTS = ["mon-fri 20:00-08:00"]


class Clock:
    """A Monday at an hour of it, in UTC; 24 and more are the days after it."""

    def __init__(self, hour: float) -> None:
        self.hour = hour

    def __call__(self) -> int:
        return int((datetime(2026, 11, 23, tzinfo=UTC) + timedelta(hours=self.hour)).timestamp() * 1000)


async def state_of(node: Node) -> str:
    """After all that its schedule wants done now: it drains, and pauses once nothing runs."""
    await node.lending.look()
    await node.lending.look()
    return node.state


def changes(node: Node) -> list[tuple[str, str]]:
    records = node.ledger.log.read(0, node.ledger.log.size)
    told = [(type(record.event).__name__, record.actor) for record in records]
    return [
        (name, actor) for name, actor in told if name in ("DevicePaused", "DeviceDrained", "DeviceResumed")
    ]


async def test_edges_and_the_owners_word(tmp_path: Path) -> None:
    clock = Clock(12)
    async with node_here(tmp_path, clock_ms=clock) as node:
        faces = Faces(node)
        await faces.command("schedule_set", {"entries": NIGHTS, "zone": "UTC"})
        assert await state_of(node) == "paused"
        assert changes(node) == [("DeviceDrained", "schedule"), ("DevicePaused", "schedule")]
        assert node.lending.says() == "lends itself again at 20:00 UTC"
        assert faces.peers()["peers"][0]["lending"] == "lends itself again at 20:00 UTC"

        clock.hour = 20
        assert await state_of(node) == "active"
        assert node.presence.status().extra["lending"] == "lends itself until 08:00 UTC"

        clock.hour = 22
        await faces.command("pause", {"reason": "a game"})
        assert await state_of(node) == "paused"
        assert faces.status()["schedule"]["overridden"]
        assert node.lending.says() == "lends itself again at 20:00 UTC"

        clock.hour = 24 + 9  # the edge at 8 wants what the owner wanted
        assert await state_of(node) == "paused"
        assert not faces.status()["schedule"]["overridden"]
        await faces.command("resume", {})
        assert await state_of(node) == "active"

        clock.hour = 24 + 21
        assert await state_of(node) == "active"
        clock.hour = 48 + 8
        assert await state_of(node) == "paused"
        assert changes(node)[3:] == [
            ("DevicePaused", "local"),
            ("DeviceResumed", "local"),
            ("DeviceDrained", "schedule"),
            ("DevicePaused", "schedule"),
        ]
        await faces.command("schedule_clear", {})
        assert (await state_of(node), faces.status()["schedule"]) == ("active", None)


async def test_what_was_missed_is_made_up_at_the_start(tmp_path: Path) -> None:
    clock = Clock(21)
    async with node_here(tmp_path, clock_ms=clock) as node:
        await node.lending.set(NIGHTS, "UTC")
        assert await state_of(node) == "active"
    clock.hour = 24 + 12
    async with node_here(tmp_path, clock_ms=clock) as node:
        assert await state_of(node) == "paused"
        await Faces(node).command("resume", {})
    clock.hour = 24 + 13
    async with node_here(tmp_path, clock_ms=clock) as node:
        assert await state_of(node) == "active"  # by hand, and no edge since
        await Faces(node).command("schedule_clear", {})
        await Faces(node).command("drain", {})
    async with node_here(tmp_path, clock_ms=clock) as node:
        assert (
            await state_of(node) == "draining"
        )  # without a schedule, too, the owner's word outlives a restart


async def test_what_runs_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    clock = Clock(12)
    async with node_here(tmp_path, clock_ms=clock) as node:
        node.hosting.idle.clear()
        await node.lending.set(NIGHTS, "UTC")
        assert await state_of(node) == "draining"
        clock.hour += (limits.SCHEDULE_DRAIN_S_MAX + 1) / 3600
        assert await state_of(node) == "paused"


async def test_what_cannot_be_is_refused_in_words(tmp_path: Path) -> None:
    async with node_here(tmp_path) as node:
        faces = Faces(node)
        for wrong, words in (
            ({"entries": ["mon 25:00-26:00"]}, "25:00"),
            ({"entries": ["mon all"], "zone": "Mars/Olympus"}, "time zone 'Mars/Olympus'"),
            ({"entries": ["mon all"], "zone": "../../etc/passwd"}, "time zone"),
            ({"entries": ["mon all"], "zone": "X" * 9999}, "time zone"),
            ({"entries": "mon all"}, "list of texts"),
            ({"entries": ["m" * 100_000]}, "at most"),
            ({}, "missing"),
        ):
            with pytest.raises(RequestError, match=words):
                await faces.command("schedule_set", wrong)
        with pytest.raises(RequestError, match="'moon'"):
            await faces.command("set", {"key": "device.schedule", "value": "moon all"})
        assert faces.status()["schedule"] is None
        await faces.command("set", {"key": "device.schedule", "value": "daily all in Europe/Berlin"})
        assert faces.status()["schedule"]["zone"] == "Europe/Berlin"
        assert faces.status()["schedule"]["until_ms"] is None
        await faces.command("set", {"key": "device.schedule", "value": ""})
        assert faces.status()["schedule"] is None


def test_work_moves_at_the_end_of_the_hours(mesh: MeshOfProcesses) -> None:
    alpha, _, gamma, _ = mesh.nodes
    opens = datetime.now(UTC).replace(minute=0) + timedelta(hours=3)
    hours = f"daily {opens:%H:%M}-{opens + timedelta(hours=1):%H:%M}"
    says = f"lends itself again at {opens:%H:%M} UTC"
    pipeline(alpha, "alpha", "beta", "gamma")
    undisturbed, _ = answer_while(alpha, 0, lambda: None)
    wish = {
        "entries": [hours],
        "zone": "UTC",
    }  # not by a program: on a busy machine the answer ends before it starts
    text, end = answer_while(alpha, 20, lambda: gamma.api.post("/command/schedule_set", wish))
    assert text == undisturbed
    assert "gamma" not in [stage["name"] for stage in end["stages"]]
    gamma.until("it is paused", "/status", lambda v: v["state"] == "paused")
    assert gamma.cli("schedule", "show")["schedule"]["says"] == says

    told = ("gamma", "paused", says)
    alpha.until("the head hears of it", "/peers", lambda v: told in [
        (p["name"], p.get("device_state"), p.get("lending")) for p in v["peers"]])  # fmt: skip
    shown = subprocess.run(
        [sys.executable, "-m", "p2pnode", "peers", "--data", str(alpha.data)],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"},
    ).stdout  # fmt: skip
    assert f"online, paused, {says}" in shown
    rejections = alpha.api.post("/plan", {"model": DEMO, "why": True})["rejections"]
    assert {"candidate": "gamma", "reason": f"it is paused, {says}", "numbers": {}} in rejections

    gamma.cli("schedule", "clear")
    alpha.until("gamma computes again", "/peers", lambda v: any(
        p["name"] == "gamma" and p["device_state"] == "active" for p in v["peers"]))  # fmt: skip
    pipeline(alpha, "alpha", "gamma")
