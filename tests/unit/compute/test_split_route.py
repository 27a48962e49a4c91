"""Prompts there, answers here: what goes where, and what becomes of a prompt whose keys and values do not come."""

from __future__ import annotations

import asyncio

import pytest

from p2pnode.compute.pipeline_route import PipelineRoute
from p2pnode.compute.route import Feed
from p2pnode.compute.split_route import SplitRoute
from p2pnode.errors import ContextFull, P2PNodeError, SessionLost, StageLost
from p2pnode.facade import SamplingParams
from p2pnode.frame import Frame, Kind
from tests.kit.fake_engine import FakeEngine
from tests.unit.compute.test_scheduler import settle

FIRST, OUTPUT = 1, 2


class World:
    """A ring of one stage that answers at once, units here, and a move that the test decides about."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.there: list[Frame] = []
        self.moved: list[tuple[int, int]] = []
        self.failure: P2PNodeError | None = None
        self.gate: asyncio.Event | None = None
        self.told: list[str] = []
        self.prefill = PipelineRoute(self.engine, first_unit=None, output_unit=OUTPUT, send=self._send)
        decode = PipelineRoute(self.engine, first_unit=FIRST, output_unit=OUTPUT, send=None)
        self.route = SplitRoute(self.prefill, decode, self._move, lambda error: self.told.append(error.code))

    async def _send(self, frame: Frame) -> None:
        self.there.append(frame)
        if frame.kind is Kind.TOKENS:
            self.prefill.arrived(frame)

    async def _move(self, session: int, positions: int) -> None:
        self.moved.append((session, positions))
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    async def prompt(self) -> None:
        await self.route.open(5, SamplingParams(), [])
        await self.route.feed(Feed(5, 0, 0, [1, 2, 3], sample=False, is_last_chunk=False))
        await self.route.feed(Feed(5, 0, 3, [4, 5], sample=True))

    async def decode(self, position: int) -> int:
        sampled = await self.route.feed(Feed(5, 0, position, [6], sample=True, is_alone=True))
        assert sampled is not None
        return sampled.token

    def here(self) -> list[int]:
        """Positions that the unit with layers here was fed at."""
        return [call[3] for call in self.engine.named("step") if call[1] == FIRST]


async def test_a_prompt_is_computed_there_and_the_rest_here() -> None:
    world = World()
    world.gate = asyncio.Event()
    await world.prompt()
    await settle()
    assert world.moved == [(5, 5)], "on its way while the first token is shown"
    assert world.here() == []
    token = asyncio.ensure_future(world.decode(5))
    await settle()
    assert not token.done(), "the keys and values are not here yet"
    world.gate.set()
    assert await token == 7
    assert await world.decode(6) == 7
    assert world.here() == [5, 6]
    assert [f.kind for f in world.there] == [Kind.TOKENS, Kind.TOKENS, Kind.FREE], (
        "cells there are free early"
    )
    await world.route.free(5)
    assert [f.kind for f in world.there].count(Kind.FREE) == 1
    assert world.engine.named("free") == [("free", OUTPUT, 5), ("free", FIRST, 5)]
    assert world.told == []


@pytest.mark.parametrize("failure", [StageLost("gone"), ContextFull("no room")])
async def test_a_prompt_that_does_not_come_is_computed_here(failure: P2PNodeError) -> None:
    """In the same chunks, and without sampling anything twice."""
    world = World()
    world.failure = failure
    await world.prompt()
    assert await world.decode(5) == 7
    assert world.here() == [0, 3, 5]
    assert [call[3] for call in world.engine.named("sample")] == [3, 5]
    assert world.told == [failure.code]


async def test_the_ring_may_go_once_all_is_here() -> None:
    world = World()
    await world.prompt()
    await world.decode(5)
    world.prefill.lost(StageLost("gone"))
    assert await world.decode(6) == 7
    await world.route.free(5)
    with pytest.raises(StageLost):
        await world.prompt()


async def test_an_answer_given_up_ends_its_move() -> None:
    world = World()
    world.gate = asyncio.Event()
    await world.prompt()
    await settle()
    await world.route.free(5)
    assert [f.kind for f in world.there][-1] is Kind.FREE
    assert world.here() == []


async def test_what_begins_with_a_prefix_is_computed_here() -> None:
    world = World()
    await world.prompt()
    await world.route.keep(5, 5)
    assert world.engine.named("keep") == [("keep", FIRST, 5, 5)]
    await world.route.reuse(6, 5, 4)
    await world.route.feed(Feed(6, 0, 4, [8, 9], sample=True))
    assert world.here() == [4]
    assert len([f for f in world.there if f.session == 6]) == 0
    await world.route.forget(5)
    assert world.engine.named("forget") == [("forget", FIRST, 5)]
    world.engine.missing = {5}
    with pytest.raises(SessionLost):
        await world.route.reuse(7, 5, 4)
    await world.route.feed(Feed(7, 0, 0, [8, 9], sample=True))
    assert [f.session for f in world.there][-1] == 7, "without it, the others compute the prompt"
    assert (world.route.stages, world.route.home) == (1, (world.engine, OUTPUT))
