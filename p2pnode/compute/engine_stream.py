"""Messages over a non-blocking socket on the event loop: one system call each way where possible."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence

from p2pnode.compute.engine_protocol import PREFIX, Buffer, Message, decode_header, decode_prefix
from p2pnode.errors import EngineUnavailable

READ_BYTES = 256 * 1024
READS_PER_WAKE = 16
"""So that one busy engine does not keep the loop from everything else."""


class MessageStream:
    """Set `on_message` and `on_closed` before the loop runs again."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(READ_BYTES)
        self._start = self._end = 0
        self._header: Message | None = None
        self._payload = memoryview(b"")
        self._payload_have = 0
        self._out: deque[memoryview] = deque()
        self._open = True
        self.on_message: Callable[[Message, memoryview], None] = lambda _header, _payload: None
        self.on_closed: Callable[[str], None] = lambda _reason: None
        self._loop.add_reader(sock, self._readable)

    def send(self, parts: Sequence[Buffer]) -> None:
        """Send now what the socket takes, the rest when it is writable."""
        if not self._open:
            return
        views = [memoryview(part).cast("B") for part in parts]
        if self._out:
            self._out.extend(views)
            return
        self._out.extend(views)
        self._writable()
        if self._open and self._out:
            self._loop.add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        waiting = self._out
        try:
            while waiting:
                sent = self._socket.sendmsg(list(waiting)[:16])
                while waiting and sent >= len(waiting[0]):
                    sent -= len(waiting.popleft())
                if sent:
                    waiting[0] = waiting[0][sent:]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._fail(exc.strerror or "write failed")
            return
        self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        try:
            for _ in range(READS_PER_WAKE):
                if not self._open or not self._read_once():
                    return
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._fail(exc.strerror or "read failed")
        except EngineUnavailable as exc:
            self._fail(exc.message)

    def _read_once(self) -> bool:
        """One system call; whether the socket may have more."""
        if self._header is not None:
            count = self._socket.recv_into(self._payload[self._payload_have :])
            wanted = len(self._payload) - self._payload_have
            self._payload_have += count
        else:
            wanted = len(self._buffer) - self._end
            count = self._socket.recv_into(memoryview(self._buffer)[self._end :])
            self._end += count
        if not count:
            self._fail("it closed its socket")
            return False
        self._parse()
        return count == wanted

    def _parse(self) -> None:
        while self._open:
            if self._header is None and not self._parse_header():
                return
            if self._payload_have < len(self._payload):
                return
            header, payload = self._header, self._payload
            assert header is not None
            self._header, self._payload, self._payload_have = None, memoryview(b""), 0
            self.on_message(header, payload)

    def _parse_header(self) -> bool:
        have = self._end - self._start
        need = PREFIX.size
        if have >= need:
            header_bytes, payload_bytes = decode_prefix(memoryview(self._buffer)[self._start : self._end])
            need += header_bytes
        if have < need:
            self._make_room(need)
            return False
        view = memoryview(self._buffer)[self._start : self._end]
        self._header = decode_header(view[PREFIX.size : need])
        inside = min(payload_bytes, have - need)
        payload = memoryview(bytearray(payload_bytes))
        payload[:inside] = view[need : need + inside]
        self._payload, self._payload_have = payload, inside
        self._start += need + inside
        if self._start == self._end:
            self._start = self._end = 0
        return True

    def _make_room(self, need: int) -> None:
        kept = bytes(memoryview(self._buffer)[self._start : self._end])
        if need > len(self._buffer):
            self._buffer = bytearray(need)
        self._buffer[: len(kept)] = kept
        self._start, self._end = 0, len(kept)

    def _fail(self, reason: str) -> None:
        self.close()
        self.on_closed(reason)

    def close(self) -> None:
        """Stop at once; what was not sent is dropped."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._out.clear()
            self._socket.close()
