"""A model that another device makes ready for a request of ours: its progress is ours, and silence is broken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from p2pnode import limits
from p2pnode.facade import Finished, GenerateEvent, Loading, TextDelta
from p2pnode.node.federation import never_silent
from p2pnode.node.loading import Loads

VIEW = {
    "state": "fetching",
    "node": "attic",
    "progress": 0.5,
    "eta_s": None,
    "done_bytes": 5,
    "total_bytes": 10,
}
END = Finished("stop", 1, 1, 0, "local", [], 0.1, 0.1, "r")


class Serving:
    """A generation that begins when told to."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.is_closed = False

    async def events(self) -> AsyncIterator[GenerateEvent]:
        try:
            await self.ready.wait()
            yield TextDelta("hello", 1)
            yield END
        finally:
            self.is_closed = True


async def test_each_view_is_told_once_and_then_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "API_LOADING_LOOK_S", 0.001)
    serving = Serving()
    views = [None, VIEW, VIEW, VIEW | {"progress": 0.75}]

    def look() -> Mapping[str, Any] | None:
        if len(views) == 1:
            serving.ready.set()
        return views.pop(0) if views else None

    heard = [event async for event in never_silent(serving.events(), look)]
    assert [event.view() for event in heard if isinstance(event, Loading)] == [
        VIEW,
        VIEW | {"progress": 0.75},
    ]
    assert heard[2:] == [TextDelta("hello", 1), END]


async def test_a_long_wait_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller gives up a stream that says nothing; one that waits for its turn says at least that."""
    monkeypatch.setattr(limits, "API_LOADING_LOOK_S", 0.001)
    monkeypatch.setattr(limits, "WAIT_TOLD_EVERY_S", 0.0)
    serving = Serving()
    events = never_silent(serving.events(), lambda: None)
    assert await anext(events) is None
    assert await anext(events) is None
    await events.aclose()
    assert serving.is_closed, "who goes away ends the work"


def test_what_another_device_says_is_shown_here() -> None:
    said: list[dict[str, Any]] = []
    loads = Loads(kind="loading", name="kitchen", say=said.append, clock=lambda: 0.0)
    with loads.elsewhere("m") as hear:
        hear(VIEW)
        assert loads.view("m") == VIEW
        hear(VIEW | {"progress": 0.6})
        assert loads.view("m") == VIEW | {"progress": 0.6}
        hear({"state": "loading", "node": "attic", "progress": 0.0, "eta_s": None})
    assert loads.view("m") is None
    assert [item["data"]["state"] for item in said] == ["fetching", "loading", "over"]


def test_own_work_goes_before_what_is_heard() -> None:
    loads = Loads(kind="loading", name="kitchen", say=lambda _: None, clock=lambda: 0.0)
    with loads.elsewhere("m") as hear, loads.of("m") as say:
        hear(VIEW)
        say({"state": "loading", "progress": 0.1})
        assert loads.view("m") == {"state": "loading", "node": "kitchen", "progress": 0.1, "eta_s": None}
