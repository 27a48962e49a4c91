"""A tensor group: every rank sees the same frames in the same order, and one that goes takes the group along."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from p2pnode.compute.engine_client import EngineClient
from p2pnode.errors import ComputeError, StageLost
from p2pnode.frame import Frame, Kind
from p2pnode.node.tensor import GroupEngine, SendFrame, pair_up
from tests.kit.engine_units import tokens_frame
from tests.kit.fake_engine import FakeEngine
from tests.unit.compute.test_scheduler import settle


class Group:
    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.told: dict[str, list[Frame]] = {"one": [], "two": []}
        followers = {name: self._follower(frames) for name, frames in self.told.items()}
        self.group = GroupEngine(cast(EngineClient, self.engine), followers)

    @staticmethod
    def _follower(frames: list[Frame]) -> SendFrame:
        async def send(frame: Frame) -> None:
            await asyncio.sleep(0)
            frames.append(frame)

        return send


async def test_all_ranks_see_one_order() -> None:
    made = Group()
    frames = [tokens_frame([1], n, session=n) for n in range(3)]
    await asyncio.gather(*(made.group.step(1, frame) for frame in frames), made.group.free_session(1, 0))
    own = [call[2] for call in made.engine.named("step")]
    assert [f.session for f in made.told["one"]] == [f.session for f in made.told["two"]] == [*own, 0]
    assert made.told["one"][-1].kind is Kind.FREE


async def test_a_lost_follower_is_the_reason_of_what_fails_now_and_later() -> None:
    made = Group()
    made.engine.gate = asyncio.Event()
    made.engine.failure = ComputeError("the exchange was given up")
    step = asyncio.ensure_future(made.group.step(1, tokens_frame([1])))
    await settle()
    made.group.lose(StageLost("beta went away"))
    made.group.lose(StageLost("later"))
    made.engine.gate.set()
    for work in (step, made.group.step_sample(1, tokens_frame([1]))):
        with pytest.raises(StageLost, match="beta went away"):
            await work
    assert made.engine.given_up == 1
    made.engine.failure = None
    await made.group.free_session(1, 1)  # nobody is told, the own part is freed
    assert made.engine.named("free") == [("free", 1, 1)]


async def test_a_failure_of_its_own_stays_its_own() -> None:
    made = Group()
    made.engine.failure = ComputeError("no memory")
    with pytest.raises(ComputeError, match="no memory"):
        await made.group.step(1, tokens_frame([1]))


def test_every_pair_of_ranks_shares_one_secret_lane() -> None:
    ends = pair_up(["a", "b", "c"], [[1, 2], [3, 4], [5, 6]])
    by_rank = [{end["rank"]: end for end in own} for own in ends]
    assert [sorted(own) for own in by_rank] == [[1, 2], [0, 2], [0, 1]]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        one, other = by_rank[a][b], by_rank[b][a]
        assert one["secret"] == other["secret"]
        assert (one["port"], one["peer_port"]) == (other["peer_port"], other["port"])
    assert len({end["secret"] for own in ends for end in own}) == 3


async def test_all_ranks_keep_the_same_prefixes() -> None:
    made = Group()
    await made.group.keep_prefix(1, 5, 40)
    await made.group.reuse_prefix(1, 6, 5, 32)
    await made.group.forget_prefix(1, 5)
    told = [(f.kind, f.session, f.request, f.position_first) for f in made.told["two"]]
    assert told == [(Kind.KEEP, 5, 0, 40), (Kind.REUSE, 6, 5, 32), (Kind.FORGET, 5, 0, 0)]
    assert [call[0] for call in made.engine.calls] == ["keep", "reuse", "forget"]
    made.group.lose(StageLost("beta went away"))
    await made.group.forget_prefix(1, 7)
    assert len(made.told["two"]) == 3, "nobody is told any more"
