"""The node's side of an engine process: starts it, speaks with it, notices when it dies.

No llama.cpp and no arrays here: frames pass as the bytes they are. Every call either gets its answer or
raises; when the process goes, all waiting calls raise EngineUnavailable at once.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, TypeVar

from p2pnode.compute.child_process import kill, start_whole, to_the_end
from p2pnode.compute.engine_protocol import (
    Buffer,
    Message,
    encode_message,
    error_of,
    frame_of,
)
from p2pnode.compute.engine_stream import MessageStream
from p2pnode.errors import Busy, EngineUnavailable
from p2pnode.frame import Frame, row_bytes
from p2pnode.limits import (
    ENGINE_CALLS_MAX,
    ENGINE_CLOSE_TIMEOUT_S,
    ENGINE_LOG_BYTES_MAX,
    ENGINE_START_TIMEOUT_S,
)

OnExit = Callable[[int], None]
"""Called once with the exit code; negative is the signal that ended it."""
Progress = Callable[[float], None]
Relayed = Callable[[Frame, Frame], None]
"""What came in by a lane and what it became."""
T = TypeVar("T")
Shape = Callable[[Message, memoryview], T]
"""Makes an answer of a message; KeyError, TypeError or ValueError for one that makes no sense."""
_SPINS = "3000"


def engine_environment() -> dict[str, str]:
    """What an engine process starts with; what the node was started with goes before it.

    numpy converts rows here and multiplies nothing: its own thread pool would only cost memory. llama.cpp's threads
    meet at hundreds of barriers a token and spin there, by default for milliseconds: an engine that has finished then
    keeps a core from the next stage on the same machine, and on a machine with other work from everybody. So few turns
    cost a lone engine nothing that could be measured (docs/performance.md).
    """
    return {"OPENBLAS_NUM_THREADS": "1", "GOMP_SPINCOUNT": _SPINS, "PYTHONUNBUFFERED": "1"}


def streaming_environment() -> dict[str, str]:
    """For an engine that may keep a part of a model only: mapping a file makes none of it resident (`_watch.c`)."""
    found = importlib.util.find_spec("p2pnode.compute._watch")
    if sys.platform != "linux" or found is None or found.origin is None:
        return {}
    before = os.environ.get("LD_PRELOAD", "")
    return {"LD_PRELOAD": f"{found.origin}:{before}" if before else found.origin}


class EngineProcess:
    """Many concurrent calls to one engine process; make it with `start`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        stream: MessageStream,
        side: socket.socket,
        on_exit: OnExit | None,
    ) -> None:
        self._process = process
        self._stream = stream
        self._side = side
        self._on_exit = on_exit
        self._calls: dict[int, tuple[asyncio.Future[Any], Shape[Any]]] = {}
        self._progress: dict[int, Progress] = {}
        self._relayed: dict[int, Relayed] = {}
        self._next_call = 1
        self._lost: EngineUnavailable | None = None
        self._log: deque[bytes] = deque()
        self._log_bytes = 0
        self._closing = False
        self.exit_code: int | None = None
        self.hello: Mapping[str, Any] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stream.on_message, stream.on_closed = self._on_message, self._on_stream_closed
        self._tasks = {asyncio.create_task(self._read_log()), asyncio.create_task(self._watch())}

    @classmethod
    async def start(
        cls,
        *,
        on_exit: OnExit | None = None,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Self:
        """Start a process and wait until it speaks; raises EngineUnavailable with its last words."""
        ours, theirs = socket.socketpair()
        side, their_side = socket.socketpair()
        side.setblocking(False)
        try:
            process = await start_whole(
                asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "p2pnode.compute.engine",
                    str(theirs.fileno()),
                    str(their_side.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=(theirs.fileno(), their_side.fileno(), *pass_fds),
                    env={**engine_environment(), **os.environ, **(environment or {})},
                    process_group=0,
                )
            )
        except BaseException as exc:
            ours.close()
            side.close()
            if isinstance(exc, OSError):
                raise EngineUnavailable(f"cannot start an engine process: {exc.strerror}") from exc
            raise
        finally:
            theirs.close()
            their_side.close()
        client = cls(process, MessageStream(ours), side, on_exit)
        try:
            async with asyncio.timeout(ENGINE_START_TIMEOUT_S):
                await asyncio.shield(client._ready)
        except TimeoutError:
            await client.close()
            raise EngineUnavailable(
                f"an engine process did not start in {ENGINE_START_TIMEOUT_S:.0f} s"
            ) from None
        except BaseException:
            await client.close()
            raise
        return client

    # state
    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._lost is None

    @property
    def log(self) -> str:
        """The end of what the process wrote to stderr."""
        return b"".join(self._log).decode("utf-8", "replace")

    # plumbing
    async def _call(
        self, message: Message, payload: Buffer = b"", *, progress: Progress | None = None
    ) -> tuple[Message, memoryview]:
        call, future = self._begin(message, payload, lambda header, payload: (header, payload), progress)
        try:
            return await future
        finally:
            self._forget(call)

    def _begin(
        self, message: Message, payload: Buffer, shape: Shape[T], progress: Progress | None = None
    ) -> tuple[int, asyncio.Future[T]]:
        """Asked when this returns; the caller forgets the call once its answer, in that shape, is there."""
        if self._lost is not None:
            raise self._lost
        if len(self._calls) >= ENGINE_CALLS_MAX:
            raise Busy(f"{ENGINE_CALLS_MAX} calls already wait for this engine")
        call = self._next_call
        self._next_call += 1
        message["id"] = call
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls[call] = (future, shape)
        if progress is not None:
            self._progress[call] = progress
        self._stream.send(encode_message(message, payload))
        return call, future

    def _forget(self, call: int) -> None:
        self._calls.pop(call, None)
        self._progress.pop(call, None)

    def _send_side(self, streams: Sequence[socket.socket]) -> None:
        if self._lost is not None:
            raise self._lost
        try:
            socket.send_fds(self._side, [b"x"], [stream.fileno() for stream in streams])
        except OSError as exc:
            raise EngineUnavailable(f"the engine process is gone: {exc.strerror}") from exc

    def _on_message(self, header: Message, payload: memoryview) -> None:
        call = header.get("id")
        if call == 0:
            if "relayed" in header:
                self._hear_relayed(header["relayed"], payload)
            elif "error" in header and not self._ready.done():
                self._ready.set_exception(error_of(header["error"]))
            elif not self._ready.done():
                self.hello = header["hello"]
                self._ready.set_result(None)
            return
        if "progress" in header:
            listener = self._progress.get(call) if isinstance(call, int) else None
            if listener is not None:
                listener(header["progress"])
            return
        waiting = self._calls.get(call) if isinstance(call, int) else None
        if waiting is None or waiting[0].done():
            return
        future, shape = waiting
        if "error" in header:
            future.set_exception(error_of(header["error"]))
            return
        try:
            answer = shape(header, payload)
        except (KeyError, TypeError, ValueError) as exc:
            future.set_exception(EngineUnavailable(f"the engine's answer makes no sense: {exc!r}"))
        else:
            future.set_result(answer)

    def _hear_relayed(self, fields: Sequence[Sequence[Any]], payload: memoryview) -> None:
        used = 0
        for unit_id, *both in fields:
            frames = []
            for values in both:
                frame = frame_of(values, b"")
                size = frame.rows * row_bytes(frame.dtype, frame.columns)
                frames.append(replace(frame, payload=payload[used : used + size]))
                used += size
            observe = self._relayed.get(unit_id)
            if observe is not None:
                observe(*frames)

    def _on_stream_closed(self, reason: str) -> None:
        self._lose(reason)
        if not self._closing:
            kill(self._process)

    def _lose(self, reason: str) -> None:
        if self._lost is None:
            self._lost = EngineUnavailable(f"the engine process is gone: {reason}")
            self._stream.close()
            self._side.close()
        waiting: list[asyncio.Future[Any]] = [*(future for future, _ in self._calls.values()), self._ready]
        for future in waiting:
            if not future.done():
                future.set_exception(EngineUnavailable(self._lost.message, last_words=self.log[-1000:]))
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(4096):
            self._log.append(chunk)
            self._log_bytes += len(chunk)
            while self._log_bytes > ENGINE_LOG_BYTES_MAX:
                self._log_bytes -= len(self._log.popleft())

    async def _watch(self) -> None:
        code = await self._process.wait()
        self.exit_code = code
        name = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._lose(name)
        if self._on_exit is not None:
            self._on_exit(code)

    async def close(self) -> None:
        """End the process: closing the socket asks it, SIGKILL makes sure. Safe to call again.

        Whoever waits no longer makes it quicker, and leaves no process behind.
        """
        self._closing = True
        self._lose("closed")
        await to_the_end(self._ended(), hurry=lambda: kill(self._process))

    async def _ended(self) -> None:
        try:
            async with asyncio.timeout(ENGINE_CLOSE_TIMEOUT_S if self._ready.done() else 0):
                await self._process.wait()
        except BaseException as error:
            kill(self._process)
            if not isinstance(error, TimeoutError):
                raise
        await asyncio.wait(self._tasks)
