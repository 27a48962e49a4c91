"""Rings that engines keep going by themselves: real processes, lanes between them, the tokens of the whole model."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import LaneToRank, UnitSpec
from p2pnode.compute.gguf import open_model
from p2pnode.compute.part import Part
from p2pnode.compute.surgery import cut
from p2pnode.errors import Cancelled, P2PNodeError, StageLost
from p2pnode.facade import SamplingParams
from p2pnode.frame import Frame
from tests.kit.engine_units import SMALL, cut_spec, generate, tokens_frame
from tests.kit.toy_models import Toy, write_model

pytestmark = pytest.mark.asyncio(loop_scope="module")
GREEDY = SamplingParams(temperature=0.0)
WARM = SamplingParams(temperature=0.9, top_k=20, seed=7, repeat_penalty=1.2)
PROMPT = (1, 70, 80, 90, 100, 110, 120)
COUNT = 12


def noted_in(seen: list[tuple[Frame, Frame]]) -> Callable[[Frame, Frame], None]:
    return lambda received, sent: seen.append((received, sent))


class RingOfEngines:
    """A head with the first layers and the output, and stages in engines of their own."""

    def __init__(self, head: EngineClient, first: int | None, output: int) -> None:
        self.head, self.first, self.output = head, first, output
        self.stages: list[tuple[EngineClient, int]] = []
        self.seen: list[list[tuple[Frame, Frame]]] = []

    @classmethod
    async def make(
        cls, model: Path, *, stages: int, head_has_layers: bool, last_in_head: bool = False
    ) -> RingOfEngines:
        index, _ = open_model(model)
        shares = stages + head_has_layers
        edges = [index.layer_count * n // shares for n in range(shares + 1)]
        parts = [Part(a, b, embedding=a == 0) for a, b in pairwise(edges)]
        head = await EngineClient.start()
        output = await head.load(cut_spec(cut(index, Part(5, 5, output=True)), model))
        first = None
        if head_has_layers:
            first = (await head.load(cut_spec(cut(index, parts.pop(0)), model))).unit_id
        ring = cls(head, first, output.unit_id)
        for part in parts:
            is_in_head = last_in_head and part.layer_end == index.layer_count
            engine = head if is_in_head else await EngineClient.start()
            rows_out = "wanted" if part.layer_end == index.layer_count else "all"
            unit = await engine.load(cut_spec(cut(index, part), model, rows_out=rows_out))
            ring.stages.append((engine, unit.unit_id))
            ring.seen.append([])
        return ring

    async def link(self) -> None:
        """One lane from each engine to the next."""
        engines = [self.head, *(engine for engine, _ in self.stages)]
        units = [self.output, *(unit for _, unit in self.stages)]
        ports = [
            await engine.open_lanes("127.0.0.1", 2, unit) for engine, unit in zip(engines, units, strict=True)
        ]
        secrets = [os.urandom(32) for _ in engines]
        count = len(engines)

        def out(n: int) -> LaneToRank:
            return LaneToRank(0, ports[n][0], "127.0.0.1", ports[(n + 1) % count][1], secrets[n], 33000)

        def into(n: int) -> LaneToRank:
            before = (n - 1) % count
            return LaneToRank(0, ports[n][1], "127.0.0.1", ports[before][0], secrets[before], 33000)

        async with asyncio.TaskGroup() as group:
            opened = group.create_task(self.head.open_ring(self.output, self.first, out(0), into(0)))
            for n, (engine, unit) in enumerate(self.stages, start=1):
                engine.observe(unit, noted_in(self.seen[n - 1]))
                group.create_task(engine.open_relay(unit, into(n), out(n)))
        self.number = opened.result()

    async def by_streams(self, frame: Frame) -> int:
        """As nodes would carry it."""
        if self.first is not None:
            frame = await self.head.step(self.first, frame)
        for engine, unit in self.stages:
            frame = await engine.step(unit, frame)
        return (await self.head.step_sample(self.output, frame)).token

    async def generate(
        self, count: int, *, session: int = 1, ahead: bool = True, params: SamplingParams = GREEDY
    ) -> list[int]:
        """The prompt by streams, the rest by the ring."""
        await self.head.open_session(self.output, session, params, PROMPT)
        out = [await self.by_streams(tokens_frame(PROMPT, session=session))]
        while len(out) < count:
            out.append(await self.turn(out, session=session, ahead=ahead))
        return out

    async def turn(self, out: Sequence[int], *, session: int = 1, ahead: bool = True) -> int:
        frame = tokens_frame(out[-1:], len(PROMPT) + len(out) - 1, session=session)
        return (await self.head.ring_step(self.number, frame, ahead=ahead)).token

    async def close(self) -> None:
        for engine in (self.head, *(engine for engine, _ in self.stages)):
            await engine.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("m") / "toy.gguf", Toy("llama", text=True, vocabulary=300))


async def whole(model: Path, count: int, params: SamplingParams = GREEDY) -> list[int]:
    engine = await EngineClient.start()
    unit = await engine.load(UnitSpec(model_path=str(model), **SMALL))
    await engine.open_session(unit.unit_id, 1, params, PROMPT)
    out = await generate(engine, unit.unit_id, PROMPT, count)
    await engine.close()
    return out


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def expected(model: Path) -> list[int]:
    return await whole(model, COUNT)


@pytest_asyncio.fixture(loop_scope="module")
async def ring(model: Path) -> AsyncIterator[RingOfEngines]:
    made = await RingOfEngines.make(model, stages=1, head_has_layers=True)
    await made.link()
    yield made
    await made.close()


@pytest.mark.parametrize(("stages", "head_has_layers"), [(1, True), (1, False), (2, True), (3, False)])
async def test_a_ring_gives_the_tokens_of_the_whole(
    model: Path, expected: Sequence[int], stages: int, head_has_layers: bool
) -> None:
    made = await RingOfEngines.make(model, stages=stages, head_has_layers=head_has_layers)
    try:
        await made.link()
        assert await made.generate(COUNT) == expected
        assert await made.generate(COUNT, session=2, ahead=False) == expected
    finally:
        await made.close()


async def test_a_stage_in_the_engine_that_samples(model: Path, expected: Sequence[int]) -> None:
    """Both ends of the last lane are in one process, which cannot answer its own greeting."""
    made = await RingOfEngines.make(model, stages=2, head_has_layers=True, last_in_head=True)
    try:
        assert made.stages[-1][0] is made.head
        async with asyncio.timeout(5):
            await made.link()
        assert await made.generate(COUNT) == expected
        assert await made.generate(COUNT, session=2, ahead=False) == expected
        unused = await made.head.open_lanes("127.0.0.1", 1, made.stages[-1][1])
        await made.head.unload(made.stages[-1][1])
        lane = LaneToRank(0, unused[0], "127.0.0.1", 9, os.urandom(32), 33000)
        with pytest.raises(P2PNodeError, match="no lane was opened"):
            await made.head.open_ring(made.output, made.first, lane, lane)
    finally:
        await made.close()


async def test_sessions_share_a_ring(ring: RingOfEngines, expected: Sequence[int]) -> None:
    answers = await asyncio.gather(*(ring.generate(COUNT, session=n) for n in range(1, 5)))
    assert answers == [list(expected)] * 4


async def test_seeds_and_penalties_are_as_without_a_ring(ring: RingOfEngines, model: Path) -> None:
    assert await ring.generate(COUNT, params=WARM) == await whole(model, COUNT, WARM)


async def test_what_nobody_asks_for_changes_nothing(ring: RingOfEngines, expected: Sequence[int]) -> None:
    """A round begun ahead is overtaken by another token, by the streams, by an earlier position."""
    out = await ring.generate(5)
    other = [*out[:-1], out[-1] + 1]
    await ring.turn(other)
    assert await ring.turn(out) == expected[5]
    frame = tokens_frame(expected[5:6], len(PROMPT) + 5)
    assert await ring.by_streams(frame) == expected[6]
    assert await ring.turn(expected[:3]) == expected[3]
    assert await ring.turn(expected[:4]) == expected[4]


async def test_nodes_hear_of_every_row(ring: RingOfEngines, expected: Sequence[int]) -> None:
    """What passed by lanes is told in order, with what came in and went out, before the next answer."""
    await ring.generate(COUNT, ahead=False)
    engine, unit = ring.stages[0]
    await engine.stats()
    seen = ring.seen[0]
    assert [got.position_first for got, _ in seen] == [len(PROMPT) + n for n in range(COUNT - 1)]
    assert all(len(got.payload) == len(gave.payload) == 64 * 4 for got, gave in seen)
    again = await engine.step(unit, seen[-1][0])
    assert bytes(again.payload) == bytes(seen[-1][1].payload)


async def test_a_session_that_is_over_is_not_begun_again(ring: RingOfEngines) -> None:
    """A late frame on a lane must not take a sequence that nobody would ever free."""
    out = await ring.generate(3)
    engine, unit = ring.stages[0]
    await engine.free_session(unit, 1)
    with pytest.raises(P2PNodeError):
        await ring.turn([*out[:-1], out[-1] + 1])
    assert (await engine.stats())["units"][unit]["sessions"] == 0


async def test_cancelling_answers_a_round(ring: RingOfEngines) -> None:
    out = await ring.generate(3, ahead=False)
    os.kill(ring.stages[0][0].pid, signal.SIGSTOP)
    try:
        waiting = asyncio.create_task(ring.turn(out))
        await asyncio.sleep(0)
        await ring.head.cancel(ring.output, 1)
        with pytest.raises(Cancelled):
            await waiting
    finally:
        os.kill(ring.stages[0][0].pid, signal.SIGCONT)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_lost_stage_is_noticed(ring: RingOfEngines, number: signal.Signals) -> None:
    """The waiting call ends with StageLost, and so do later ones: the node takes the streams then."""
    out = await ring.generate(3)
    os.kill(ring.stages[0][0].pid, number)
    asked = [*out[:-1], out[-1] + 1]  # not the round that was begun ahead: it may be back already
    for tokens in (asked, out):
        with pytest.raises(StageLost):
            await ring.turn(tokens)
    if number is signal.SIGSTOP:
        os.kill(ring.stages[0][0].pid, signal.SIGCONT)


async def test_plans_with_one_unit_that_samples_have_a_ring_each(
    ring: RingOfEngines, model: Path, expected: Sequence[int]
) -> None:
    """Another cut of the model is planned while an answer runs: each goes on around its own ring."""
    out = await ring.generate(3)
    index, _ = open_model(model)
    other = RingOfEngines(ring.head, None, ring.output)
    for part in (Part(0, 1, embedding=True), Part(1, index.layer_count)):
        engine = await EngineClient.start()
        rows_out = "wanted" if part.layer_end == index.layer_count else "all"
        unit = await engine.load(cut_spec(cut(index, part), model, rows_out=rows_out))
        other.stages.append((engine, unit.unit_id))
        other.seen.append([])
    try:
        await other.link()
        assert await other.generate(COUNT, session=2) == expected
        while len(out) < COUNT:
            out.append(await ring.turn(out))
        assert out == list(expected)
        await ring.head.close_ring(other.number)
        with pytest.raises(StageLost):
            await other.turn(out, session=2)
        assert await ring.generate(COUNT, session=3) == expected
    finally:
        for engine, _ in other.stages:
            await engine.close()


async def test_a_unit_that_goes_takes_its_ring_along(ring: RingOfEngines) -> None:
    out = await ring.generate(3)
    assert ring.first is not None
    await ring.head.unload(ring.first)
    with pytest.raises(StageLost):
        await ring.turn(out)
