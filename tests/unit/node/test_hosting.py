"""Stages held for heads: loaded once, kept or replaced, and no engine left behind on any way out."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from p2pnode import limits
from p2pnode.compute.engine_options import DeviceOptions
from p2pnode.errors import ComputeError, CreditEnded, NotFound, RemoteProtocolError, RequestError, StageLost
from p2pnode.node import stage_loading as module
from p2pnode.node.hosted_stage import HostedStage
from p2pnode.node.hosting import Hosting
from p2pnode.node.orders import StageOrder
from p2pnode.node.stage_loading import StageLoader
from p2pnode.node.tensor import Lanes
from tests.kit.fake_engine import FakeEngine
from tests.kit.net import until


class Engine:
    """An engine host without a process."""

    def __init__(self, world: World, purpose: str) -> None:
        self.world, self.purpose = world, purpose
        self.client = FakeEngine()
        self.is_up, self.closed = True, False
        self.infos = {"stage": SimpleNamespace(model_bytes=1, columns=2, session_tokens=3, rollback=True)}

    async def ensure(self, name: str, spec: object, progress: object) -> None:
        self.world.loads += 1
        await self.world.gate.wait()
        if self.world.failure is not None:
            raise self.world.failure

    def unit(self, name: str) -> int:
        return 7

    async def revived(self) -> bool:
        return self.is_up

    async def close(self) -> None:
        self.closed = True


class NoAdapters:
    """Fits nothing: what a unit looks like does not matter here."""

    async def fitted(self, spec: Any, *_: object, **__: object) -> Any:
        return spec


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engines: list[Engine] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: ComputeError | None = None
        self.loads = 0
        self.stored: list[HostedStage] = []
        self.methods: dict[str, Any] = {}
        monkeypatch.setattr(module, "part_of_stage", lambda *_, **__: SimpleNamespace(embedding=False))
        monkeypatch.setattr(module, "wants_of", lambda *_: ["t"])
        monkeypatch.setattr(module, "real_layer_count", lambda _: 12)
        monkeypatch.setattr(module, "unit_spec", lambda *_, **__: "spec")
        links = cast(
            Any,
            SimpleNamespace(serve=self.methods.__setitem__, is_forwarded=False, status_changed=lambda: None),
        )
        self.lanes = Lanes(links)
        self.hosting = Hosting(
            loader=StageLoader(
                catalog=cast(Any, self),
                lanes=self.lanes,
                threads=1,
                new_engine=cast(Any, self.new_engine),
                device=DeviceOptions,
                adapters=NoAdapters(),
            ),
            lanes=self.lanes,
            links=links,
            stored=self.store,
            check_head=self.check_head,
        )
        self.ended: set[str] = set()

    def new_engine(self, purpose: str) -> Engine:
        self.engines.append(Engine(self, purpose))
        return self.engines[-1]

    def check_head(self, peer: str) -> None:
        if peer in self.ended:
            raise CreditEnded(f"{peer} gets no credit any more")

    async def store(self, hosted: HostedStage) -> None:
        self.stored.append(hosted)

    # --- the catalog's part
    async def manifest(self, *_: object, **__: object) -> Any:
        return SimpleNamespace(chunks_for=len, bytes_of=lambda count: 9 * count)

    async def index(self, *_: object, **__: object) -> Any:
        return None, []

    async def fetch(self, *_: object, **__: object) -> Any:
        return SimpleNamespace(bytes_on_wire=10)

    async def strips(self, *_: object) -> dict[str, Any]:
        return {}

    def model_id(self, content_id: str) -> bytes:
        return b""

    async def ask(self, method: str, arguments: dict[str, Any], peer: str = "head") -> Any:
        return await self.methods[method](peer, arguments, lambda data: None)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def order(plan_id: str = "p", **changes: Any) -> dict[str, Any]:
    made = StageOrder(
        plan_id=plan_id, stage=1, model="c", model_name="m", layer_first=0, layer_end=4, is_last=True,
        context_tokens=256, sessions=2, head="head", previous_peer="head", next_peer="head", next_stage=-1,
    )  # fmt: skip
    document: dict[str, Any] = msgspec.to_builtins(made)
    return {**document, **changes}


async def test_an_order_that_differs_in_adapters_finds_its_weights_loaded(world: World) -> None:
    await world.ask("stage.prepare", order())
    assert await world.ask("stage.release", {"plan_id": "p", "keep": True}) == {"released": 1}
    assert not world.hosting.stages
    await world.ask("stage.prepare", order("q", engine="flash=off"))
    first, second = world.engines
    assert first.closed, "other options want other weights"
    await world.ask("stage.release", {"plan_id": "q", "keep": True})
    await world.ask("stage.prepare", order("r", engine=f"flash=off lora=b{'a' * 58}@0.5"))
    assert len(world.engines) == 2
    assert world.hosting.stages["r", 1].engine is second
    await world.ask("stage.release", {"plan_id": "r", "keep": True})
    now_s = asyncio.get_running_loop().time()
    await world.hosting.end_orphans(lambda _: True, now_s)
    assert not second.closed
    await world.hosting.end_orphans(lambda _: True, now_s + limits.ADAPTED_KEPT_S + 1)
    assert second.closed


async def test_what_runs_through_a_stage_ends_before_its_weights_wait(world: World) -> None:
    """What the old ring frees in the end must not be what the next plan computes for."""
    await world.ask("stage.prepare", order())
    hosted, freed = world.hosting.stages["p", 1], asyncio.Event()

    async def ring() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await freed.wait()

    running = asyncio.ensure_future(hosted.run(ring()))
    await until(lambda: hosted.turn.locked())
    asked = asyncio.ensure_future(world.ask("stage.release", {"plan_id": "p", "keep": True}))
    await until(lambda: not world.hosting.stages)
    assert not asked.done()
    freed.set()
    assert await asked == {"released": 1}
    with pytest.raises(StageLost):
        await running
    await world.ask("stage.prepare", order("q"))
    assert len(world.engines) == 1


async def test_two_stages_of_a_plan_find_their_weights_each(world: World) -> None:
    parts: tuple[dict[str, Any], ...] = ({}, {"stage": 2, "layer_first": 4, "layer_end": 8})
    for part in parts:
        await world.ask("stage.prepare", order(**part))
    await world.ask("stage.release", {"plan_id": "p", "keep": True})
    for part in reversed(parts):
        await world.ask("stage.prepare", order("q", **part))
    assert len(world.engines) == 2
    await world.ask("stage.release", {"plan_id": "q", "keep": True})
    await world.ask("stage.prepare", order("r", layer_end=5))
    assert [engine.closed for engine in world.engines] == [True, True, False], "cut otherwise"


async def test_weights_that_wait_make_room_for_other_models(world: World) -> None:
    await world.ask("stage.prepare", order())
    await world.ask("stage.release", {"plan_id": "p", "keep": True})
    await world.hosting.drop_kept(lambda hosted: hosted.order.model != "c")
    assert not world.engines[0].closed
    for number in range(limits.HOSTED_STAGES_MAX):
        await world.ask("stage.prepare", order(f"q{number}", model="d"))
    assert world.engines[0].closed


async def test_the_same_order_twice_is_one_load(world: World) -> None:
    """Also when the second one comes while the first is loading."""
    world.gate.clear()
    both = [asyncio.ensure_future(world.ask("stage.prepare", order())) for _ in range(2)]
    await until(lambda: world.loads == 1)
    world.gate.set()
    first, second = await asyncio.gather(*both)
    assert first == second
    assert first["bytes_fetched"] == 10
    assert first["bytes_wanted"] == 9
    assert len(world.engines) == len(world.stored) == 1


async def test_a_head_without_credit_gets_no_stage(world: World) -> None:
    world.ended.add("head")
    with pytest.raises(CreditEnded):
        await world.ask("stage.prepare", order())
    assert world.loads == 0


async def test_what_a_stage_is_counted_under_is_its_order(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_lanes(client: object, unit_id: int, ranks: int) -> list[int]:
        return [1] * (ranks - 1)

    monkeypatch.setattr(world.lanes, "open", no_lanes)
    await world.ask("stage.prepare", order(rank=1, shares=[1, 3], stage=2))
    (stage,) = world.hosting.of_head("p", "head")
    assert (stage.head, stage.layers, stage.rank, stage.shares, stage.layers_total) == (
        "head",
        (0, 4),
        1,
        (1, 3),
        12,
    )
    assert world.hosting.of_head("p", "another") == world.hosting.of_head("q", "head") == []


async def test_a_spare_brings_the_bytes_and_loads_nothing(world: World) -> None:
    wish = {"model": "c", "model_name": "m", "layer_first": 0, "layer_end": 4}
    assert await world.ask("stage.hold", wish) == {"bytes_fetched": 10}
    assert world.engines == []
    with pytest.raises(RemoteProtocolError, match="an order for a spare"):
        await world.ask("stage.hold", {"model": 5})


async def test_another_order_takes_the_place(world: World) -> None:
    await world.ask("stage.prepare", order())
    await world.ask("stage.prepare", order(layer_end=5))
    assert [engine.closed for engine in world.engines] == [True, False]


async def test_an_engine_that_stays_dead_is_replaced_and_ended(world: World) -> None:
    await world.ask("stage.prepare", order())
    world.engines[0].is_up = False
    await world.ask("stage.prepare", order())
    assert [engine.closed for engine in world.engines] == [True, False]
    assert len(world.hosting.stages) == 1


async def test_a_load_that_fails_or_is_given_up_leaves_no_engine(world: World) -> None:
    world.failure = ComputeError("no memory")
    with pytest.raises(ComputeError):
        await world.ask("stage.prepare", order())
    world.failure = None
    world.gate.clear()
    asking = asyncio.ensure_future(world.ask("stage.prepare", order()))
    await until(lambda: world.loads == 2)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert [engine.closed for engine in world.engines] == [True, True]
    assert world.hosting.stages == {}


async def test_loads_under_way_count(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HOSTED_STAGES_MAX", 1)
    world.gate.clear()
    first = asyncio.ensure_future(world.ask("stage.prepare", order("p")))
    await until(lambda: world.loads == 1)
    with pytest.raises(RequestError, match="holds"):
        await world.ask("stage.prepare", order("q"))
    world.gate.set()
    await first


async def test_only_the_head_decides_about_its_stages(world: World) -> None:
    with pytest.raises(RequestError):
        await world.ask("stage.prepare", order(), peer="stranger")
    with pytest.raises(RemoteProtocolError):
        await world.ask("stage.prepare", {"plan_id": 5})
    await world.ask("stage.prepare", order())
    assert await world.ask("stage.release", {"plan_id": "p"}, peer="stranger") == {"released": 0}
    with pytest.raises(NotFound):
        await world.ask("stage.link", {"plan_id": "p", "slot": 1, "ends": []}, peer="stranger")
    with pytest.raises(RemoteProtocolError):
        await world.ask("stage.link", {"plan_id": "p", "slot": 1, "ends": "all"})
    assert await world.ask("stage.release", {"plan_id": "p"}) == {"released": 1}
    assert world.engines[0].closed


async def test_idle_is_when_no_ring_runs_even_for_a_stage_already_released(world: World) -> None:
    await world.ask("stage.prepare", order())
    (hosted,) = world.hosting.stages.values()
    world.hosting.served(hosted, +1)
    await world.hosting.close()
    assert not world.hosting.idle.is_set()
    world.hosting.served(hosted, -1)
    assert world.hosting.idle.is_set()


async def test_stages_of_a_head_that_stays_away_are_given_back(world: World) -> None:
    """Not at once, not while a ring still runs, and not when it came back in between."""
    await world.ask("stage.prepare", order())
    (hosted,) = world.hosting.stages.values()
    late = limits.HOSTED_ALONE_S_MAX + 1
    await world.hosting.end_orphans(lambda peer: False, 0.0)
    await world.hosting.end_orphans(lambda peer: peer == "head", late)
    await world.hosting.end_orphans(lambda peer: False, late)
    world.hosting.served(hosted, +1)
    await world.hosting.end_orphans(lambda peer: False, 2 * late)
    world.hosting.served(hosted, -1)
    await world.hosting.end_orphans(lambda peer: False, 3 * late)
    assert not world.engines[0].closed
    await world.hosting.end_orphans(lambda peer: False, 4 * late)
    assert world.engines[0].closed
    assert world.hosting.stages == {}
