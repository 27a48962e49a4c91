"""The socket under a lane: datagrams sealed on their way out and opened on their way in, a greeting that makes sure
that they get through, and rows of them in one system call where the system can (specs/16-lane.md).
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from p2pnode.compute.lane import Datagram, Opener, Sealer, Type, check_datagram_bytes, piece_bounds
from p2pnode.errors import RemoteProtocolError, StageLost
from p2pnode.limits import LANE_HELLO_TIMEOUT_S

HELLO_EVERY_S = 0.02
NO_LANE = "no lane: datagrams do not get through to the other side"
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


@dataclass(frozen=True, slots=True)
class LaneEnd:
    """What both ends of a lane were told, as this one sees it."""

    secret: bytes = field(repr=False)
    me: int
    peer: int
    datagram_bytes: int


class LaneSocket:
    """A connected datagram socket and both directions' keys; `take` hears every datagram but greetings."""

    def __init__(
        self,
        sock: socket.socket,
        end: LaneEnd,
        take: Callable[[Datagram], None],
        moved: list[int] | None = None,
    ) -> None:
        """`moved`: bytes received and sent by all lanes of this process, to which this one adds."""
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
        self._socket = sock
        self._segments = _offloads(sock)
        self.datagram_bytes = check_datagram_bytes(end.datagram_bytes)
        self._sealer = Sealer(end.secret, end.me, end.peer)
        self._opener = Opener(end.secret, end.peer, end.me)
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._take = take
        self._moved = [0, 0] if moved is None else moved
        self._heard = self._was_heard = False
        self.dropped = 0

    @property
    def is_met(self) -> bool:
        """Whether datagrams get through both ways."""
        return self._heard and self._was_heard

    def hello(self) -> None:
        """A greeting that says whether the other side was heard; the last one goes out when it is met."""
        self.send(Type.HELLO, 0, 0, 1, 1, b"\x01" if self._heard else b"\x00")

    def greet(self) -> None:
        """Wait until datagrams get through both ways; StageLost when they do not."""
        deadline = time.monotonic() + LANE_HELLO_TIMEOUT_S
        while not self.is_met:
            if time.monotonic() > deadline:
                raise StageLost(NO_LANE)
            self.hello()
            pause = time.monotonic() + HELLO_EVERY_S
            while time.monotonic() < pause and not self.is_met:
                self.receive_all(pause)
        self.hello()

    def receive_all(self, until: float | None = None) -> None:
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
            self._moved[0] += size
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
        self._heard = True
        if piece.type is not Type.HELLO:
            self._was_heard = True
            self._take(piece)
            return
        self._was_heard = self._was_heard or piece.payload == b"\x01"
        if piece.payload == b"\x00":
            self.send(Type.HELLO, 0, 0, 1, 1, b"\x01")

    def send_pieces(
        self, number: int, data: bytes | memoryview, count: int, indexes: range | list[int]
    ) -> None:
        """Pieces of message `number`, each in a new datagram."""
        view = memoryview(data)
        sealed = []
        for index in indexes:
            first, end = piece_bounds(len(data), count, index)
            sealed.append(self._sealer.seal(Type.DATA, number, index, count, len(data), view[first:end]))
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
                self._moved[1] += self._socket.sendmsg(sealed[start : start + row], control)
        except (BlockingIOError, ConnectionRefusedError):
            return True  # as good as lost on the way
        except OSError:
            self._segments = False  # this path cannot: one by one from now on
            return False
        return True

    def send(
        self, kind: Type, number: int, index: int, count: int, size: int, payload: bytes | memoryview
    ) -> None:
        self._put(self._sealer.seal(kind, number, index, count, size, payload))

    def _put(self, datagram: bytes) -> None:
        try:
            self._moved[1] += self._socket.send(datagram)
        except (BlockingIOError, ConnectionRefusedError):
            return  # as good as lost on the way: it will be asked for
        except OSError as exc:
            raise StageLost(f"the lane broke: {exc.strerror}") from exc

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
