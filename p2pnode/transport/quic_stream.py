"""A stream as handlers see it: bytes in, bytes out, back-pressure both ways.

Readers are woken in the batch of datagrams that completes what they wait for; there is no queue, task or
copy between the packet and the reader beyond joining chunks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from p2pnode import limits
from p2pnode.errors import LocalProtocolError, P2PNodeError, RemoteProtocolError, StreamReset
from p2pnode.transport.port import Buffer
from p2pnode.units import PeerId

if TYPE_CHECKING:
    from p2pnode.transport.quic_connection import QuicPeerConnection

_READ_STEP_BYTES = limits.STREAM_WINDOW_BYTES // 8
"""A long read_exactly takes bytes in steps, so that the window moves while it waits."""

_WRITE_STEP_BYTES = 256 * 1024


class QuicPeerStream:
    """Implements the Stream port. One task reads and one task writes at a time."""

    __slots__ = (
        "_chunks",
        "_connection",
        "_discarding",
        "_error",
        "_fin_received",
        "_fin_sent",
        "_reader",
        "_reader_need",
        "_stopped",
        "_unread",
        "_writer",
        "moved",
        "protocol",
        "stream_id",
    )

    def __init__(self, connection: QuicPeerConnection, stream_id: int) -> None:
        self._connection = connection
        self.stream_id = stream_id
        self.protocol = ""
        self.moved = [0, 0]
        """Bytes received and sent, shared by all streams of its protocol once that is agreed."""
        self._chunks: deque[bytes] = deque()
        self._unread = 0
        self._fin_received = False
        self._fin_sent = False
        self._discarding = False
        self._stopped = False
        self._error: P2PNodeError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._reader_need = 1
        self._writer: asyncio.Future[None] | None = None

    @property
    def peer_id(self) -> PeerId:
        return self._connection.peer_id

    @property
    def connection(self) -> QuicPeerConnection:
        return self._connection

    @property
    def is_finished(self) -> bool:
        """Nothing more will come or go: the connection forgets the stream."""
        return self._error is not None or (self._fin_received and (self._fin_sent or self._stopped))

    # --- fed by the connection ---------------------------------------------------------------------
    def feed(self, data: bytes, fin: bool) -> None:
        size = len(data)
        if self._discarding:
            self._connection.consumed(self.stream_id, size)
        elif size:
            self._chunks.append(data)
            self._unread += size
        if fin:
            self._fin_received = True
        reader = self._reader
        if reader is not None and (fin or self._unread >= self._reader_need) and not reader.done():
            reader.set_result(None)

    def unread(self, data: bytes) -> None:
        """Put back bytes that belong to the protocol, not to its negotiation."""
        if data:
            self._chunks.appendleft(data)
            self._unread += len(data)
            self._connection.core.consume(self.stream_id, -len(data))

    def fail(self, error: P2PNodeError) -> None:
        """The stream ended in the middle: whoever waits learns why."""
        if self._error is None:
            self._error = error
        self._drop_unread()
        self.wake_reader()
        self.wake_writer()

    def stop_writing(self) -> None:
        """STOP_SENDING: the peer does not want more; what it sent can still be read."""
        self._stopped = True
        self.wake_writer()

    def wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def wake_writer(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def _drop_unread(self) -> None:
        dropped, self._unread = self._unread, 0
        self._chunks.clear()
        self._discarding = True
        if dropped:
            self._connection.consumed(self.stream_id, dropped)

    # --- reading -----------------------------------------------------------------------------------
    async def _wait_for_bytes(self, need: int) -> None:
        """Until `need` bytes are there, or FIN; raises when the stream failed."""
        while self._unread < need and not self._fin_received:
            if self._error is not None:
                raise self._error
            assert self._reader is None, "two tasks read one stream"
            self._reader = self._connection.loop.create_future()
            self._reader_need = need
            try:
                await self._reader
            finally:
                self._reader = None
        if self._error is not None:
            raise self._error

    def _take(self, size: int) -> bytes:
        chunks = self._chunks
        first = chunks[0]
        if len(first) == size:
            chunks.popleft()
        elif len(first) > size:
            chunks[0] = first[size:]
            first = first[:size]
        else:
            parts, missing = [], size
            while missing:
                part = chunks.popleft()
                if len(part) > missing:
                    chunks.appendleft(part[missing:])
                    part = part[:missing]
                parts.append(part)
                missing -= len(part)
            first = b"".join(parts)
        self._unread -= size
        self.moved[0] += size
        self._connection.consumed(self.stream_id, size)
        return first

    async def read(self, size_max: int) -> bytes:
        if not self._unread:
            await self._wait_for_bytes(1)
            if not self._unread:
                return b""
        return self._take(min(size_max, self._unread))

    async def read_exactly(self, size: int) -> bytes:
        if 0 < size <= self._unread:
            return self._take(size)
        if size <= _READ_STEP_BYTES:
            await self._wait_for_bytes(size)
            if self._unread < size:
                raise self._ended_early(size, self._unread)
            return self._take(size) if size else b""
        parts, missing = [], size
        while missing:
            step = min(missing, _READ_STEP_BYTES)
            await self._wait_for_bytes(step)
            if self._unread < step:
                raise self._ended_early(size, size - missing + self._unread)
            part = self._take(min(missing, self._unread))
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _ended_early(self, wanted: int, got: int) -> RemoteProtocolError:
        return RemoteProtocolError(
            f"the peer ended {self.protocol or 'a stream'} after {got} of {wanted} bytes", peer=self.peer_id
        )

    # --- writing -----------------------------------------------------------------------------------
    def _check_writable(self) -> None:
        if self._error is not None:
            raise self._error
        if self._connection.error is not None:
            raise self._connection.error
        if self._stopped:
            raise StreamReset(f"the peer stopped reading {self.protocol}", peer=self.peer_id)
        if self._fin_sent:
            raise LocalProtocolError("write after close_write")

    async def write(self, *chunks: Buffer) -> None:
        self._check_writable()
        connection, stream_id = self._connection, self.stream_id
        core = connection.core
        for chunk in chunks:
            if not isinstance(chunk, bytes):
                chunk = memoryview(chunk).cast("B")
            self.moved[1] += len(chunk)
            if len(chunk) <= _WRITE_STEP_BYTES:
                core.send_stream_data(stream_id, chunk)  # type: ignore[arg-type]
                continue
            # aioquic appends whatever has the buffer interface; a long chunk goes in pieces.
            view = memoryview(chunk)
            for start in range(0, len(view), _WRITE_STEP_BYTES):
                core.send_stream_data(stream_id, view[start : start + _WRITE_STEP_BYTES])  # type: ignore[arg-type]
                if core.unsent_bytes(stream_id) > limits.WRITE_UNSENT_BYTES_MAX:
                    connection.sending.wrote()
                    await self._wait_for_room()
        connection.sending.wrote()
        if core.unsent_bytes(stream_id) > limits.WRITE_UNSENT_BYTES_MAX:
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        connection = self._connection
        while connection.core.unsent_bytes(self.stream_id) > limits.WRITE_UNSENT_BYTES_MAX // 4:
            assert self._writer is None, "two tasks write one stream"
            self._writer = connection.loop.create_future()
            connection.sending.waiting_writers.add(self)
            try:
                await self._writer
            finally:
                self._writer = None
                connection.sending.waiting_writers.discard(self)
            self._check_writable()

    async def close_write(self) -> None:
        if self._fin_sent or self._stopped or self._error is not None or self._connection.error is not None:
            return
        self._fin_sent = True
        self._connection.core.send_stream_data(self.stream_id, b"", end_stream=True)
        self._connection.sending.wrote()
        self._connection.forget_if_finished(self)

    def reset(self, code: int = 0) -> None:
        if self.is_finished and not self._unread:
            return
        if self._connection.error is None:
            self._connection.core.abort_stream(self.stream_id, code)
            self._connection.sending.wrote()
        self.fail(StreamReset(f"this node reset {self.protocol or 'the stream'}", code=code))
        self._connection.forget_if_finished(self)

    def finish_reading(self) -> None:
        """The handler is done: what still comes is dropped, a peer that never ends is told to stop."""
        self._drop_unread()
        if not self._fin_received and self._error is None:
            self._connection.loop.call_later(limits.STREAM_LINGER_S, self._stop_reading)

    def _stop_reading(self) -> None:
        if not self._fin_received and self._error is None and self._connection.error is None:
            self._connection.core.stop_reading(self.stream_id, 0)
            self._connection.sending.wrote()
