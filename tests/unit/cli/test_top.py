"""The live screen, driven by Textual's pilot against a real server around a fake node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, RichLog, Static

from p2pnode.cli.top_app import MeshTop
from p2pnode.config import parse_host_port
from p2pnode.endpoint import Endpoint
from tests.kit.api_server import serving
from tests.kit.fake_node import MODEL, PEER, FakeNode

HOPS = {
    "plan_id": "p1", "model": MODEL, "token_ms": 6.0, "rest_ms": 1.0,
    "hops": [{"stage": "0", "peer": PEER, "name": "studio", "layers": [0, 4], "steps": 9, "step_ms": 1.5, "busy": 0.4}],
}  # fmt: skip
LOADING = {"model": MODEL, "state": "loading", "node": "kitchen", "progress": 0.5, "eta_s": None}


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def app(node: FakeNode) -> Iterator[MeshTop]:
    with serving(node) as url:
        yield MeshTop(Endpoint(*parse_host_port(url)), 0.05)


async def until(pilot: Pilot[None], holds: Callable[[], Any]) -> None:
    for _ in range(2400):
        if holds():
            return
        await pilot.pause(0.025)
    raise AssertionError("it did not come about")


def text(app: MeshTop, name: str) -> str:
    return str(app.query_one(f"#{name}", Static).content)


@pytest.mark.parametrize(("columns", "is_stacked"), [(80, True), (120, False)])
async def test_tables_that_do_not_fit_side_by_side_stand_one_above_the_other(
    app: MeshTop, columns: int, is_stacked: bool
) -> None:
    async with app.run_test(size=(columns, 40)) as pilot:
        await pilot.pause()
        devices, answers = app.query_one("#devices").region, app.query_one("#answers").region
        assert (answers.y > devices.y) is is_stacked
        assert (answers.x == devices.x) is is_stacked


async def test_screen(app: MeshTop, node: FakeNode) -> None:
    """Devices, the plan's hops, what loads, answers being written and events are on it; keys hold and hide."""
    node.live_items += [{"kind": "hops", "data": HOPS}, {"kind": "loading", "data": LOADING}]
    running = node.sessions()["sessions"][0] | {"state": "running", "completion_tokens": 7}
    node.shown["sessions"] = {"sessions": [running], "finished": 3, "failed": 1}
    async with app.run_test(size=(120, 40)) as pilot:
        devices, answers = app.query_one("#devices", DataTable), app.query_one("#answers", DataTable)
        await until(pilot, lambda: devices.row_count == 2 and answers.row_count == 1)
        assert "2 of 2 devices, 1 answer being written, 10.0 tokens/s, 3 done, 1 failed" in text(app, "pulse")
        await until(pilot, lambda: "1.50 ms a step, 40% busy" in text(app, "now"))
        assert "loading on kitchen  50%" in text(app, "now")
        log = app.query_one("#events", RichLog)
        await until(pilot, lambda: any("NodeStarted" in line.text for line in log.lines))
        await pilot.press("e")
        assert not log.display
        await pilot.press("space")
        assert "held" in text(app, "pulse")
        node.shown["sessions"] = {"sessions": [], "finished": 4, "failed": 1}
        await pilot.pause(0.2)
        assert answers.row_count == 1
        await pilot.press("space")
        await until(pilot, lambda: answers.row_count == 0)
        await pilot.press("q")
    assert app.return_code == 0


async def test_a_node_that_goes_away_and_comes_back(app: MeshTop, node: FakeNode) -> None:
    """The screen says so and goes on; a terminal of any size holds it."""
    async with app.run_test(size=(50, 14)) as pilot:
        await until(pilot, lambda: app.query_one("#devices", DataTable).row_count == 2)
        node.shown["status"] = ValueError("away")
        await until(pilot, lambda: "trying again" in text(app, "pulse"))
        del node.shown["status"]
        await until(pilot, lambda: "2 of 2 devices" in text(app, "pulse"))


def test_without_textual(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], app: MeshTop
) -> None:
    """`--once` and a pipe draw the same facts without it."""
    import sys

    from p2pnode.cli.main import run_command

    monkeypatch.setitem(sys.modules, "textual.app", None)
    monkeypatch.delitem(sys.modules, "p2pnode.cli.top_app")
    assert run_command(["top", "--once", "--api", f"{app._node.host}:{app._node.port}"]) == 0
    assert "kitchen" in capsys.readouterr().out
