"""A lane between two ranks on one LAN: lock-step sealed datagrams (specs/16-lane.md) and their socket."""

from __future__ import annotations

import select
import socket
import struct
import sys
import time

from p2pnode.compute.lane import (
    Datagram,
    Incoming,
    Opener,
    Sealer,
    Type,
    check_datagram_bytes,
    missing_bitmap,
    missing_pieces,
    piece_bounds,
    piece_count,
)
from p2pnode.errors import RemoteProtocolError, StageLost
from p2pnode.limits import LANE_HELLO_TIMEOUT_S

_ASK_PARTLY_S = 0.002
_ASK_NOTHING_S = 0.004
_ASK_S_MAX = 0.064
"""Silence before missing pieces are asked for: soon when some arrived, later when the other may still compute."""
_HELLO_EVERY_S = 0.02
_SOCKET_BUFFER_BYTES = 4 * 1024 * 1024
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
"""Linux: one call sends or receives a row of equal datagrams (segmentation and receive offload)."""
_SEGMENTS_MAX = 60
_SEGMENTED_BYTES_MAX = 60_000
_RECEIVE_BYTES = 65_536
_ANCILLARY_BYTES = socket.CMSG_SPACE(4)


def _offloads(sock: socket.socket) -> bool:
    """Whether this system can send and receive rows of datagrams; receiving is switched on."""
    try:
        sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
    except OSError:
        return False
    return sys.platform == "linux"


class LaneLink:
    """Lock-step sealed datagrams; only what is missing is sent again."""

    served_between_steps = True

    def __init__(self, sock: socket.socket, secret: bytes, rank: int, peer: int, datagram_bytes: int) -> None:
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
        self._socket = sock
        self._segments = _offloads(sock)
        self._datagram_bytes = check_datagram_bytes(datagram_bytes)
        self._sealer = Sealer(secret, rank, peer)
        self._opener = Opener(secret, peer, rank)
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._exchange = 0
        self._sent: dict[int, tuple[bytes, int]] = {}
        """Messages that may be asked for again: this one and the one before."""
        self._into = memoryview(b"")
        self._incoming: Incoming | None = None
        self._early: list[Datagram] = []
        """Pieces of the next message, from a rank that is one ahead."""
        self._quiet_since = 0.0
        self._patience = _ASK_NOTHING_S
        self._heard = self._was_heard = False
        self.resent = self.dropped = 0

    def greet(self) -> None:
        """Make sure that datagrams get through both ways; StageLost when they do not."""
        deadline = time.monotonic() + LANE_HELLO_TIMEOUT_S
        while not (self._heard and self._was_heard):
            if time.monotonic() > deadline:
                raise StageLost("no lane: datagrams do not get through to the other rank")
            self._send(Type.HELLO, 0, 0, 1, 1, b"\x01" if self._heard else b"\x00")
            pause = time.monotonic() + _HELLO_EVERY_S
            while time.monotonic() < pause and not (self._heard and self._was_heard):
                self._receive_all(pause)
        self._send(Type.HELLO, 0, 0, 1, 1, b"\x01")

    def start(self, out: memoryview, into: memoryview) -> None:
        self._exchange = (self._exchange + 1) & 0xFFFFFFFF
        count = piece_count(len(out), self._datagram_bytes)
        self._sent = {key: value for key, value in self._sent.items() if key == self._exchange - 1}
        self._sent[self._exchange] = (bytes(out), count)
        self._into = into
        self._incoming = Incoming(len(into), piece_count(len(into), self._datagram_bytes))
        self._quiet_since, self._patience = time.monotonic(), _ASK_NOTHING_S
        self._send_pieces(self._exchange, range(count))
        early, self._early = self._early, []
        for piece in early:
            self._take(piece)

    def pump(self, now: float) -> bool:
        self._receive_all(None)
        incoming = self._incoming
        if incoming is None:
            return True
        if not incoming.left:
            self._into[:] = incoming.data
            self._incoming = None
            return True
        if now - self._quiet_since > self._patience:
            self._quiet_since = now
            self._patience = min(2 * self._patience, _ASK_S_MAX)
            self._send(
                Type.MISSING, self._exchange, 0, incoming.count, incoming.size, missing_bitmap(incoming.have)
            )
        return False

    def _receive_all(self, until: float | None) -> None:
        """Everything that has arrived; with `until`, wait for the first at most that long."""
        if until is not None:
            select.select([self._socket], [], [], max(0.0, until - time.monotonic()))
        while True:
            try:
                size, ancillary, _, _ = self._socket.recvmsg_into([self._buffer], _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                continue  # the other side is not there yet, or not any more: silence will tell
            except OSError as exc:
                raise StageLost(f"the lane broke: {exc.strerror}") from exc
            step = size
            for level, kind, data in ancillary:
                if (level, kind) == (_SOL_UDP, _UDP_GRO):
                    step = int.from_bytes(data[:4], sys.byteorder) or size
            for start in range(0, size, max(1, step)):
                self._open(self._buffer[start : min(size, start + step)])

    def _open(self, data: memoryview) -> None:
        try:
            piece = self._opener.open(data)
        except RemoteProtocolError:
            self.dropped += 1
            return
        self._take(piece)

    def _take(self, piece: Datagram) -> None:
        self._heard = True
        match piece.type:
            case Type.HELLO:
                self._was_heard = self._was_heard or piece.payload == b"\x01"
                if piece.payload == b"\x00":
                    self._send(Type.HELLO, 0, 0, 1, 1, b"\x01")
            case Type.MISSING:
                self._was_heard = True
                self._send_again(piece)
            case Type.DATA:
                self._was_heard = True
                self._take_data(piece)

    def _take_data(self, piece: Datagram) -> None:
        ahead = (piece.exchange - self._exchange) & 0xFFFFFFFF
        if ahead == 0 and self._incoming is not None:
            try:
                new = self._incoming.add(piece)
            except RemoteProtocolError as exc:
                raise StageLost(exc.message) from exc
            if new:
                self._quiet_since, self._patience = time.monotonic(), _ASK_PARTLY_S
        elif ahead == 1 and len(self._early) < piece.count:
            self._early.append(piece)

    def _send_again(self, asked: Datagram) -> None:
        kept = self._sent.get(asked.exchange)
        if kept is not None:
            pieces = list(missing_pieces(asked.payload, kept[1]))
            self.resent += len(pieces)
            self._send_pieces(asked.exchange, pieces)

    def _send_pieces(self, exchange: int, indexes: range | list[int]) -> None:
        data, count = self._sent[exchange]
        view = memoryview(data)
        sealed = []
        for index in indexes:
            first, end = piece_bounds(len(data), count, index)
            sealed.append(self._sealer.seal(Type.DATA, exchange, index, count, len(data), view[first:end]))
        if not (self._segments and len(sealed) > 1 and self._send_segmented(sealed)):
            for datagram in sealed:
                self._put(datagram)

    def _send_segmented(self, sealed: list[bytes]) -> bool:
        """One call for many; only the last of a row may be shorter, as is only the last piece of a message."""
        step = len(sealed[0])
        row = min(_SEGMENTS_MAX, _SEGMENTED_BYTES_MAX // step)
        control = [(_SOL_UDP, _UDP_SEGMENT, struct.pack("=H", step))]
        if row < 2:
            return False
        try:
            for start in range(0, len(sealed), row):
                self._socket.sendmsg(sealed[start : start + row], control)
        except (BlockingIOError, ConnectionRefusedError):
            return True  # as good as lost on the way
        except OSError:
            self._segments = False  # this path cannot: one by one from now on
            return False
        return True

    def _send(
        self, kind: Type, exchange: int, index: int, count: int, size: int, payload: bytes | memoryview
    ) -> None:
        self._put(self._sealer.seal(kind, exchange, index, count, size, payload))

    def _put(self, datagram: bytes) -> None:
        try:
            self._socket.send(datagram)
        except (BlockingIOError, ConnectionRefusedError):
            return  # as good as lost on the way: it will be asked for
        except OSError as exc:
            raise StageLost(f"the lane broke: {exc.strerror}") from exc

    def fileno(self) -> int:
        return self._socket.fileno()

    def wants_write(self) -> bool:
        return False

    def wait_s(self) -> float:
        return self._patience

    def close(self) -> None:
        self._socket.close()
