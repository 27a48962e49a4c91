"""The engine's end of the socketpair: blocking, one thread, whole messages."""

from __future__ import annotations

import select
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from p2pnode.compute.engine_protocol import (
    PREFIX,
    Buffer,
    Message,
    decode_header,
    decode_prefix,
    encode_message,
)

READ_BYTES = 256 * 1024


class NodeGoneError(Exception):
    """The node closed its end: nothing is left to do."""


class Channel:
    """Messages in and out; a peer that is gone raises NodeGoneError."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._buffer = bytearray(READ_BYTES)
        self._start = 0
        self._end = 0

    def send(self, header: Mapping[str, Any], payload: Buffer = b"") -> None:
        """One system call for all but the largest messages."""
        views = [memoryview(part).cast("B") for part in encode_message(header, payload)]
        try:
            while views:
                sent = self._socket.sendmsg(views)
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if views:
                    views[0] = views[0][sent:]
        except OSError as exc:
            raise NodeGoneError from exc

    def ready(self, others: Sequence[int] = (), timeout_s: float | None = 0.0) -> bool:
        """Whether `receive` would have something to read now; `others` only end the wait."""
        if self._end > self._start:
            return True
        ours = self._socket.fileno()
        return ours in select.select([ours, *others], [], [], timeout_s)[0]

    def receive(self) -> tuple[Message, memoryview]:
        """The next message, waiting for it; the payload is the caller's own."""
        header_bytes, payload_bytes = decode_prefix(self._take(PREFIX.size))
        header = decode_header(self._take(header_bytes))
        payload = memoryview(bytearray(payload_bytes))
        have = min(payload_bytes, self._end - self._start)
        payload[:have] = memoryview(self._buffer)[self._start : self._start + have]
        self._start += have
        while have < payload_bytes:
            have += self._read_into(payload[have:])
        return header, payload

    def _take(self, count: int) -> memoryview:
        """`count` buffered bytes, valid until the next read."""
        if self._end - self._start < count:
            kept = bytes(memoryview(self._buffer)[self._start : self._end])
            if count > len(self._buffer):
                self._buffer = bytearray(count)
            self._buffer[: len(kept)] = kept
            self._start, self._end = 0, len(kept)
            while self._end < count:
                self._end += self._read_into(memoryview(self._buffer)[self._end :])
        view = memoryview(self._buffer)[self._start : self._start + count]
        self._start += count
        return view

    def _read_into(self, target: memoryview) -> int:
        try:
            count = self._socket.recv_into(target)
        except OSError as exc:
            raise NodeGoneError from exc
        if not count:
            raise NodeGoneError
        return count
