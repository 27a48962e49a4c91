"""A lane between two ranks on one LAN: lock-step sealed datagrams (specs/16-lane.md)."""

from __future__ import annotations

import socket
import time

from p2pnode.compute.lane import Datagram, Incoming, Type, missing_bitmap, missing_pieces, piece_count
from p2pnode.compute.lane_socket import LaneEnd, LaneSocket
from p2pnode.errors import RemoteProtocolError, StageLost

_ASK_PARTLY_S = 0.002
_ASK_NOTHING_S = 0.004
_ASK_S_MAX = 0.064
"""Silence before missing pieces are asked for: soon when some arrived, later when the other may still compute."""


class LaneLink:
    """Lock-step sealed datagrams; only what is missing is sent again."""

    served_between_steps = True

    def __init__(self, sock: socket.socket, end: LaneEnd, moved: list[int] | None = None) -> None:
        self._lane = LaneSocket(sock, end, self._take, moved)
        self._exchange = 0
        self._sent: dict[int, tuple[bytes, int]] = {}
        """Messages that may be asked for again: this one and the one before."""
        self._into = memoryview(b"")
        self._incoming: Incoming | None = None
        self._early: list[Datagram] = []
        """Pieces of the next message, from a rank that is one ahead."""
        self._quiet_since = 0.0
        self._patience = _ASK_NOTHING_S
        self.resent = 0

    @property
    def dropped(self) -> int:
        return self._lane.dropped

    def greet(self) -> None:
        """Make sure that datagrams get through both ways; StageLost when they do not."""
        self._lane.greet()

    def start(self, out: memoryview, into: memoryview) -> None:
        self._exchange = (self._exchange + 1) & 0xFFFFFFFF
        lane = self._lane
        count = piece_count(len(out), lane.datagram_bytes)
        self._sent = {key: value for key, value in self._sent.items() if key == self._exchange - 1}
        self._sent[self._exchange] = (bytes(out), count)
        self._into = into
        self._incoming = Incoming(len(into), piece_count(len(into), lane.datagram_bytes))
        self._quiet_since, self._patience = time.monotonic(), _ASK_NOTHING_S
        lane.send_pieces(self._exchange, out, count, range(count))
        early, self._early = self._early, []
        for piece in early:
            self._take(piece)

    def pump(self, now: float) -> bool:
        self._lane.receive_all()
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
            self._lane.send(
                Type.MISSING, self._exchange, 0, incoming.count, incoming.size, missing_bitmap(incoming.have)
            )
        return False

    def _take(self, piece: Datagram) -> None:
        match piece.type:
            case Type.MISSING:
                self._send_again(piece)
            case Type.DATA:
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
            data, count = kept
            pieces = list(missing_pieces(asked.payload, count))
            self.resent += len(pieces)
            self._lane.send_pieces(asked.exchange, data, count, pieces)

    def fileno(self) -> int:
        return self._lane.fileno()

    def wants_write(self) -> bool:
        return False

    def wait_s(self) -> float:
        return self._patience

    def close(self) -> None:
        self._lane.close()
