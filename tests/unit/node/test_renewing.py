"""Options of a model change while its plans are built, end, and are asked for: what stands has the last ones."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pnode import limits
from p2pnode.compute.engine_options import EngineOptions
from p2pnode.errors import NotFound, RequestError
from p2pnode.node.active import Active
from p2pnode.node.engine_settings import EngineSettings
from p2pnode.node.engines import EnginePool
from p2pnode.node.room import Room
from p2pnode.node.routing import Routing
from p2pnode.node.tasks import Tasks
from p2pnode.projections.settings import Setting, Settings
from p2pnode.units import ContentId, PeerId
from tests.kit.net import until

MODEL = SimpleNamespace(content_id=ContentId("m"), name="m")
ONE, TWO = f"lora=b{'a' * 58}@1", f"lora=b{'a' * 58}@2"


class Engine:
    """An engine host without a process."""

    def __init__(self) -> None:
        self.is_up, self.closed = True, False

    def has(self, units: object) -> bool:
        return True

    async def close(self) -> None:
        self.closed = True


class World:
    def __init__(self) -> None:
        self.options, self.built, self.released = ONE, list[str](), list[tuple[str, bool]]()
        self.gate, self.way = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.way.set()
        self.missing: str | None = None
        self.tasks = Tasks(lambda *_: None)
        self.pool = EnginePool(cast(Any, lambda _: Engine()))
        self.routing = Routing(
            me=PeerId("me"),
            bringing=cast(Any, None),
            whole_models=cast(Any, SimpleNamespace(local=self.local)),
            rings=cast(Any, SimpleNamespace(build=self.ring, release=self.release)),
            splits=cast(Any, None),
            engines=self.pool,
            tasks=self.tasks,
            room=Room(memory_max_bytes=None, engines=list, in_use=list, held_by=lambda _: 0),
            unloaded=lambda _: None,
            drop_kept=cast(Any, None),
        )

    async def build(self, plan_id: str, purpose: str, mode: str) -> Active:
        options, engine = self.options, self.pool.of(cast(Any, MODEL), purpose)
        self.built.append(options)
        await self.gate.wait()
        if options == self.missing:
            raise NotFound("the adapter is not on this device any more")
        made: Any = SimpleNamespace(
            plan_id=plan_id, model=MODEL, mode=mode, options=options, engine=engine, is_usable=True,
            stages=[{"peer": "beta"}], release=[], end=lambda _: None,
        )  # fmt: skip
        return cast(Active, made)

    async def local(self, plan_id: str, *_: object) -> Active:
        return await self.build(plan_id, "local", "local")

    async def ring(self, plan_id: str, *_: object) -> Active:
        return await self.build(plan_id, "head", "pipeline")

    async def release(self, plan_id: str, peers: set[PeerId], *, keep: bool = False) -> None:
        await self.way.wait()
        self.released.append((plan_id, keep))

    def ask(self, plan_id: str = "p") -> asyncio.Task[Active]:
        return asyncio.ensure_future(self.routing.pipeline(plan_id, cast(Any, MODEL), [], lambda _: None))

    async def change(self, options: str) -> None:
        self.options = options
        await self.routing.release_model(MODEL.content_id, "its engine options change", keep=True)


async def test_a_plan_that_was_being_built_is_built_again_with_what_is_wanted_now() -> None:
    """Nobody could end it: it did not stand yet."""
    world = World()
    world.gate.clear()
    asked = world.ask()
    await until(lambda: world.built == [ONE])
    await world.change(TWO)
    world.gate.set()
    active = await asked
    assert (active.options, world.built) == (TWO, [ONE, TWO])
    assert world.released == [("p", True)], "what its devices had loaded waits for the one that stands"
    assert not cast(Any, active.engine).closed
    assert world.routing.of_model(MODEL.content_id) is active
    assert not world.routing.keeps(MODEL.content_id), "in use"


async def test_changed_there_and_back_is_changed() -> None:
    """Half of a plan may have been loaded with what was wanted between."""
    world = World()
    world.gate.clear()
    asked = world.ask()
    await until(lambda: world.built == [ONE])
    await world.change(TWO)
    await world.change(ONE)
    world.gate.set()
    assert (await asked).options == ONE
    assert world.built == [ONE, ONE]


async def test_no_plan_is_begun_while_those_before_it_end() -> None:
    """Their devices find their weights loaded only once they were told to keep them."""
    world = World()
    await world.ask()
    world.way.clear()
    changing = asyncio.ensure_future(world.change(TWO))
    await until(lambda: not world.routing.active)
    asked = world.ask("q")
    for _ in range(5):
        await asyncio.sleep(0)
    assert world.built == [ONE]
    world.way.set()
    await changing
    assert (await asked).options == TWO
    assert world.released == [("p", True)]


async def test_an_adapter_that_went_with_the_change_fails_nobody() -> None:
    world = World()
    world.missing = ONE
    with pytest.raises(NotFound):
        await world.ask()
    world.gate.clear()
    asked = world.ask()
    await until(lambda: len(world.built) == 2)
    await world.change(TWO)
    world.gate.set()
    assert (await asked).options == TWO


async def test_what_is_kept_is_given_back_when_nobody_comes_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ADAPTED_KEPT_S", 0.001)
    world = World()
    first = await world.ask()
    world.gate.clear()
    await world.change(TWO)
    assert world.routing.keeps(MODEL.content_id)
    await until(lambda: cast(Any, first.engine).closed)
    assert not world.routing.keeps(MODEL.content_id)
    world.gate.set()
    assert (await world.ask()).engine is not first.engine


async def test_what_is_kept_stays_while_the_plan_that_wants_it_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another device may take minutes to load."""
    monkeypatch.setattr(limits, "ADAPTED_KEPT_S", 0.001)
    world = World()
    first = await world.ask()
    world.gate.clear()
    changing, asked = asyncio.ensure_future(world.change(TWO)), world.ask("q")
    await changing
    await until(lambda: len(world.built) == 2)
    await asyncio.sleep(0.02)
    assert not cast(Any, first.engine).closed
    world.gate.set()
    assert (await asked).engine is first.engine


class Ledger:
    """Settings that take a moment to be written."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(settings=Settings())

    async def do(self, command: Any) -> None:
        await asyncio.sleep(0)
        self.state.settings.settings[command.key] = Setting(0, command.value, "", "", 0)
        await asyncio.sleep(0)


async def test_two_changes_at_once_are_both_made_and_a_failed_one_undoes_itself_alone() -> None:
    settings = EngineSettings(cast(Any, Ledger()))
    ends: list[bool] = []

    async def release(_: ContentId, reason: str, keep: bool) -> None:
        del reason
        ends.append(keep)
        await asyncio.sleep(0)

    def one_more(name: str) -> Any:
        def change(standing: EngineOptions) -> EngineOptions:
            return standing.with_adapters([*standing.adapters, (f"b{name * 58}", 1.0)], [])

        return change

    async def add(name: str, *, fails: bool = False) -> None:
        async with settings.changed(MODEL.content_id, one_more(name), release):
            await asyncio.sleep(0)
            if fails:
                raise RequestError("no")

    found = await asyncio.gather(add("a"), add("c", fails=True), add("d"), return_exceptions=True)
    assert [type(each) for each in found] == [type(None), RequestError, type(None)]
    assert [name[1] for name, _ in settings.of_model(MODEL.content_id).adapters] == ["a", "d"]
    assert ends == [True] * 4
