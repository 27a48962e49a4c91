"""The route around a ring: tokens go in at the head, rows along the stages, and back to the head that samples."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from p2pnode import limits
from p2pnode.compute.engine_protocol import Sampled
from p2pnode.compute.notices import condition_of, forget_frame, free_frame, keep_frame, reuse_frame
from p2pnode.compute.route import Feed, HeadEngine
from p2pnode.compute.stage import SendFrame
from p2pnode.errors import P2PNodeError, StageLost
from p2pnode.facade import SamplingParams
from p2pnode.frame import CONTROLS, Frame, Kind

AskStages = Callable[[], Awaitable[None]]
"""Whether the devices of all stages answer; raises StageLost for one that does not."""

T = TypeVar("T")


def _pass_on(done: asyncio.Future[Sampled], result: asyncio.Future[Sampled | None]) -> None:
    """None where the lanes are silent: the streams are tried next."""
    if done.cancelled():
        return
    error = done.exception()
    if result.done():
        return
    if error is None:
        result.set_result(done.result())
    elif isinstance(error, StageLost):
        result.set_result(None)
    else:
        result.set_exception(error)


class PipelineRoute:
    """A ring: first unit here (or remote), rows along the stages, back here to the output unit.

    `send` puts a frame on the stream to the first remote stage; frames of the last stage are handed to
    `arrived`. Results are matched by sequence, so any number of sessions and chunks may be under way.
    Without `send` all layers are in the first unit: what is left of a ring when every other device went.
    """

    def __init__(
        self,
        engine: HeadEngine,
        *,
        first_unit: int | None,
        output_unit: int,
        send: SendFrame | None,
        stages: int = 1,
        ask: AskStages | None = None,
        ring: int | None = None,
        output_has_layers: bool = False,
    ) -> None:
        self._ask = ask
        self.stages = stages
        self._engine = engine
        self._first_unit = first_unit
        self._output_unit = output_unit
        self._send = send
        self._sequence = 0
        self._row_s = 0.0
        """Slowest recent time a row; the probe sets the first."""
        self._ring = ring
        self.by_lanes = ring is not None
        """Whether engines pass decoded tokens on by themselves; over when their lanes fall silent."""
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._around: set[asyncio.Future[Sampled | None]] = set()
        self._lost: P2PNodeError | None = None
        self._epochs: dict[int, int] = {}
        self._order: dict[int, asyncio.Lock] = {}
        self.output_has_layers = output_has_layers
        """Then the unit that samples needs the rows of every chunk, in order."""
        self._last: dict[int, asyncio.Event] = {}

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._around)

    @property
    def home(self) -> tuple[object, int]:
        return (self._engine, self._output_unit)

    async def open(self, session: int, params: SamplingParams, prompt_tokens: Sequence[int]) -> None:
        await self._engine.open_session(self._output_unit, session, params, prompt_tokens)

    async def feed(self, feed: Feed) -> Sampled | None:
        if self._lost is not None:
            raise self._lost
        if self.by_lanes and feed.is_alone:
            sampled = await self._feed_around(feed)
            if sampled is not None:
                return sampled
            self.by_lanes = False  # the streams stand, or will say that they do not
        self._sequence = (self._sequence + 1) % 2**32
        sequence = self._sequence
        self._epochs[feed.session] = feed.epoch
        frame = feed.frame(sequence)
        before, after = self._last.get(feed.session), asyncio.Event()
        self._last[feed.session] = after
        try:
            return await self._feed_along(feed, frame, sequence, before, after)
        finally:
            after.set()

    async def rows(self, feed: Feed) -> Frame:
        """Every row as the last stage leaves it, for a unit of the head that pools; nothing is sampled of it."""
        if self._lost is not None:
            raise self._lost
        self._sequence = sequence = (self._sequence + 1) % 2**32
        self._epochs[feed.session] = feed.epoch
        frame = replace(feed.frame(sequence), wanted_first=0)

        async def as_it_is(back: Frame) -> Frame:
            return back

        return await self._along(feed, frame, sequence, as_it_is)

    async def _feed_along(
        self, feed: Feed, frame: Frame, sequence: int, before: asyncio.Event | None, after: asyncio.Event
    ) -> Sampled | None:
        """Through the streams, and into the unit that samples after the session's feed before this one."""

        async def end(back: Frame) -> Sampled | None:
            if before is not None:
                await before.wait()
            return await self._end_with(feed, back, after)

        return await self._along(feed, frame, sequence, end)

    async def _along(
        self, feed: Feed, frame: Frame, sequence: int, end: Callable[[Frame], Awaitable[T]]
    ) -> T:
        """Through the streams; what the last stage answers is for `end`."""
        result: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[sequence] = result
        try:
            async with self._order.setdefault(feed.session, asyncio.Lock()):
                # One session's chunks leave in order even when several feeds run side by side.
                if self._first_unit is not None:
                    rows = await self._engine.step(self._first_unit, frame)
                    frame = replace(rows, sequence=sequence, epoch=feed.epoch)
                if self._send is None:
                    if not result.done():  # the plan may have ended while the engine computed
                        result.set_result(frame)
                else:
                    await self._send(frame)
            started_s = time.monotonic()
            back = await self._await(result, len(feed.tokens))
            took_s = (time.monotonic() - started_s) / max(1, len(feed.tokens))
            self._row_s = max(took_s, 0.9 * self._row_s)
            return await end(back)
        except P2PNodeError as error:
            if self._lost is not None and error is not self._lost:
                raise self._lost from error  # a unit that is gone with its plan says only that it is not there
            raise
        finally:
            self._waiting.pop(sequence, None)
            if not result.cancel() and not result.cancelled():
                result.exception()  # it may have come while the frame was still on its way out

    async def _end_with(self, feed: Feed, back: Frame, entered: asyncio.Event) -> Sampled | None:
        """The head's own last part: layers if it has some, then a sample if one is wanted."""
        if feed.sample:
            sampling = asyncio.ensure_future(self._engine.step_sample(self._output_unit, back))
            entered.set()
            return await sampling
        if self.output_has_layers:
            step = asyncio.ensure_future(self._engine.step(self._output_unit, back))
            entered.set()
            await step
        return None

    async def _feed_around(self, feed: Feed) -> Sampled | None:
        """Through lanes, from engine to engine; None where these are silent."""
        assert self._ring is not None
        self._epochs[feed.session] = feed.epoch
        started_s = time.monotonic()
        work = asyncio.ensure_future(self._engine.ring_step(self._ring, feed.frame(0), ahead=feed.ahead))
        result: asyncio.Future[Sampled | None] = asyncio.get_running_loop().create_future()
        self._around.add(result)
        work.add_done_callback(lambda done: _pass_on(done, result))
        try:
            sampled = await self._await(result, 1)
        except P2PNodeError as error:
            if self._lost is not None and error is not self._lost:
                raise self._lost from error
            raise
        finally:
            self._around.discard(result)
            work.cancel()
            if not result.cancel() and not result.cancelled():
                result.exception()
        if sampled is not None:
            self._row_s = max(time.monotonic() - started_s, 0.9 * self._row_s)
        return sampled

    async def _await(self, result: asyncio.Future[T], rows: int) -> T:
        """A device that computes for long still answers when asked whether it is there; one that is gone does not."""
        patience_s = self._patience_s(rows)
        deadline_s = time.monotonic() + patience_s
        pause_s = limits.STAGE_ASK_AFTER_S + 5 * rows * self._row_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            await asyncio.wait([result], timeout=min(left_s, pause_s) if self._ask else left_s)
            if not result.done() and self._ask is not None:
                asking = asyncio.ensure_future(self._ask())
                both: list[asyncio.Future[Any]] = [result, asking]
                try:
                    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                    if not result.done():
                        await asking
                finally:
                    asking.cancel()
                    await asyncio.gather(asking, return_exceptions=True)
            if result.done():
                return result.result()
        raise StageLost(f"no rows came back within {patience_s:.1f} s")

    def _patience_s(self, rows: int) -> float:
        """How long silence may last: generous against the slowest row seen, short against a device that sleeps."""
        if not self._row_s:
            return limits.STAGE_ANSWER_S_MAX
        return min(limits.STAGE_ANSWER_S_MAX, limits.STAGE_SILENCE_S_MIN + 20 * rows * self._row_s)

    def arrived(self, frame: Frame) -> None:
        """A frame of the last stage; late ones of an older epoch or a freed session are nobody's."""
        waiting = self._waiting.get(frame.sequence)
        if waiting is None or waiting.done() or frame.kind in CONTROLS:
            return
        if frame.kind is Kind.ERROR:
            waiting.set_exception(condition_of(frame))
        elif frame.epoch == self._epochs.get(frame.session):
            waiting.set_result(frame)

    def lost(self, error: P2PNodeError) -> None:
        """The ring is broken: everything under way fails now, and so does every later feed."""
        self._lost = self._lost or error
        under_way: list[asyncio.Future[Any]] = [*self._waiting.values(), *self._around]
        for waiting in under_way:
            if not waiting.done():
                waiting.set_exception(error)

    async def free(self, session: int) -> None:
        try:
            await self._engine.free_session(self._output_unit, session)
            if self._first_unit is not None:
                await self._engine.free_session(self._first_unit, session)
        finally:
            await self.free_stages(session)

    async def free_stages(self, session: int) -> None:
        """The other devices forget a session; what samples here goes on."""
        epoch = self._epochs.pop(session, 0)
        self._order.pop(session, None)
        self._last.pop(session, None)
        if self._lost is None and self._send is not None:
            await self._send(free_frame(session, epoch))

    @property
    def _own_units(self) -> list[int]:
        """Units here that hold keys and values."""
        first = [] if self._first_unit is None else [self._first_unit]
        return [*first, self._output_unit] if self.output_has_layers else first

    async def keep(self, session: int, count: int) -> None:
        for unit in self._own_units:
            await self._engine.keep_prefix(unit, session, count)
        await self._tell(keep_frame(session, count))

    async def reuse(self, session: int, prefix: int, count: int) -> None:
        for unit in self._own_units:
            await self._engine.reuse_prefix(unit, session, prefix, count)
        await self._tell(reuse_frame(session, prefix, count))

    async def forget(self, prefix: int) -> None:
        try:
            for unit in self._own_units:
                await self._engine.forget_prefix(unit, prefix)
        finally:
            if self._lost is None:
                await self._tell(forget_frame(prefix))

    async def _tell(self, frame: Frame) -> None:
        """A frame without rows, in order with those before it; the last stage's echo of it is nobody's."""
        if self._lost is not None:
            raise self._lost
        if self._send is not None:
            await self._send(frame)
