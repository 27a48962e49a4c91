"""The head's end of a ring: what comes back, in which order, and what is said when nothing does."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from p2pnode import limits
from p2pnode.compute.notices import error_frame
from p2pnode.compute.pipeline_route import PipelineRoute
from p2pnode.compute.route import Feed
from p2pnode.errors import ComputeError, EngineUnavailable, StageLost
from p2pnode.frame import Frame, Kind
from tests.kit.fake_engine import FakeEngine
from tests.unit.compute.test_scheduler import settle

FIRST, OUTPUT = 1, 2


class Ring:
    """A route whose frames lie here until they are sent back."""

    def __init__(
        self, *, first: int | None = None, by_lanes: bool = False, output_has_layers: bool = False
    ) -> None:
        self.engine = FakeEngine()
        self.out: list[Frame] = []
        self.broken = False
        self.route = PipelineRoute(
            self.engine,
            first_unit=first,
            output_unit=OUTPUT,
            send=self.send,
            ring=5 if by_lanes else None,
            output_has_layers=output_has_layers,
        )

    async def send(self, frame: Frame) -> None:
        if self.broken:
            raise StageLost("the way is broken")
        self.out.append(frame)

    def feed(self, session: int, token: int = 5, *, epoch: int = 0) -> asyncio.Future[object]:
        return asyncio.ensure_future(self.route.feed(Feed(session, epoch, 0, [token], sample=True)))


def token_of(result: object) -> int:
    return result.token  # type: ignore[attr-defined,no-any-return]  # a Sampled


async def test_results_are_matched_by_sequence() -> None:
    ring = Ring()
    one, other = ring.feed(1, 10), ring.feed(2, 20)
    await settle()
    for frame in reversed(ring.out):
        ring.route.arrived(frame)
    assert (token_of(await one), token_of(await other)) == (11, 21)
    assert ring.route.waiting == 0


async def test_chunks_of_one_session_leave_in_order() -> None:
    """The first unit is slow with the first chunk: the second one waits for its turn."""
    ring = Ring(first=FIRST)
    ring.engine.gate = asyncio.Event()
    feeds = [
        asyncio.ensure_future(ring.route.feed(Feed(1, 0, position, [5], sample=False))) for position in (0, 1)
    ]
    await settle()
    assert ring.engine.named("step") == [("step", FIRST, 1, 0)]
    ring.engine.gate.set()
    await settle()
    assert [frame.position_first for frame in ring.out] == [0, 1]
    assert [frame.sequence for frame in ring.out] == [1, 2]
    for frame in ring.out:
        ring.route.arrived(frame)
    assert await asyncio.gather(*feeds) == [None, None]


async def test_late_frames_are_nobodys() -> None:
    """Of an older epoch, of no feed at all, of a freed session."""
    ring = Ring()
    feed = ring.feed(1, epoch=3)
    await settle()
    (frame,) = ring.out
    ring.route.arrived(replace(frame, epoch=2))
    ring.route.arrived(replace(frame, sequence=99))
    ring.route.arrived(replace(frame, kind=Kind.FREE, rows=0, columns=0, payload=b""))
    assert not feed.done()
    ring.route.arrived(frame)
    ring.route.arrived(frame)  # twice is once
    assert token_of(await feed) == 6


@pytest.mark.parametrize(
    ("error", "expected"),
    [(EngineUnavailable("it died"), StageLost), (ComputeError("bad rows"), ComputeError)],
)
async def test_error_frames_become_conditions(error: ComputeError, expected: type[ComputeError]) -> None:
    ring = Ring()
    feed = ring.feed(1)
    await settle()
    ring.route.arrived(error_frame(ring.out[0], error))
    with pytest.raises(expected, match=error.message) as caught:
        await feed
    assert type(caught.value) is expected


async def test_a_lost_ring_fails_what_is_under_way_and_what_comes() -> None:
    ring = Ring()
    feed = ring.feed(1)
    await settle()
    ring.route.lost(StageLost("first reason"))
    ring.route.lost(StageLost("second reason"))
    with pytest.raises(StageLost, match="first reason"):
        await feed
    with pytest.raises(StageLost, match="first reason"):
        await ring.feed(1)


async def test_silence_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring()
    monkeypatch.setattr(limits, "STAGE_ANSWER_S_MAX", 0.01)
    with pytest.raises(StageLost, match="no rows came back"):
        await ring.feed(1)
    assert ring.route.waiting == 0


async def test_a_loss_while_the_frame_is_on_its_way_out_is_told_once() -> None:
    """The first reason stands, and no exception is left that nobody looks at."""
    ring = Ring(first=FIRST)
    ring.engine.gate = asyncio.Event()
    feed = ring.feed(1)
    await settle()
    ring.route.lost(StageLost("gone"))
    ring.broken = True
    ring.engine.gate.set()
    with pytest.raises(StageLost, match="gone"):
        await feed


async def test_free_goes_along_the_ring_behind_the_frames() -> None:
    ring = Ring(first=FIRST)
    feed = ring.feed(7, epoch=2)
    await settle()
    ring.route.arrived(ring.out[0])
    await feed
    await ring.route.free(7)
    assert ring.engine.named("free") == [("free", OUTPUT, 7), ("free", FIRST, 7)]
    assert (ring.out[-1].kind, ring.out[-1].session, ring.out[-1].epoch) == (Kind.FREE, 7, 2)


async def test_free_reaches_the_stages_when_the_heads_engine_is_gone() -> None:
    ring = Ring()
    ring.engine.failure = EngineUnavailable("it died")
    with pytest.raises(EngineUnavailable):
        await ring.route.free(7)
    assert ring.out[-1].kind is Kind.FREE


async def test_a_lost_ring_is_told_nothing() -> None:
    ring = Ring()
    ring.route.lost(StageLost("gone"))
    await ring.route.free(7)
    assert ring.out == []


async def test_without_other_devices_the_rows_come_from_here() -> None:
    engine = FakeEngine()
    route = PipelineRoute(engine, first_unit=FIRST, output_unit=OUTPUT, send=None)
    assert token_of(await route.feed(Feed(1, 0, 0, [4], sample=True))) == 5
    await route.free(1)
    assert [call[0] for call in engine.calls] == ["step", "sample", "free", "free"]


async def test_rows_of_a_text_come_back_as_they_are() -> None:
    """All of them are wanted, and the unit that samples does not see them."""
    ring = Ring(first=FIRST, output_has_layers=True)
    asked = asyncio.ensure_future(ring.route.rows(Feed(1, 0, 0, [4, 5, 6], sample=False)))
    await settle()
    (sent,) = ring.out
    assert (sent.rows, sent.wanted_first) == (3, 0)
    ring.route.arrived(sent)
    assert await asked is sent
    assert [call[0] for call in ring.engine.calls] == ["step"]
    asked = asyncio.ensure_future(ring.route.rows(Feed(2, 0, 0, [4], sample=False)))
    await settle()
    ring.route.lost(StageLost("gone"))
    with pytest.raises(StageLost):
        await asked
    with pytest.raises(StageLost):
        await ring.route.rows(Feed(3, 0, 0, [4], sample=False))


async def test_silence_asks_whether_the_stages_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that answers is waited for, one that does not is lost at once."""
    monkeypatch.setattr(limits, "STAGE_ASK_AFTER_S", 0.0)
    ring, asked = Ring(), 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise StageLost("gamma does not answer")

    ring.route = PipelineRoute(
        ring.engine, first_unit=None, output_unit=OUTPUT, send=ring.send, stages=2, ask=ask
    )
    with pytest.raises(StageLost, match="gamma"):
        await ring.feed(1)
    assert asked == 3


async def test_rows_that_come_while_asking_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STAGE_ASK_AFTER_S", 0.0)
    ring = Ring()

    async def ask() -> None:
        ring.route.arrived(ring.out[0])
        await asyncio.Event().wait()

    ring.route = PipelineRoute(
        ring.engine, first_unit=None, output_unit=OUTPUT, send=ring.send, stages=2, ask=ask
    )
    assert token_of(await ring.feed(1, 10)) == 11


# --- lanes and last layers -------------------------------------------------------------------------
def decoding(session: int, position: int, token: int) -> Feed:
    return Feed(session, 0, position, [token], sample=True, ahead=True, is_alone=True)


async def test_engines_carry_decoded_tokens_only() -> None:
    """A prompt goes by the stream, a token that is alone around by lanes."""
    ring = Ring(by_lanes=True)
    feed = ring.feed(1, 10)
    await settle()
    ring.route.arrived(ring.out[0])
    assert token_of(await feed) == 11
    assert token_of(await ring.route.feed(decoding(1, 1, 11))) == 12
    assert (len(ring.out), len(ring.engine.named("around"))) == (1, 1)


async def test_silent_lanes_are_left_for_good() -> None:
    """The token that met the silence goes by the stream, and so do all after it."""
    ring = Ring(by_lanes=True)
    ring.engine.failure = StageLost("the lane is silent")
    feeds = [asyncio.ensure_future(ring.route.feed(decoding(1, 7, 20)))]
    await settle()
    ring.engine.failure = None
    feeds.append(asyncio.ensure_future(ring.route.feed(decoding(2, 7, 30))))
    await settle()
    for frame in ring.out:
        ring.route.arrived(frame)
    assert [token_of(await feed) for feed in feeds] == [21, 31]
    assert len(ring.engine.named("around")) == 1
    assert not ring.route.by_lanes


async def test_other_conditions_of_a_round_are_told() -> None:
    ring = Ring(by_lanes=True)
    ring.engine.failure = ComputeError("bad rows")
    with pytest.raises(ComputeError, match="bad rows"):
        await ring.route.feed(decoding(1, 7, 20))
    assert ring.route.by_lanes
    assert ring.out == []


async def test_a_lost_ring_ends_its_rounds() -> None:
    ring = Ring(by_lanes=True)
    ring.engine.gate = asyncio.Event()
    feed = asyncio.ensure_future(ring.route.feed(decoding(1, 7, 20)))
    await settle()
    assert ring.route.waiting == 1
    ring.route.lost(StageLost("beta went away"))
    with pytest.raises(StageLost, match="beta went away"):
        await feed
    assert ring.route.waiting == 0


async def test_last_layers_here_see_every_chunk_in_order() -> None:
    """Rows of a later chunk that come back first wait; chunks that are not sampled are computed all the same."""
    ring = Ring(output_has_layers=True)
    feeds = [
        asyncio.ensure_future(ring.route.feed(Feed(1, 0, position, [5], sample=position == 2)))
        for position in (0, 1, 2)
    ]
    await settle()
    for frame in reversed(ring.out):
        ring.route.arrived(frame)
        await settle()
    assert [token_of(r) if r else None for r in await asyncio.gather(*feeds)] == [None, None, 6]
    assert [(call[0], call[3]) for call in ring.engine.calls] == [("step", 0), ("step", 1), ("sample", 2)]
