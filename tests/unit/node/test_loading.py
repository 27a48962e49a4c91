"""Progress that people believe: it never goes back, and no time is told that is not known."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnode.node.loading import Loads


class World:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.said: list[dict[str, Any]] = []
        self.loads = Loads(kind="loading", name="studio", say=self.said.append, clock=lambda: self.now_s)

    def view(self) -> dict[str, Any]:
        view = self.loads.view("m")
        assert view is not None
        return view


def test_nothing_loads() -> None:
    assert World().loads.view("m") is None


def test_before_the_first_report() -> None:
    """It is known that something is done, and nothing more."""
    world = World()
    with world.loads.of("m"):
        assert world.view() == {"state": "preparing", "node": "studio", "progress": None, "eta_s": None}
    assert world.loads.view("m") is None
    assert world.said == []


def test_progress_never_goes_back_and_time_is_measured() -> None:
    world = World()
    with world.loads.of("m") as say:
        say({"state": "loading", "progress": 0.0})
        world.now_s += 0.5
        say({"state": "loading", "progress": 0.4})
        assert world.view() | {"progress": 0.4, "eta_s": None} == world.view(), "half a second is no pace yet"
        world.now_s += 1.5
        say({"state": "loading", "progress": 0.5})
        assert world.view()["eta_s"] == pytest.approx(2.0)
        say({"state": "loading", "progress": 0.3})
        assert world.view()["progress"] == 0.5
        world.now_s += 1.0
        assert world.view()["eta_s"] == pytest.approx(1.0)
        world.now_s += 60.0
        assert world.view()["eta_s"] is None, "it stands still"
    assert world.said[-1] == {"kind": "loading", "data": {"model": "m", "state": "over"}}


def test_the_device_that_is_furthest_behind() -> None:
    """Fetching comes before loading; of two that load, the slower one is what is waited for."""
    world = World()
    with world.loads.of("m") as say:
        say({"state": "loading", "progress": 0.1})
        say({"name": "kitchen", "state": "fetching", "done": 90, "total": 100})
        assert (world.view()["node"], world.view()["done_bytes"], world.view()["total_bytes"]) == (
            "kitchen",
            90,
            100,
        )
        say({"name": "kitchen", "state": "loading", "done": 500, "total": 1000})
        assert (world.view()["node"], world.view()["progress"]) == ("studio", 0.1)
        assert "done_bytes" not in world.view()


def test_two_that_wait_for_the_same() -> None:
    """It is over when the last one is; live readers are not told every small step."""
    world = World()
    with world.loads.of("m") as first, world.loads.of("m"):
        for number in range(100):
            first({"state": "loading", "progress": number / 100})
        assert len(world.said) == 1
    assert world.loads.view("m") is None
    assert [item["data"]["state"] for item in world.said] == ["loading", "over"]
