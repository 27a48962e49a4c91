"""Auto mode goes on looking whatever became of its last decision."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pnode import limits
from p2pnode.errors import StageLost
from p2pnode.node.auto_mode import AutoMode


async def test_a_plan_that_could_not_be_carried_out_does_not_end_auto_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "AUTO_INTERVAL_S", 0.0)
    said: list[dict[str, Any]] = []
    looks, again = [0], asyncio.Event()

    async def evaluate(self: AutoMode) -> str:
        looks[0] += 1
        if looks[0] > 1:
            again.set()
            return "kept"
        raise StageLost("attic went away")

    monkeypatch.setattr(AutoMode, "evaluate", evaluate)
    monkeypatch.setattr(AutoMode, "is_on", True)
    monkeypatch.setattr(AutoMode, "_mesh_now", lambda self: 0)
    links = SimpleNamespace(wait_for_change=asyncio.Event().wait)
    mode = AutoMode(cast(Any, SimpleNamespace(state="active", say=said.append, links=links)))
    running = asyncio.create_task(mode.run())
    await again.wait()
    running.cancel()
    await asyncio.wait({running})
    assert said == [{"kind": "auto", "data": {"action": "failed", "reason": "attic went away"}}]
