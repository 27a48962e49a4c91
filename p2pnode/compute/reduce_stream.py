"""A byte stream between two ranks, which their nodes carry over QUIC."""

from __future__ import annotations

import socket
import struct

from p2pnode.errors import StageLost

_STREAM_HEADER = struct.Struct("<II")


class StreamLink:
    """Messages with a number and a size over any stream socket."""

    served_between_steps = False

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._exchange = 0
        self._out: list[memoryview] = []
        self._into = memoryview(b"")
        self._head = bytearray(_STREAM_HEADER.size)
        self._head_have = self._have = 0

    def start(self, out: memoryview, into: memoryview) -> None:
        self._exchange = (self._exchange + 1) & 0xFFFFFFFF
        self._out = [memoryview(_STREAM_HEADER.pack(self._exchange, len(out))), out]
        self._into = into
        self._head_have = self._have = 0

    def pump(self, now: float) -> bool:
        del now
        try:
            self._write()
            self._read()
        except OSError as exc:
            raise StageLost(f"the stream to another rank broke: {exc.strerror}") from exc
        return not self._out and self._head_have == _STREAM_HEADER.size and self._have == len(self._into)

    def _write(self) -> None:
        try:
            while self._out:
                sent = self._socket.sendmsg(self._out)
                while self._out and sent >= len(self._out[0]):
                    sent -= len(self._out.pop(0))
                if sent:
                    self._out[0] = self._out[0][sent:]
        except BlockingIOError:
            return

    def _read(self) -> None:
        try:
            while self._head_have < _STREAM_HEADER.size:
                self._head_have += self._receive(memoryview(self._head)[self._head_have :])
                if self._head_have == _STREAM_HEADER.size:
                    self._check_head()
            while self._have < len(self._into):
                self._have += self._receive(self._into[self._have :])
        except BlockingIOError:
            return

    def _receive(self, target: memoryview) -> int:
        count = self._socket.recv_into(target)
        if not count:
            raise StageLost("the stream to another rank was closed")
        return count

    def _check_head(self) -> None:
        exchange, size = _STREAM_HEADER.unpack(self._head)
        if (exchange, size) != (self._exchange, len(self._into)):
            raise StageLost(
                f"ranks out of step: message {exchange} of {size} bytes where "
                f"{self._exchange} of {len(self._into)} is due"
            )

    def fileno(self) -> int:
        return self._socket.fileno()

    def wants_write(self) -> bool:
        return bool(self._out)

    def wait_s(self) -> float:
        return 1.0

    def close(self) -> None:
        self._socket.close()
