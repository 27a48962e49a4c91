"""One direction of an in-memory stream: a bounded buffer behind a link with seeded faults."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from p2pnode import limits
from p2pnode.errors import LocalProtocolError, P2PNodeError, StreamReset


@dataclass(slots=True)
class Link:
    """Faults between two nodes. Loss costs time, as it does under QUIC: streams stay reliable and in order."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    """Probability that a chunk has to be sent again."""
    rate_bytes_s: float | None = None
    rng: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 (seeded faults, no secret)
    is_cut: bool = False
    held: list[Callable[[], None]] = field(default_factory=list)
    """Deliveries that wait for the end of a partition."""
    _free_at: float = 0.0

    def delay_s(self, size: int, now: float) -> float:
        delay = self.latency_s + self.jitter_s * self.rng.random()
        while self.loss and self.rng.random() < self.loss:
            # RFC 9002: a lost packet is noticed after about a round trip and a quarter.
            delay += 2.5 * self.latency_s + 0.001
        if self.rate_bytes_s is not None:
            self._free_at = max(self._free_at, now) + size / self.rate_bytes_s
            delay += self._free_at - now
        return delay

    def heal(self) -> None:
        self.is_cut = False
        held, self.held = self.held, []
        for deliver in held:
            deliver()


class Pipe:
    """Bytes from one writer to one reader."""

    def __init__(self, link: Link) -> None:
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._chunks: deque[bytes] = deque()
        self._queue: deque[Callable[[], None]] = deque()
        self._unread = 0
        self._travelling = 0
        self._arrives_at = 0.0
        self._fin_sent = False
        self._fin_received = False
        self._is_discarding = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self.error: P2PNodeError | None = None

    @property
    def is_over(self) -> bool:
        return self.error is not None or (self._fin_received and not self._unread)

    @property
    def held_bytes(self) -> int:
        """What a reader that does not read costs: never more than the window."""
        return self._unread + self._travelling

    # --- writer ------------------------------------------------------------------------------------
    async def write(self, data: bytes) -> None:
        self._check_writable()
        while data:
            while (room := limits.STREAM_WINDOW_BYTES - self.held_bytes) <= 0:
                await self._wait_for_room()
            self._send(data[:room])
            data = data[room:]

    def _check_writable(self) -> None:
        if self.error is not None:
            raise self.error
        if self._fin_sent:
            raise LocalProtocolError("write after close_write")

    async def _wait_for_room(self) -> None:
        assert self._writer is None, "two tasks write one stream"
        self._writer = self._loop.create_future()
        try:
            await self._writer
        finally:
            self._writer = None
        self._check_writable()

    def close(self) -> None:
        if not self._fin_sent and self.error is None:
            self._fin_sent = True
            self._schedule(self._deliver_fin, 0)

    def _send(self, data: bytes) -> None:
        self._travelling += len(data)
        self._schedule(lambda: self._deliver(data), len(data))

    def _schedule(self, deliver: Callable[[], None], size: int) -> None:
        now = self._loop.time()
        self._arrives_at = max(self._arrives_at, now + self._link.delay_s(size, now))
        self._queue.append(deliver)
        if self._arrives_at <= now:
            self._loop.call_soon(self._arrive)
        else:
            self._loop.call_at(self._arrives_at, self._arrive)

    def _arrive(self) -> None:
        """The oldest delivery: timers of the same moment fire in any order."""
        deliver = self._queue.popleft()
        if self._link.is_cut:
            self._link.held.append(deliver)
        else:
            deliver()

    # --- reader ------------------------------------------------------------------------------------
    def _deliver(self, data: bytes) -> None:
        self._travelling -= len(data)
        if self.error is None and not self._is_discarding:
            self._chunks.append(data)
            self._unread += len(data)
            self._wake(self._reader)
        else:
            self._wake(self._writer)

    def _deliver_fin(self) -> None:
        self._fin_received = True
        self._wake(self._reader)

    async def read(self, size_max: int) -> bytes:
        while not self._unread:
            if self.error is not None:
                raise self.error
            if self._fin_received:
                return b""
            assert self._reader is None, "two tasks read one stream"
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        chunk = self._chunks.popleft()
        if len(chunk) > size_max:
            self._chunks.appendleft(chunk[size_max:])
            chunk = chunk[:size_max]
        self._unread -= len(chunk)
        self._wake(self._writer)
        return chunk

    def fail(self, error: P2PNodeError) -> None:
        if self.error is None and not (self._fin_received and not self._unread):
            self.error = error
            self._chunks.clear()
            self._unread = 0
        self._wake(self._reader)
        self._wake(self._writer)

    def discard(self) -> None:
        """Nobody reads any more: the writer is not held back by that."""
        self._is_discarding = True
        self._chunks.clear()
        self._unread = 0
        self._wake(self._writer)

    def abort(self, code: int) -> None:
        """RESET_STREAM from the writer or STOP_SENDING from the reader."""
        self.fail(StreamReset("the stream was reset", code=code))

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
