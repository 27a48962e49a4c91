"""A stage: order within a session, errors as frames, sessions freed with their stream, work bounded."""

from __future__ import annotations

import asyncio

import pytest

from p2pnode import limits
from p2pnode.compute.notices import forget_frame, free_frame, keep_frame, reuse_frame
from p2pnode.compute.stage import StageServer
from p2pnode.errors import ComputeError, Forbidden, P2PNodeError, StreamReset
from p2pnode.frame import Frame, Kind
from tests.kit.engine_units import tokens_frame
from tests.kit.fake_engine import FakeEngine
from tests.unit.compute.test_scheduler import settle


class Stage:
    """A stage between two queues."""

    def __init__(self, engine: FakeEngine | None = None) -> None:
        self.engine = engine or FakeEngine()
        self.sent: list[Frame] = []
        self.observed: list[int] = []
        self.send_gate: asyncio.Event | None = None
        self.send_failure: StreamReset | None = None
        self.inbound: asyncio.Queue[Frame | None] = asyncio.Queue()
        self.read = 0
        self.server = StageServer(
            self.engine, 1, self.send, lambda received, sent: self.observed.append(received.sequence)
        )
        self.serving = asyncio.ensure_future(self.server.serve(self.next))

    async def send(self, frame: Frame) -> None:
        if self.send_gate is not None:
            await self.send_gate.wait()
        if self.send_failure is not None:
            raise self.send_failure
        self.sent.append(frame)

    async def next(self) -> Frame:
        frame = await self.inbound.get()
        if frame is None:
            raise StreamReset("the stream ended")
        self.read += 1
        return frame

    def put(self, *frames: Frame | None) -> None:
        for frame in frames:
            self.inbound.put_nowait(frame)

    async def end(self) -> None:
        self.put(None)
        await self.serving


async def test_frames_of_a_session_stay_in_order_and_are_observed_so() -> None:
    """The first answer comes last out of the engine, and still leaves first; another session passes by."""
    gates = {1: asyncio.Event(), 2: asyncio.Event(), 3: asyncio.Event()}

    class Gated(FakeEngine):
        async def step(self, unit_id: int, frame: Frame) -> Frame:
            await gates[frame.sequence].wait()
            return frame

    stage = Stage(Gated())
    stage.put(
        tokens_frame([1], 0, session=1, sequence=1),
        tokens_frame([2], 1, session=1, sequence=2),
        tokens_frame([3], 0, session=2, sequence=3),
    )
    await settle()
    gates[2].set()
    gates[3].set()
    await settle()
    assert [frame.sequence for frame in stage.sent] == [3]
    gates[1].set()
    await settle()
    assert [frame.sequence for frame in stage.sent] == [3, 1, 2]
    assert stage.observed == [3, 1, 2]
    await stage.end()


async def test_an_engine_that_can_be_asked_by_a_call_is_asked_at_once() -> None:
    """In the turn of the loop that read the frame; its answers leave in order as those of others do."""
    answers: list[asyncio.Future[Frame]] = []
    asked: list[int] = []

    class Quick(FakeEngine):
        def begin_step(self, unit_id: int, frame: Frame) -> asyncio.Future[Frame]:
            assert unit_id == 1
            assert asyncio.current_task() is stage.serving
            asked.append(frame.sequence)
            answers.append(asyncio.get_running_loop().create_future())
            return answers[-1]

    stage = Stage(Quick())
    stage.put(*(tokens_frame([1], n, session=1, sequence=n) for n in range(3)))
    await settle()
    assert asked == [0, 1, 2]
    answers[1].set_exception(ComputeError("no memory"))
    answers[2].set_result(tokens_frame([1], 2, session=1))
    await settle()
    assert stage.sent == []
    answers[0].set_result(tokens_frame([1], 0, session=1))
    await settle()
    assert [(frame.sequence, frame.kind) for frame in stage.sent] == [
        (0, Kind.TOKENS), (1, Kind.ERROR), (2, Kind.TOKENS),
    ]  # fmt: skip
    stage.put(tokens_frame([1], 3, session=1, sequence=3))
    await settle()
    await stage.end()
    assert answers[3].cancelled(), "nobody is left to be told"


async def test_what_cannot_be_computed_travels_as_an_error() -> None:
    stage = Stage()
    stage.engine.failure = ComputeError("no memory")
    stage.put(tokens_frame([1], sequence=4))
    await settle()
    (frame,) = stage.sent
    assert (frame.kind, frame.sequence, frame.meta["code"]) == (Kind.ERROR, 4, ComputeError.code)
    assert stage.observed == []
    await stage.end()


async def test_free_waits_for_what_came_before_it() -> None:
    stage = Stage()
    stage.engine.gate = asyncio.Event()
    stage.put(tokens_frame([1], session=5), free_frame(5, 0))
    await settle()
    assert stage.engine.named("free") == []
    stage.engine.gate.set()
    await settle()
    assert [frame.kind for frame in stage.sent] == [Kind.TOKENS, Kind.FREE]
    assert stage.server.sessions == set()
    await stage.end()


async def test_the_end_of_the_stream_frees_every_session() -> None:
    stage = Stage()
    stage.put(tokens_frame([1], session=5), tokens_frame([1], session=6))
    await settle()
    await stage.end()
    assert sorted(stage.engine.named("free")) == [("free", 1, 5), ("free", 1, 6)]


async def test_a_stream_that_ends_ends_its_work() -> None:
    """Nothing waits for an engine that takes long, and nothing is left under way."""
    stage = Stage()
    stage.engine.gate = asyncio.Event()
    stage.put(*(tokens_frame([1], position, session=5) for position in range(3)))
    await settle()
    before = len(asyncio.all_tasks())
    await stage.end()
    await settle()
    assert stage.sent == []
    assert len(asyncio.all_tasks()) < before - 2


async def test_frames_that_came_with_the_end_do_not_hold_it_up() -> None:
    """Tasks cancelled before their first step give back what they were given, too."""
    stage = Stage()
    stage.engine.gate = asyncio.Event()
    stage.put(tokens_frame([1], session=5), tokens_frame([2], 1, session=5), None)
    async with asyncio.timeout(5):
        await stage.serving
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_work_under_way_is_bounded() -> None:
    """Behind a slow onward stream the stage stops reading: the one before it feels that."""
    stage = Stage()
    stage.send_gate = asyncio.Event()
    stage.put(*(tokens_frame([1], n, session=1) for n in range(limits.STAGE_FRAMES_IN_FLIGHT_MAX + 10)))
    await settle()
    assert stage.read == limits.STAGE_FRAMES_IN_FLIGHT_MAX + 1
    stage.send_gate.set()
    for _ in range(20):
        await settle()
    assert len(stage.sent) == limits.STAGE_FRAMES_IN_FLIGHT_MAX + 10
    await stage.end()


async def test_a_broken_way_on_ends_the_stage() -> None:
    stage = Stage()
    stage.send_failure = StreamReset("the next one went")
    stage.put(tokens_frame([1], session=5))
    with pytest.raises(BaseExceptionGroup) as caught:
        await stage.serving
    assert caught.value.subgroup(StreamReset) is not None
    assert stage.engine.named("free") == [("free", 1, 5)]


class Gate:
    """Lets sessions in as far as `reach` says."""

    def __init__(self, **reach: int) -> None:
        self.reach = {int(session.removeprefix("s")): end for session, end in reach.items()}
        self.over: list[int] = []

    def refusal(self, frame: Frame) -> P2PNodeError:
        return Forbidden(f"session {frame.session} is nobody's")

    def freed(self, session: int) -> None:
        self.over.append(session)


async def test_only_what_the_gate_lets_through_is_computed() -> None:
    """A refusal leaves in its session's order, and the engine never hears of the frame."""
    stage = Stage()
    stage.server._gate = gate = Gate(s1=2)
    stage.put(
        tokens_frame([1], 0, session=1, sequence=1),
        tokens_frame([5], 0, session=2, sequence=2),
        tokens_frame([2], 1, session=1, sequence=3),
        tokens_frame([3], 2, session=1, sequence=4),
    )
    await settle()
    kinds = {frame.sequence: (frame.kind, frame.meta.get("code")) for frame in stage.sent}
    assert kinds == {
        1: (stage.sent[0].kind, None),
        2: (Kind.ERROR, "forbidden"),
        3: (stage.sent[0].kind, None),
        4: (Kind.ERROR, "forbidden"),
    }
    assert [call[2:] for call in stage.engine.named("step")] == [(1, 0), (1, 1)]
    assert stage.observed == [1, 3]
    gate.reach[1] = 3
    stage.put(tokens_frame([3], 2, session=1, sequence=5), free_frame(1, 0))
    await settle()
    assert [frame.kind for frame in stage.sent[-2:]] == [stage.sent[0].kind, Kind.FREE]
    assert gate.over == [1]
    await stage.end()


async def test_a_stream_that_ends_ends_its_sessions_at_the_gate_first() -> None:
    stage = Stage()
    stage.server._gate = gate = Gate(s1=9, s2=9)
    stage.put(tokens_frame([1], 0, session=1, sequence=1), tokens_frame([1], 0, session=2, sequence=2))
    await settle()
    await stage.end()
    assert sorted(gate.over)[::2] == [1, 2]


# --- prefixes --------------------------------------------------------------------------------------
async def test_prefixes_are_kept_reused_and_forgotten_in_order_with_frames() -> None:
    stage = Stage()
    stage.put(tokens_frame([1, 2], 0, session=1))
    await settle()
    stage.put(
        keep_frame(1, 2),
        free_frame(1, 0),
        reuse_frame(2, 1, 2),
        tokens_frame([3], 2, session=2),
        forget_frame(1),
    )
    await settle()
    assert [call[0] for call in stage.engine.calls] == ["step", "keep", "free", "reuse", "step", "forget"]
    assert stage.engine.named("reuse") == [("reuse", 1, 2, 1, 2)]
    sent = [(frame.kind, frame.session) for frame in stage.sent]
    assert [kind for kind, session in sent if session == 1] == [
        Kind.TOKENS,
        Kind.KEEP,
        Kind.FREE,
        Kind.FORGET,
    ]
    assert [kind for kind, session in sent if session == 2] == [Kind.REUSE, Kind.TOKENS]
    assert sent.index((Kind.KEEP, 1)) < sent.index((Kind.REUSE, 2))
    (told,) = [frame for frame in stage.sent if frame.kind is Kind.REUSE]
    assert (told.position_first, told.request) == (2, 1), "the next stage is told the same"
    assert (stage.server.sessions, stage.server.prefixes) == ({2}, set())
    await stage.end()


async def test_what_is_kept_was_computed_before() -> None:
    """A frame still in the engine holds back what is said of its session, and of no other."""
    stage = Stage()
    stage.engine.gate = asyncio.Event()
    stage.put(tokens_frame([1, 2], 0, session=1), keep_frame(1, 2), forget_frame(7))
    await settle()
    assert [call[0] for call in stage.engine.calls] == ["step", "forget"]
    stage.engine.gate.set()
    await settle()
    assert stage.engine.named("keep") == [("keep", 1, 1, 2)]
    await stage.end()


async def test_what_is_not_kept_here_is_said_onward() -> None:
    """And the next stages never hear that they should begin there: nothing begins in half of the stages."""
    stage = Stage()
    stage.engine.missing = {1}
    stage.put(reuse_frame(2, 1, 7))
    await settle()
    (frame,) = stage.sent
    assert (frame.kind, frame.meta["code"]) == (Kind.ERROR, "session_lost")
    await stage.end()


async def test_prefixes_end_with_their_stream() -> None:
    stage = Stage()
    stage.put(tokens_frame([1, 2], 0, session=1), keep_frame(1, 2), free_frame(1, 0))
    await settle()
    await stage.end()
    assert stage.engine.named("forget") == [("forget", 1, 1)]
