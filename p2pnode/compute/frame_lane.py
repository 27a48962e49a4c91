"""One way for frames between two engines of a ring: sealed datagrams, numbered messages, each given out once
(specs/16-lane.md#frames).

Nothing is acknowledged while all goes well: in a ring the answer says that everything before it arrived. Only a
message that was never heard of again is asked about, by sending its last piece once more.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from p2pnode.compute.lane import Datagram, Incoming, Type, missing_bitmap, missing_pieces, piece_count
from p2pnode.compute.lane_socket import LaneEnd, LaneSocket
from p2pnode.errors import RemoteProtocolError, RequestError, StageLost
from p2pnode.limits import LANE_MESSAGE_BYTES_MAX, LANE_MESSAGES_KEPT_MAX, LANE_MESSAGES_PARTIAL_MAX

_ASK_S, _ASK_S_MAX = 0.002, 0.064
"""Silence after a piece before the rest of its message is asked for."""
_DOUBT_S, _DOUBTS_MAX = 0.05, 6
"""Silence after a message before its sender doubts that it arrived; doubled each time, for 3 s in all."""
NUMBER_END = 2**32


@dataclass(slots=True)
class _Sent:
    session: int
    message: bytes
    count: int
    doubt_at: float
    doubts: int = 0


@dataclass(slots=True)
class _Partial:
    incoming: Incoming
    ask_at: float
    patience: float = _ASK_S


class FrameLane:
    """Messages go one way, requests for what got lost the other; the same class is both ends."""

    def __init__(self, sock: socket.socket, end: LaneEnd, moved: list[int] | None = None) -> None:
        self._lane = LaneSocket(sock, end, self._take, moved)
        self._number = 0
        self._sent: dict[int, _Sent] = {}
        self._partial: dict[int, _Partial] = {}
        self._done: set[int] = set()
        self._highest = 0
        self._whole: list[bytes] = []
        self._now = 0.0
        self.resent = 0

    @property
    def is_met(self) -> bool:
        """Whether datagrams get through both ways."""
        return self._lane.is_met

    def hello(self) -> None:
        self._lane.hello()

    def listen(self, now: float) -> None:
        """Take what has arrived, and leave it to the first `pump`."""
        self._now = now
        self._lane.receive_all()

    # sending
    def send(self, session: int, message: bytes, now: float) -> None:
        """Kept until `settle` says that the other side must have had it."""
        if len(message) > LANE_MESSAGE_BYTES_MAX or self._number + 1 == NUMBER_END:
            raise RequestError(f"a message of {len(message)} bytes does not go through a lane")
        self._number += 1
        count = piece_count(len(message), self._lane.datagram_bytes)
        self._sent[self._number] = _Sent(session, message, count, now + _DOUBT_S)
        while len(self._sent) > LANE_MESSAGES_KEPT_MAX:
            del self._sent[next(iter(self._sent))]
        self._lane.send_pieces(self._number, message, count, range(count))

    def settle(self, session: int) -> None:
        """The ring went on with this session, so all its messages arrived."""
        for number in [number for number, sent in self._sent.items() if sent.session == session]:
            del self._sent[number]

    # receiving
    def pump(self, now: float) -> list[bytes]:
        """Whole messages that have arrived; asks for what is missing. Raises StageLost when nobody answers."""
        self._now = now
        self._lane.receive_all()
        for number, partial in self._partial.items():
            if now >= partial.ask_at:
                self._ask(number, partial)
        for number, sent in self._sent.items():
            if now >= sent.doubt_at:
                self._doubt(number, sent)
        whole, self._whole = self._whole, []
        return whole

    def wake_at(self) -> float | None:
        """When to `pump` although nothing arrived."""
        times = [partial.ask_at for partial in self._partial.values()]
        times += [sent.doubt_at for sent in self._sent.values()]
        return min(times, default=None)

    def _ask(self, number: int, partial: _Partial) -> None:
        incoming = partial.incoming
        partial.patience = min(2 * partial.patience, _ASK_S_MAX)
        partial.ask_at = self._now + partial.patience
        bitmap = missing_bitmap(incoming.have)
        self._lane.send(Type.MISSING, number, 0, incoming.count, incoming.size, bitmap)

    def _doubt(self, number: int, sent: _Sent) -> None:
        if sent.doubts == _DOUBTS_MAX:
            raise StageLost("the lane to the next engine is silent")
        sent.doubts += 1
        sent.doubt_at = self._now + _DOUBT_S * 2**sent.doubts
        self._send_again(number, sent, [sent.count - 1])

    def _send_again(self, number: int, sent: _Sent, pieces: list[int]) -> None:
        self.resent += len(pieces)
        self._lane.send_pieces(number, sent.message, sent.count, pieces)

    def _take(self, piece: Datagram) -> None:
        sent = self._sent.get(piece.exchange)
        match piece.type:
            case Type.DATA:
                self._take_data(piece)
            case Type.MISSING if sent is not None:
                self._send_again(piece.exchange, sent, list(missing_pieces(piece.payload, sent.count)))
            case Type.COMPLETE if sent is not None:
                del self._sent[piece.exchange]

    def _take_data(self, piece: Datagram) -> None:
        number = piece.exchange
        if number in self._done or number + LANE_MESSAGES_KEPT_MAX <= self._highest:
            self._lane.send(Type.COMPLETE, number, 0, 1, 0, b"")
            return
        partial = self._partial.get(number)
        if partial is None:
            if len(self._partial) >= LANE_MESSAGES_PARTIAL_MAX:
                del self._partial[next(iter(self._partial))]
            partial = self._partial[number] = _Partial(Incoming(piece.size, piece.count), 0.0)
        try:
            partial.incoming.add(piece)
        except RemoteProtocolError as exc:
            raise StageLost(exc.message) from exc
        partial.ask_at = self._now + partial.patience
        if not partial.incoming.left:
            del self._partial[number]
            self._remember(number)
            self._whole.append(bytes(partial.incoming.data))

    def _remember(self, number: int) -> None:
        self._done.add(number)
        self._highest = max(self._highest, number)
        if len(self._done) > 2 * LANE_MESSAGES_KEPT_MAX:
            oldest = self._highest - LANE_MESSAGES_KEPT_MAX
            self._done = {done for done in self._done if done > oldest}

    def fileno(self) -> int:
        return self._lane.fileno()

    def close(self) -> None:
        self._lane.close()
