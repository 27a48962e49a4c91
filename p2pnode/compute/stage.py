"""One stage of a pipeline as a device serves it: frames in, one engine unit, frames out.

Frames of different sessions may overtake each other (the engine batches whatever waits); frames of one
session never do, because the engine answers each session in the order it was asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from p2pnode import limits
from p2pnode.compute.notices import error_frame
from p2pnode.errors import P2PNodeError
from p2pnode.frame import CONTROLS, Frame, Kind

SendFrame = Callable[[Frame], Awaitable[None]]
ObserveRows = Callable[[Frame, Frame], None]
"""Told what came in and what it became, in order within a session."""


class UnitEngine(Protocol):
    """The part of an engine a stage needs."""

    async def step(self, unit_id: int, frame: Frame) -> Frame: ...

    async def free_session(self, unit_id: int, session: int) -> None: ...

    async def keep_prefix(self, unit_id: int, session: int, count: int) -> None: ...

    async def reuse_prefix(self, unit_id: int, session: int, prefix: int, count: int) -> None: ...

    async def forget_prefix(self, unit_id: int, prefix: int) -> None: ...


@runtime_checkable
class QuickEngine(Protocol):
    """An engine that is asked by a plain call."""

    def begin_step(self, unit_id: int, frame: Frame) -> asyncio.Future[Frame]: ...


class Gate(Protocol):
    """Which sessions a stage computes for, and how far."""

    @property
    def reach(self) -> Mapping[int, int]:
        """By session: the positions that may be computed now. Asked for every frame, so it is a plain lookup."""
        ...

    def refusal(self, frame: Frame) -> P2PNodeError:
        """Why a frame past its session's reach is not computed."""
        ...

    def freed(self, session: int) -> None:
        """A session is over."""
        ...


class StageServer:
    """Serves one inbound stream of frames; what comes out goes to `send`, in order per session."""

    def __init__(
        self,
        engine: UnitEngine,
        unit_id: int,
        send: SendFrame,
        observe: ObserveRows | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._engine = engine
        self._begin_step = engine.begin_step if isinstance(engine, QuickEngine) else self._begin_task
        self._unit_id = unit_id
        self._send = send
        self._observe = observe
        self._gate = gate
        self._room = asyncio.Semaphore(limits.STAGE_FRAMES_IN_FLIGHT_MAX)
        self._tails: dict[int, asyncio.Task[None]] = {}
        self._steps: dict[int, asyncio.Future[Frame]] = {}
        """The newest step of each session with frames under way; the engine answers a session's in order."""
        self._running: set[asyncio.Task[None]] = set()
        self.sessions: set[int] = set()
        self.prefixes: set[int] = set()

    async def serve(self, read: Callable[[], Awaitable[Frame]]) -> None:
        """Until the stream ends or breaks; then every session that came over it is freed."""
        try:
            async with asyncio.TaskGroup() as group:
                try:
                    while True:
                        frame = await read()
                        await self._room.acquire()
                        self._start(group, frame)
                except P2PNodeError:
                    for task in self._running:
                        task.cancel()
        finally:
            if self._gate is not None:
                for session in self.sessions:
                    self._gate.freed(session)  # all at once: engines may take their time, new rings do not
            for session in list(self.sessions):
                await self._quietly(self._free(session))
            for prefix in list(self.prefixes):
                await self._quietly(self._forget(prefix))

    def _start(self, group: asyncio.TaskGroup, frame: Frame) -> None:
        before = self._tails.get(frame.session)
        # The engine must see the frames of a session in the order they came, so the call starts now ...
        work: asyncio.Future[Frame] | None = None
        if frame.kind in (Kind.ROWS, Kind.TOKENS):
            work = self._admitted(frame)
        elif frame.kind in CONTROLS and self._is_computed(frame.session):
            # Done before what comes next: another session's step may count on the room, or on the prefix.
            work = asyncio.ensure_future(self._control(frame))
        # ... and its answer waits for the answers before it.
        task = self._tails[frame.session] = group.create_task(self._finish(frame, work, before))
        self._running.add(task)
        task.add_done_callback(lambda done: self._over(done, frame.session, work))

    def _admitted(self, frame: Frame) -> asyncio.Future[Frame]:
        gate = self._gate
        if gate is not None and frame.position_first + frame.rows > gate.reach.get(frame.session, 0):
            refused: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
            refused.set_exception(gate.refusal(frame))
            return refused
        self.sessions.add(frame.session)
        step = self._steps[frame.session] = self._begin_step(self._unit_id, frame)
        return step

    def _begin_task(self, unit_id: int, frame: Frame) -> asyncio.Future[Frame]:
        return asyncio.ensure_future(self._engine.step(unit_id, frame))

    def _is_computed(self, session: int) -> bool:
        step = self._steps.get(session)
        return step is None or step.done()

    def _over(self, task: asyncio.Task[None], session: int, work: asyncio.Future[Frame] | None) -> None:
        """Also for a task that was cancelled before its first step."""
        self._running.discard(task)
        self._room.release()
        if work is not None and not work.cancel() and not work.cancelled():
            work.exception()  # whoever would have told of it is gone
        if self._tails.get(session) is task:
            del self._tails[session]
            self._steps.pop(session, None)

    async def _finish(
        self, frame: Frame, work: asyncio.Future[Frame] | None, before: asyncio.Task[None] | None
    ) -> None:
        result = frame
        if work is None and before is not None and frame.kind in CONTROLS:
            await asyncio.wait([before])
            work = asyncio.ensure_future(self._control(frame))
        if work is not None:
            try:
                result = replace(await work, sequence=frame.sequence, request=frame.request)
            except P2PNodeError as error:
                result = error_frame(frame, error)
        if before is not None:
            await asyncio.wait([before])
        if (
            self._observe is not None
            and frame.kind in (Kind.ROWS, Kind.TOKENS)
            and result.kind is not Kind.ERROR
        ):
            self._observe(frame, result)
        await self._send(result)

    async def _control(self, frame: Frame) -> Frame:
        """Do what a frame without rows says; it goes on as it came."""
        match frame.kind:
            case Kind.FREE:
                await self._quietly(self._free(frame.session))
            case Kind.KEEP:
                self.prefixes.add(frame.session)
                await self._engine.keep_prefix(self._unit_id, frame.session, frame.position_first)
            case Kind.REUSE:
                self.sessions.add(frame.session)
                prefix, count = frame.request, frame.position_first
                await self._engine.reuse_prefix(self._unit_id, frame.session, prefix, count)
            case _:
                await self._quietly(self._forget(frame.session))
        return frame

    async def _free(self, session: int) -> None:
        self.sessions.discard(session)
        if self._gate is not None:
            self._gate.freed(session)
        await self._engine.free_session(self._unit_id, session)

    async def _forget(self, prefix: int) -> None:
        self.prefixes.discard(prefix)
        await self._engine.forget_prefix(self._unit_id, prefix)

    async def _quietly(self, ending: Coroutine[Any, Any, None]) -> None:
        try:
            await ending
        except P2PNodeError:
            return  # the engine is gone, and what it held with it
