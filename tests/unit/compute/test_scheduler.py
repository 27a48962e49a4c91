"""Admission, and a session's walk from prompt to last token over routes that are not really there."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest

from p2pnode import limits
from p2pnode.compute.engine_protocol import Sampled
from p2pnode.compute.local_route import LocalRoute
from p2pnode.compute.prefix_cache import PrefixShape, Reuse
from p2pnode.compute.prefixes import Prefixes
from p2pnode.compute.route import Feed
from p2pnode.compute.scheduler import Cells, Session, generate
from p2pnode.errors import Busy, ContextFull, SessionLost, StageLost
from p2pnode.facade import PrefillProgress, SamplingParams, TextDelta
from tests.kit.fake_engine import FakeEngine

A = ord("a")


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


# --- admission -------------------------------------------------------------------------------------
async def test_cells_are_given_first_come_first_served() -> None:
    """A small wish does not overtake a large one that waits: nobody starves."""
    cells = Cells(cells=10, sessions=4)
    await cells.take(8)
    order: list[str] = []

    async def take(name: str, count: int) -> None:
        await cells.take(count)
        order.append(name)

    waiting = [asyncio.ensure_future(take("large", 9)), asyncio.ensure_future(take("small", 1))]
    await settle()
    assert (order, cells.queued) == ([], 2)
    cells.give_back(8)
    await asyncio.gather(*waiting)
    assert order == ["large", "small"]
    assert (cells.cells_free, cells.sessions_free) == (0, 2)


async def test_sessions_are_bounded_like_cells() -> None:
    cells = Cells(cells=100, sessions=1)
    await cells.take(1)
    second = asyncio.ensure_future(cells.take(1))
    await settle()
    assert not second.done()
    cells.give_back(1)
    await second


async def test_what_never_fits_is_refused_at_once() -> None:
    with pytest.raises(ContextFull):
        await Cells(cells=10, sessions=1).take(11)


async def test_the_queue_is_bounded() -> None:
    cells = Cells(cells=1, sessions=1)
    await cells.take(1)
    waiting = [asyncio.ensure_future(cells.take(1)) for _ in range(limits.SESSIONS_QUEUED_MAX)]
    await settle()
    with pytest.raises(Busy):
        await cells.take(1)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert cells.queued == 0


async def test_a_cancelled_wish_makes_way() -> None:
    cells = Cells(cells=10, sessions=4)
    await cells.take(5)
    large, small = asyncio.ensure_future(cells.take(9)), asyncio.ensure_future(cells.take(5))
    await settle()
    large.cancel()
    await small
    assert cells.cells_free == 0
    with pytest.raises(asyncio.CancelledError):
        await large


async def test_a_wish_cancelled_as_it_is_granted_gives_back() -> None:
    cells = Cells(cells=10, sessions=4)
    await cells.take(10)
    late = asyncio.ensure_future(cells.take(4))
    await settle()
    cells.give_back(10)  # granted, but it has not run yet
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    assert (cells.cells_free, cells.sessions_free) == (10, 4)


# --- a session's walk ------------------------------------------------------------------------------
def session(prompt: Sequence[int] = (A - 1,), max_tokens: int = 5, **fields: object) -> Session:
    return Session(1, list(prompt), SamplingParams(), max_tokens, **fields)  # type: ignore[arg-type]


async def run(route: LocalRoute, one: Session) -> str:
    clock = itertools.count().__next__
    return "".join([e.text async for e in generate(route, one, clock=clock) if isinstance(e, TextDelta)])


async def test_the_length_ends_it() -> None:
    one = session()
    assert await run(LocalRoute(FakeEngine(), 1), one) == "abcde"
    assert (one.reason, one.position) == ("length", 6)


async def test_the_end_of_the_text_ends_it() -> None:
    engine, one = FakeEngine(), session()
    engine.eog = A + 2
    assert await run(LocalRoute(engine, 1), one) == "ab"
    assert (one.reason, one.stop_sequence) == ("stop", None)


async def test_a_stop_sequence_is_never_shown() -> None:
    one = session(max_tokens=20, stop=("de",))
    assert await run(LocalRoute(FakeEngine(), 1), one) == "abc"
    assert (one.reason, one.stop_sequence) == ("stop", "de")


class LosingRoute(LocalRoute):
    """Breaks after some tokens."""

    def __init__(self, engine: FakeEngine, feeds: int) -> None:
        super().__init__(engine, 1)
        self.feeds = feeds

    async def feed(self, feed: Feed) -> Sampled | None:
        if self.feeds == 0:
            raise StageLost("gone")
        self.feeds -= 1
        return await super().feed(feed)


async def test_after_a_loss_the_sampler_stays_at_home() -> None:
    """The same engine is not opened again: its sampler goes on; all known tokens are fed anew."""
    engine, one = FakeEngine(), session()
    with pytest.raises(StageLost):
        await run(LosingRoute(engine, 3), one)
    assert len(one.generated) == 3
    one.epoch += 1
    assert await run(LocalRoute(engine, 1), one) == "de"
    assert len(engine.named("open")) == 1
    assert one.generated == [A, A + 1, A + 2, A + 3, A + 4]


class ShapesRoute(LocalRoute):
    """Remembers the batches it was fed, and how many rows were under way at most."""

    def __init__(self, engine: FakeEngine, stages: int = 1) -> None:
        super().__init__(engine, 1)
        self.stages = stages
        self.batches: list[tuple[int, int, bool]] = []
        self.rows = self.rows_max = 0

    async def feed(self, feed: Feed) -> Sampled | None:
        self.batches.append((feed.position_first, len(feed.tokens), feed.sample))
        self.rows += len(feed.tokens)
        self.rows_max = max(self.rows_max, self.rows)
        await asyncio.sleep(0)
        try:
            return await super().feed(feed)
        finally:
            self.rows -= len(feed.tokens)


async def test_another_home_chooses_once_more() -> None:
    """A new sampler sees the prompt and chooses every known token again: its draws stand where the lost one's stood."""
    first, second, one = FakeEngine(), FakeEngine(), session()
    with pytest.raises(StageLost):
        await run(LosingRoute(first, 2), one)
    route = ShapesRoute(second)
    assert await run(route, one) == "cde"
    assert second.named("open") == [("open", 1, 1, (A - 1,))]
    assert route.batches[:3] == [(0, 1, True), (1, 1, True), (2, 1, True)]


async def test_after_a_loss_batches_have_the_shapes_they_had() -> None:
    """Chunks of the prompt, then single rows, many of them under way at once: other shapes would round differently."""
    size, engine = limits.PREFILL_CHUNK_TOKENS, FakeEngine()
    one = session([A - 1] * (size + 3), 60)
    engine.eog = None
    with pytest.raises(StageLost):
        await run(LosingRoute(engine, 52), one)
    known = len(one.generated)
    route = ShapesRoute(engine)
    await run(route, one)
    assert known == 51
    expected = [(0, size, False), (size, 3, False)]
    expected += [(size + 3 + n, 1, n == known - 1) for n in range(known)]
    assert route.batches[: len(expected)] == expected
    assert one.position == size + 3 + 60


async def test_single_rows_under_way_are_bounded() -> None:
    engine, one = FakeEngine(), session(max_tokens=200)
    with pytest.raises(StageLost):
        await run(LosingRoute(engine, 150), one)
    engine.gate = asyncio.Event()
    route = ShapesRoute(engine)
    going_on = asyncio.ensure_future(run(route, one))
    await settle()
    assert route.rows == limits.REFILL_ROWS_IN_FLIGHT
    engine.gate.set()
    await going_on
    assert route.rows_max == limits.REFILL_ROWS_IN_FLIGHT


class SlowRoute(LocalRoute):
    """Holds every chunk until told."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(engine, 1)
        self.chunks: list[tuple[int, int, bool]] = []
        self.go = asyncio.Event()
        self.cancelled = 0

    async def feed(self, feed: Feed) -> Sampled | None:
        self.chunks.append((feed.position_first, len(feed.tokens), feed.sample))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await super().feed(feed)


async def test_chunks_of_a_prompt_are_under_way_side_by_side_and_in_order() -> None:
    size, route = limits.PREFILL_CHUNK_TOKENS, SlowRoute(FakeEngine())
    prompt = [A - 1] * (size * 6 + 1)
    events = generate(route, session(prompt, 1), clock=itertools.count().__next__)
    first = asyncio.ensure_future(anext(events))
    await settle()
    assert route.chunks == [(i * size, size, False) for i in range(limits.PREFILL_CHUNKS_IN_FLIGHT)]
    route.go.set()
    progress = [await first, *[e async for e in events]]
    done = [e.tokens_done for e in progress if isinstance(e, PrefillProgress)]
    assert done == [*range(size, len(prompt), size), len(prompt)]
    assert route.chunks[-1] == (size * 6, 1, True)
    assert [sample for _, _, sample in route.chunks].count(True) == 1


async def test_a_prompt_that_is_given_up_leaves_no_chunk_behind() -> None:
    route = SlowRoute(FakeEngine())
    prompt = [A] * (limits.PREFILL_CHUNK_TOKENS * 6)
    events = generate(route, session(prompt, 1), clock=itertools.count().__next__)
    first = asyncio.ensure_future(anext(events))
    await settle()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert route.cancelled == len(route.chunks) == limits.PREFILL_CHUNKS_IN_FLIGHT


async def test_a_prompt_closed_between_chunks_ends_the_rest_at_once() -> None:
    """`aclose` returns when nothing is under way any more, not when garbage is collected."""
    route = SlowRoute(FakeEngine())
    prompt = [A] * (limits.PREFILL_CHUNK_TOKENS * 6)
    events = generate(route, session(prompt, 1), clock=itertools.count().__next__)
    first = asyncio.ensure_future(anext(events))
    await settle()
    route.go.set()
    await first
    route.go.clear()
    await events.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# --- prefixes --------------------------------------------------------------------------------------
LONG = list(range(600))


def positions(engine: FakeEngine) -> list[int]:
    return [call[3] for call in engine.calls if call[0] in ("step", "sample")]


async def test_a_kept_prefix_is_not_computed_again() -> None:
    engine, one = FakeEngine(), session(LONG, 1, reuse=Reuse(9, 512, 512))
    seen = [e async for e in generate(LocalRoute(engine, 1), one, clock=itertools.count().__next__)]
    assert engine.named("reuse") == [("reuse", 1, 1, 9, 512)]
    size = limits.PREFILL_CHUNK_TOKENS
    assert positions(engine) == list(range(512, 600, size))
    assert (one.cached, one.prefilled, one.exact) == (512, 88, 600 // size * size)
    assert seen[0] == PrefillProgress(512 + size, 600, 512)


async def test_what_was_not_computed_in_whole_chunks_spoils_what_follows() -> None:
    one = session([*LONG, *LONG], 1, reuse=Reuse(9, 300, 256))
    await run(LocalRoute(FakeEngine(), 1), one)
    assert (one.cached, one.exact) == (300, 256)
    cold = session([*LONG, *LONG], 1)
    await run(LocalRoute(FakeEngine(), 1), cold)
    assert (cold.cached, cold.exact) == (0, 1200 // limits.PREFILL_CHUNK_TOKENS * limits.PREFILL_CHUNK_TOKENS)


async def test_a_prefix_that_is_gone_costs_a_computation_and_nothing_else() -> None:
    engine, one = FakeEngine(), session(LONG, 1, reuse=Reuse(9, 512, 512))
    engine.missing = {9}
    await run(LocalRoute(engine, 1), one)
    assert positions(engine) == list(range(0, 600, limits.PREFILL_CHUNK_TOKENS))
    assert (one.cached, one.exact) == (0, 600 // limits.PREFILL_CHUNK_TOKENS * limits.PREFILL_CHUNK_TOKENS)


class ForgetfulStage(LocalRoute):
    """A far stage: only rows that do not fit show what it holds."""

    length = 0

    async def reuse(self, session: int, prefix: int, count: int) -> None:
        """Said to the near stage, never to this one."""

    async def feed(self, feed: Feed) -> Sampled | None:
        if feed.position_first > self.length:
            raise SessionLost(f"a frame at {feed.position_first}, the session holds {self.length}")
        self.length = feed.position_first + len(feed.tokens)
        return await super().feed(feed)


async def test_a_far_stage_without_the_prefix_is_found_out_by_its_rows() -> None:
    engine, one = FakeEngine(), session(LONG, 1, reuse=Reuse(9, 512, 512))
    await run(ForgetfulStage(engine, 1), one)
    assert positions(engine) == list(range(0, 600, limits.PREFILL_CHUNK_TOKENS))
    exact = 600 // limits.PREFILL_CHUNK_TOKENS * limits.PREFILL_CHUNK_TOKENS
    assert (one.cached, one.prefilled, one.exact) == (0, 600, exact)


async def test_a_session_lost_without_a_prefix_is_an_error() -> None:
    route = ForgetfulStage(FakeEngine(), 1)
    route.length = -1
    with pytest.raises(SessionLost):
        await run(route, session(LONG, 1))


# --- what a route keeps ----------------------------------------------------------------------------
SHAPE = PrefixShape(bytes_per_token=1, bytes_per_session=0, whole_only=False)


async def test_prefixes_come_and_go_on_the_route() -> None:
    engine, bytes_max = FakeEngine(), [700]
    kept = Prefixes(LocalRoute(engine, 1), SHAPE, lambda: bytes_max[0])
    first = session(LONG)
    first.generated = [7, 8]
    await kept.keep(first)
    assert engine.named("keep") == [("keep", 1, 1, 601)], "the last token was never fed"
    found = kept.find([*LONG, 7, 1, 2], exact=False)
    assert found == Reuse(1, 601, 0)
    second = session([5] * 200)
    second.session, second.generated = 2, [1]
    await kept.keep(second)
    assert engine.named("forget") == [("forget", 1, 1)]
    assert (len(kept), kept.size_bytes) == (1, 200)
    await kept.keep(second)
    assert len(engine.named("keep")) == 2, "it is kept already"
    bytes_max[0] = 0
    assert kept.find([5] * 201, exact=False) is None, "the operator ended it"
    await kept.missed(Reuse(2, 200, 0))
    await kept.missed(Reuse(2, 200, 0))
    assert engine.named("forget")[1:] == [("forget", 1, 2)]


async def test_what_a_broken_route_kept_is_forgotten_where_it_can_be() -> None:
    class Broken(LocalRoute):
        async def forget(self, prefix: int) -> None:
            await super().forget(prefix)
            raise StageLost("gone")

    engine = FakeEngine()
    kept = Prefixes(Broken(engine, 1), SHAPE, lambda: 10**6)
    for number, prompt in enumerate(([1] * 50, [2] * 50)):
        one = session(prompt)
        one.session, one.generated = number, [3]
        await kept.keep(one)
    await kept.clear()
    assert (len(kept), len(engine.named("forget"))) == (0, 2)
