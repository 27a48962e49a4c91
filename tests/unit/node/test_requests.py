"""A request that survives: who is credited, what is freed, and in which order, over routes without devices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pnode.compute.engine_protocol import Sampled
from p2pnode.compute.local_route import LocalRoute
from p2pnode.compute.route import Feed
from p2pnode.compute.scheduler import Cells
from p2pnode.errors import Busy, ContextFull, P2PNodeError, RequestError, StageLost
from p2pnode.facade import Finished, GenerateEvent, GenerateRequest, SamplingParams, TextDelta
from p2pnode.frame import POSITION_MAX
from p2pnode.node.active import Active, Place
from p2pnode.node.forwarding import repeatable
from p2pnode.node.requests import Requests
from p2pnode.node.running import Running, Served
from p2pnode.units import PeerId
from tests.kit.fake_engine import FakeEngine
from tests.kit.net import until

A = ord("a")


class BreakingRoute(LocalRoute):
    """Works for some feeds; -1 for ever."""

    def __init__(self, engine: FakeEngine, feeds: int, log: list[str], name: str) -> None:
        super().__init__(engine, 1)
        self.feeds, self.log, self.name = feeds, log, name

    async def feed(self, feed: Feed) -> Sampled | None:
        if self.feeds == 0:
            raise StageLost(f"{self.name} broke")
        self.feeds -= 1
        return await super().feed(feed)

    async def free(self, session: int) -> None:
        self.log.append(f"free {self.name}")
        await super().free(session)


class CountedCells(Cells):
    def __init__(self, log: list[str], name: str, cells: int = 100) -> None:
        super().__init__(cells=cells, sessions=2)
        self.log, self.name = log, name

    def give_back(self, cells: int) -> None:
        self.log.append(f"cells {self.name}")
        super().give_back(cells)


class Book:
    """Remembers the calls."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.refusal: P2PNodeError | None = None
        self.shown: list[dict[str, Any]] = []

    async def accepted(self, running: Running) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.log.append("accepted")

    async def unit(self, running: Running) -> None:
        done = [place.layer_tokens(n) for place, n in running.work.items()]
        self.log.append(
            f"unit of {done} after {len(running.session.generated)}, counted: {running.is_counted}"
        )
        running.unit_settled({})

    async def finished(self, running: Running, text: str) -> int:
        self.log.append(f"finished {running.session.reason} {text!r}")
        return 7

    async def failed(self, running: Running, error: P2PNodeError) -> None:
        self.log.append(f"failed {error.code}")

    async def lost(self, running: Running, error: P2PNodeError) -> None:
        self.log.append(f"lost on {running.active.plan_id}")
        self.shown.append(Served.view(running))

    async def recovered(self, running: Running, times_ms: tuple[int, int, int, int]) -> None:
        self.log.append(f"recovered on {running.active.plan_id}")
        self.shown.append(Served.view(running))


class World:
    """Plans by name; the first is chosen, the others follow after losses."""

    def __init__(self, *feeds: int, engines: list[FakeEngine] | None = None, cells: int = 100) -> None:
        self.log: list[str] = []
        self.announced: list[tuple[str, str, int]] = []
        self.refused: set[str] = set()
        self.reach = POSITION_MAX
        self.book = Book(self.log)
        engines = engines or [FakeEngine()] * len(feeds)
        self.plans = [
            self._plan(f"p{number}", BreakingRoute(engine, count, self.log, f"p{number}"), cells)
            for number, (count, engine) in enumerate(zip(feeds, engines, strict=True))
        ]
        self.next = iter(self.plans)
        self.done: list[Running] = []
        self.shown: list[dict[str, Any]] = []
        """Of the request, at every loss and when it goes on."""
        self.book.shown = self.shown
        self.requests = Requests(
            choose=self._choose,
            choose_again=self._choose_again,
            book=self.book,
            new_id=lambda: "r1",
            seeded=repeatable,
            finished=self.done.append,
        )

    def _plan(self, name: str, route: LocalRoute, cells: int) -> Active:
        made = SimpleNamespace(
            plan_id=name,
            mode="local",
            model=SimpleNamespace(name="m", content_id="c"),
            stages=[{"peer": f"device of {name}", "layers": [0, 10]}],
            route=route,
            cells=CountedCells(self.log, name, cells),
            session_tokens=50,
            announce=self._announcing(name),
            prefixes=None,
            decoder=None,
            lost=None,
            places=[Place(name, PeerId(f"device of {name}"), (0, 10))],
        )
        return cast(Active, made)

    def _announcing(self, name: str) -> Any:
        async def announce(request_id: str, session: int, prompt_tokens: int, trace: str) -> int:
            self.announced.append((name, request_id, prompt_tokens))
            if name in self.refused:
                raise StageLost(f"{name} was refused")
            return self.reach

        return announce

    async def _choose(self, request: GenerateRequest) -> Active:
        return next(self.next)

    async def _choose_again(self, running: Running, error: P2PNodeError) -> Active:
        try:
            return next(self.next)
        except StopIteration:
            raise Busy("no other device") from None

    def ask(self, max_tokens: int = 4, **wish: Any) -> AsyncGenerator[GenerateEvent, None]:
        request = GenerateRequest(
            model=None, prompt=[A - 1], max_tokens=max_tokens, **{"sampling": SamplingParams(), **wish}
        )
        return cast("AsyncGenerator[GenerateEvent, None]", self.requests.generate(request))

    async def answer(self, **wish: Any) -> tuple[str, Finished | None]:
        events = [event async for event in self.ask(**wish)]
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        return text, next((event for event in events if isinstance(event, Finished)), None)

    @property
    def work(self) -> dict[str, int]:
        return {place.peer: place.layer_tokens(n) for place, n in self.done[0].work.items()}

    @property
    def is_as_before(self) -> bool:
        return not self.requests.running and all(
            plan.cells.cells_free == plan.cells.cells_total and not plan.cells.queued for plan in self.plans
        )


async def test_an_answer_is_booked_and_given_back() -> None:
    world = World(-1)
    text, end = await world.answer()
    assert (text, end and end.cost_microunits) == ("abcd", 7)
    assert world.log == ["accepted", "free p0", "finished length 'abcd'", "cells p0"]
    assert world.work == {"device of p0": 40}
    assert world.is_as_before


async def test_who_names_no_seed_gets_a_chance_of_its_own() -> None:
    """Each request another; one that names a seed, or asks greedily, is left as it is."""
    seeds = []
    for sampling in (
        SamplingParams(),
        SamplingParams(),
        SamplingParams(seed=5),
        SamplingParams(temperature=0),
    ):
        world = World(-1)
        await world.answer(sampling=sampling)
        (running,) = world.done
        seeds.append(running.session.params.seed)
        assert running.request.sampling == sampling, "the record does not promise that it can be repeated"
    assert None not in seeds[:2]
    assert seeds[0] != seeds[1]
    assert seeds[2:] == [5, None]


async def test_the_same_text_after_a_loss_and_each_device_is_credited_for_its_own_rows() -> None:
    """Three rows by the first plan; the second prefills four and computes one more."""
    world = World(3, -1)
    text, end = await world.answer(max_tokens=5)
    assert text == "abcde"
    assert end is not None
    assert world.log == [
        "accepted", "lost on p0", "recovered on p1", "free p1", "finished length 'abcde'", "cells p0", "cells p1",
    ]  # fmt: skip
    assert world.work == {"device of p0": 30, "device of p1": 50}
    assert world.is_as_before


async def test_an_answer_that_waits_for_another_device_says_so() -> None:
    """Not at its old speed: recovering, since its last token; until the next one comes."""
    world = World(3, 0, -1)
    text, _ = await world.answer(max_tokens=5)
    assert text == "abcde"
    first, second, after = world.shown
    for view in (first, second):
        assert (view["state"], view["tokens_per_s"], view["completion_tokens"]) == ("recovering", None, 3)
        assert view["recovering_s"] >= 0
    assert second["recovering_s"] >= first["recovering_s"], "it counts from the last token on"
    assert (after["state"], after["recovering_s"], after["recoveries"]) == ("running", None, 2)


async def test_a_speed_sinks_when_nothing_comes() -> None:
    """A device that went away without a word is noticed late, and the answer stands still meanwhile."""
    world = World(-1)
    await world.answer()
    (running,) = world.done
    session = running.session
    session.decode_s, now_s = 0.5, time.perf_counter()
    session.last_token_s = now_s - 3.5
    assert running.tokens_per_s == pytest.approx(1.0, rel=0.5)
    session.last_token_s = 0.0  # computed elsewhere, which says no times
    assert running.tokens_per_s == 8.0


async def test_every_plan_is_told_whom_it_works_for_before_it_works() -> None:
    """One that refuses is left like one that broke."""
    world = World(-1, 2, -1)
    world.refused.add("p0")
    text, _ = await world.answer()
    assert text == "abcd"
    assert world.announced == [("p0", "r1", 1), ("p1", "r1", 1), ("p2", "r1", 1)]
    assert world.work["device of p0"] == 0
    assert world.is_as_before


async def test_each_unit_is_paid_before_the_next_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens each here; a loss in the second unit moves the rest of it, and a new plan hears of one unit."""
    monkeypatch.setattr("p2pnode.limits.OUTPUT_TOKENS_PER_UNIT", 3)
    world = World(5, -1)
    world.reach = 4
    text, _ = await world.answer(max_tokens=8)
    assert text == "abcdefgh"
    assert world.log == [
        "accepted", "unit of [30] after 3, counted: True", "lost on p0", "recovered on p1",
        "unit of [20, 60] after 6, counted: True", "free p1", "finished length 'abcdefgh'", "cells p0", "cells p1",
    ]  # fmt: skip
    assert world.work == {"device of p1": 20}
    assert world.announced == [("p0", "r1", 1), ("p1", "r1", 4)]


async def test_an_answer_that_ends_with_its_unit_has_no_more_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pnode.limits.OUTPUT_TOKENS_PER_UNIT", 4)
    world = World(-1)
    await world.answer(max_tokens=4)
    assert not any(line.startswith("unit") for line in world.log)


async def test_a_sampler_left_behind_is_freed() -> None:
    """The new plan samples elsewhere: the old engine must not keep the session."""
    old, new = FakeEngine(), FakeEngine()
    world = World(2, -1, engines=[old, new])
    await world.answer()
    assert old.named("free") == new.named("free") == [("free", 1, 1)]


async def test_without_another_plan_it_fails_with_both_reasons() -> None:
    world = World(2)
    with pytest.raises(StageLost, match="p0 broke; going on was not possible: no other device"):
        await world.answer()
    assert world.log == ["accepted", "lost on p0", "free p0", "failed stage_lost", "cells p0"]
    assert world.is_as_before


async def test_closing_early_frees_the_stages_before_the_cells() -> None:
    """And all of it has happened when `aclose` returns."""
    world = World(-1)
    events = world.ask(max_tokens=40)
    async for event in events:
        if isinstance(event, TextDelta):
            break
    await events.aclose()
    assert world.log == ["accepted", "free p0", "finished cancelled 'a'", "cells p0"]
    assert world.is_as_before


async def test_a_cancelled_request_is_booked_and_freed() -> None:
    engine = FakeEngine()
    world = World(-1, engines=[engine])
    engine.gate = asyncio.Event()
    asking = asyncio.ensure_future(world.answer())
    await until(lambda: bool(engine.named("sample")))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert world.log == ["accepted", "free p0", "finished cancelled ''", "cells p0"]
    assert world.is_as_before


async def test_a_refused_request_leaves_nothing() -> None:
    world = World(-1)
    world.book.refusal = Busy("not now")
    with pytest.raises(Busy):
        await world.answer()
    assert world.log == ["cells p0"]
    assert world.is_as_before


async def test_what_has_no_room_is_refused_before_it_starts() -> None:
    with pytest.raises(ContextFull):
        await World(-1, cells=1).answer()
    with pytest.raises(RequestError):
        await World(-1).answer(max_tokens=0)


async def test_recoveries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pnode.limits.RECOVERIES_MAX", 2)
    world = World(1, 0, 0, -1)
    with pytest.raises(StageLost, match="p2 broke"):
        await world.answer()
    assert world.is_as_before


async def test_an_answer_that_goes_on_may_move_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these plans refills what came so far and gives one token before another takes its place."""
    monkeypatch.setattr("p2pnode.limits.RECOVERIES_MAX", 2)
    world = World(1, 2, 3, -1)
    text, _ = await world.answer()
    assert (text, world.done[0].recoveries) == ("abcd", 3)
    assert world.is_as_before
