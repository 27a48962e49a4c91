"""A ring that engines keep going by themselves: a decoded token's rows travel from engine to engine over lanes, and
no node stands in their way. Nodes hear of tokens and rows afterwards; whatever is unusual takes the streams.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from p2pnode.compute.engine_step import Reply, Step
from p2pnode.compute.engine_unit import Unit
from p2pnode.compute.frame_lane import FrameLane
from p2pnode.compute.notices import condition_of, error_frame
from p2pnode.errors import Cancelled, P2PNodeError, RequestError, StageLost
from p2pnode.frame import HEADER_BYTES, DType, Frame, Kind, decode, decode_header, encode, pack_tokens
from p2pnode.limits import RING_SILENCE_S_MIN

_SILENCE_STEPS = 8
"""So many times the slowest recent round may a round take before the ring is given up."""


def _earliest(*times: float | None) -> float | None:
    return min((at for at in times if at is not None), default=None)


def _packed(frame: Frame) -> bytes:
    return b"".join(encode(frame))


def _frames(lane: FrameLane, now: float) -> list[Frame]:
    """What arrived; a neighbour that is admitted and still sends nonsense is not answered."""
    frames = []
    for message in lane.pump(now):
        try:
            header = decode_header(message[:HEADER_BYTES])
            frames.append(decode(header, memoryview(message)[HEADER_BYTES:]))
        except P2PNodeError:
            continue
    return frames


class Relay:
    """A stage's place in a ring: frames in by one lane, rows out by the other."""

    def __init__(
        self, unit: Unit, inbound: FrameLane, onward: FrameLane, report: Callable[[Frame, Frame], None]
    ) -> None:
        self._unit, self._inbound, self._onward, self._report = unit, inbound, onward, report

    @property
    def lanes(self) -> tuple[FrameLane, FrameLane]:
        return (self._inbound, self._onward)

    def wake_at(self) -> float | None:
        return _earliest(self._inbound.wake_at(), self._onward.wake_at())

    def service(self, now: float) -> None:
        """Take what arrived; raises StageLost when a neighbour is silent."""
        self._onward.pump(now)
        for frame in _frames(self._inbound, now):
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        self._onward.settle(frame.session)  # the head would not go on had it not heard the answer before
        if frame.kind not in (Kind.ROWS, Kind.TOKENS):
            return
        try:
            if not self._unit.sessions.has(frame.session):
                raise StageLost("a lane only goes on with sessions that a stream began and did not end")
            self._unit.submit(0, frame, sample=False, then=lambda reply: self._done(frame, reply))
        except P2PNodeError as exc:
            self._send(error_frame(frame, exc))

    def _done(self, frame: Frame, reply: Reply) -> None:
        if reply.frame is None:
            self._send(error_frame(frame, reply.error or Cancelled("the step was cancelled")))
            return
        self._send(reply.frame)
        self._report(frame, reply.frame)

    def _send(self, frame: Frame) -> None:
        try:
            self._onward.send(frame.session, _packed(frame), time.monotonic())
        except RequestError as exc:
            self._onward.send(frame.session, _packed(error_frame(frame, exc)), time.monotonic())

    def end(self) -> None:
        """The head hears of it by silence, and takes the streams."""
        for lane in self.lanes:
            lane.close()


@dataclass(slots=True, eq=False)
class _Round:
    """One token on its way around."""

    call: int
    """0 while nobody asked for it."""
    frame: Frame
    """The token where it stands."""
    ahead: bool
    sequence: int = 0
    left_s: float = 0.0
    """When its rows left here; 0 before."""
    back: Frame | None = None
    step: Step | None = None


class Ring:
    """The head's part: sends a token on its way, samples what comes back, and begins the next round by itself."""

    def __init__(
        self,
        first: Unit | None,
        output: Unit,
        onward: FrameLane,
        back: FrameLane,
        answer: Callable[[Reply], None],
    ) -> None:
        self._first, self._output, self._onward, self._back = first, output, onward, back
        self._answer = answer
        self._rounds: dict[int, _Round] = {}
        self._sequence = 0
        self._slowest_s = 0.0

    @property
    def lanes(self) -> tuple[FrameLane, FrameLane]:
        return (self._onward, self._back)

    @property
    def units(self) -> set[int]:
        return {unit.unit_id for unit in (self._first, self._output) if unit is not None}

    def submit(self, call: int, frame: Frame, *, ahead: bool) -> None:
        """The token after this one is wanted: the round for it may be under way already."""
        if frame.kind is not Kind.TOKENS or frame.rows != 1 or frame.wanted != 1:
            raise RequestError("a ring goes on token by token")
        begun = self._rounds.get(frame.session)
        if begun is not None and not begun.call and _is_same(begun.frame, frame):
            begun.call, begun.ahead = call, ahead
            if begun.step is not None and not self._output.claim(begun.step, call, ahead=ahead):
                self._enter(begun)  # its result made room for another's
            return
        self._begin(_Round(call, frame, ahead))

    def _begin(self, begun: _Round) -> None:
        session = begun.frame.session
        before = self._rounds.get(session)
        if before is not None and before.call and before.step is None:
            self._fail(before, Cancelled("another step took its place"))
        self._sequence = begun.sequence = (self._sequence + 1) % 2**32
        self._rounds[session] = begun
        if self._first is None:
            self._leave(begun, begun.frame)
            return
        try:
            self._first.submit(0, begun.frame, sample=False, then=lambda reply: self._computed(begun, reply))
        except P2PNodeError as exc:
            self._fail(begun, exc)

    def _computed(self, begun: _Round, reply: Reply) -> None:
        if self._rounds.get(begun.frame.session) is not begun:
            return
        if reply.frame is None:
            self._fail(begun, reply.error or Cancelled("the step was cancelled"))
        else:
            self._leave(begun, reply.frame)

    def _leave(self, begun: _Round, frame: Frame) -> None:
        begun.left_s = time.monotonic()
        try:
            message = _packed(replace(frame, sequence=begun.sequence))
            self._onward.send(frame.session, message, begun.left_s)
        except RequestError as exc:
            self._fail(begun, StageLost(exc.message))

    def service(self, now: float) -> None:
        """Take what arrived; raises StageLost when the ring is silent."""
        self._onward.pump(now)
        for frame in _frames(self._back, now):
            self._take(frame, now)
        for begun in self._rounds.values():
            if begun.step is None and begun.left_s and now > begun.left_s + self._patience_s():
                raise StageLost("no rows came back through the lanes")

    def _patience_s(self) -> float:
        return max(RING_SILENCE_S_MIN, _SILENCE_STEPS * self._slowest_s)

    def wake_at(self) -> float | None:
        """When silence has lasted too long."""
        left = [r.left_s for r in self._rounds.values() if r.step is None and r.left_s]
        silent_at = min(left) + self._patience_s() if left else None
        return _earliest(silent_at, self._onward.wake_at(), self._back.wake_at())

    def _take(self, frame: Frame, now: float) -> None:
        begun = self._rounds.get(frame.session)
        if begun is None or begun.sequence != frame.sequence or begun.step is not None:
            return
        self._onward.settle(frame.session)
        self._slowest_s = max(now - begun.left_s, 0.9 * self._slowest_s)
        if frame.kind is Kind.ERROR:
            self._fail(begun, condition_of(frame))
        elif frame.kind is Kind.ROWS:
            begun.back = frame
            self._enter(begun)

    def _enter(self, begun: _Round) -> None:
        assert begun.back is not None
        try:
            begun.step = self._output.submit(
                begun.call,
                begun.back,
                sample=True,
                ahead=begun.ahead,
                go_on=self._go_on,
                unasked=not begun.call,
            )
        except P2PNodeError as exc:
            self._fail(begun, exc)

    def _go_on(self, step: Step) -> None:
        """A token was sampled and told: begin the round over it."""
        begun = self._rounds.get(step.frame.session)
        if begun is None or begun.step is not step:
            return
        was = begun.frame
        frame = Frame(
            Kind.TOKENS, DType.I32, 1, 1, was.session, pack_tokens([step.sampled[-1].token]),
            was.epoch, was.position_first + 1,
        )  # fmt: skip
        self._begin(_Round(0, frame, ahead=False))

    def _fail(self, begun: _Round, error: P2PNodeError) -> None:
        if self._rounds.get(begun.frame.session) is begun:
            del self._rounds[begun.frame.session]
        if begun.call:
            self._answer(Reply(begun.call, error))

    def forget(self, session_id: int) -> None:
        """A session is over, or goes on elsewhere."""
        begun = self._rounds.pop(session_id, None)
        if begun is not None:
            self._onward.settle(session_id)
            if begun.call and begun.step is None:
                self._answer(Reply(begun.call, Cancelled("the step was cancelled")))

    def end(self, error: P2PNodeError) -> None:
        """Give up: whoever waits for a round hears why."""
        for begun in list(self._rounds.values()):
            if begun.step is None:
                self._fail(begun, error)
        self._rounds.clear()
        for lane in self.lanes:
            lane.close()


def _is_same(begun: Frame, asked: Frame) -> bool:
    return (begun.epoch, begun.position_first, bytes(begun.payload)) == (
        asked.epoch, asked.position_first, bytes(asked.payload),
    )  # fmt: skip
