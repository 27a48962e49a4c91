"""Which models make room for another: idle ones, the least recently used first, and never one at work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pnode.errors import Busy
from p2pnode.node.active import Active
from p2pnode.node.room import Room

LIMIT = 100


class Engine:
    def __init__(self, held: int) -> None:
        self.held, self.is_up = held, True


class World:
    def __init__(self, limit: int | None = LIMIT) -> None:
        self.engines: list[Engine] = []
        self.standing: list[Active] = []
        self.busy: set[str] = set()
        self.unloaded: list[str] = []
        self.room = Room(
            memory_max_bytes=limit,
            engines=lambda: cast(Any, self.engines),
            in_use=lambda: self.busy,
            held_by=lambda engine: cast(Any, engine).held,
        )

    def loaded(self, plan_id: str, held: int, used_s: float, *, engine: Engine | None = None) -> Engine:
        engine = engine or Engine(held)
        if engine not in self.engines:
            self.engines.append(engine)
        model = SimpleNamespace(content_id=f"model-{plan_id}")
        active = SimpleNamespace(plan_id=plan_id, engine=engine, used_s=used_s, is_usable=True, model=model)
        self.standing.append(cast(Active, active))
        return engine

    async def unload(self, active: Active) -> None:
        self.unloaded.append(active.plan_id)
        self.standing.remove(active)
        if not any(other.engine is active.engine for other in self.standing):
            self.engines.remove(cast(Any, active.engine))

    async def load(self, plan_id: str, needed: int, model: str = "another") -> None:
        async with self.room.of(plan_id, model, needed, self.standing, self.unload):
            self.loaded(plan_id, needed, 99.0)


async def test_what_is_loaded_already_is_not_counted_twice() -> None:
    """An engine whose adapters change waits for the plan that follows."""
    world = World()
    world.loaded("other", 30, 1.0)
    kept = Engine(60)
    world.engines.append(kept)
    async with world.room.of("next", "m", 60, world.standing, world.unload, kept=cast(Any, kept)):
        assert world.unloaded == []
    async with world.room.of("next", "m", 60, world.standing, world.unload):
        assert world.unloaded == ["other"]


async def test_the_least_recently_used_goes_and_no_more_than_needed() -> None:
    world = World()
    world.loaded("old", 30, 1.0)
    world.loaded("new", 30, 3.0)
    world.loaded("middle", 30, 2.0)
    await world.load("another", 40)
    assert world.unloaded == ["old"]
    await world.load("second", 60)
    assert world.unloaded == ["old", "middle", "new"]


async def test_a_model_at_work_stays_and_what_it_leaves_too_little_for_waits() -> None:
    world = World()
    world.loaded("working", 70, 1.0)
    world.loaded("idle", 20, 2.0)
    world.busy = {"working"}
    await world.load("small", 25)
    assert world.unloaded == ["idle"]
    with pytest.raises(Busy):
        await world.load("large", 80)
    assert world.unloaded == ["idle"], "nothing goes for what cannot come"
    world.busy = set()
    await world.load("large", 80)
    assert world.unloaded == ["idle", "working", "small"]


async def test_a_model_larger_than_the_limit_finds_the_place_empty() -> None:
    world = World()
    world.loaded("idle", 20, 1.0)
    await world.load("huge", 500)
    assert world.unloaded == ["idle"]


async def test_engines_of_several_plans_are_freed_with_the_last() -> None:
    world = World()
    shared = world.loaded("ring", 60, 1.0)
    world.loaded("local", 60, 3.0, engine=shared)
    world.loaded("other", 30, 2.0)
    await world.load("another", 50)
    assert world.unloaded == ["ring", "other", "local"]


async def test_a_request_that_goes_on_does_not_wait_for_itself() -> None:
    world = World()
    world.loaded("lost", 80, 1.0)
    world.busy = {"lost"}
    await world.load("instead", 80, model="model-lost")
    assert world.unloaded == []


async def test_what_is_on_its_way_counts() -> None:
    world = World()
    world.loaded("idle", 30, 1.0)
    async with world.room.of("coming", "m", 50, world.standing, world.unload):
        assert world.unloaded == []
        await world.load("another", 40)
        assert world.unloaded == ["idle"]


async def test_without_a_limit_everything_stays() -> None:
    world = World(limit=None)
    world.loaded("idle", 10**12, 1.0)
    await world.load("another", 10**12)
    assert world.unloaded == []
    assert not world.room.is_limited
