"""A lane for frames: every message once, in spite of loss, doubling and disorder; silence and nonsense end it."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator

import pytest

from p2pnode.compute.frame_lane import FrameLane
from p2pnode.compute.lane import Sealer, Type
from p2pnode.compute.lane_socket import LaneEnd
from p2pnode.errors import RequestError, StageLost
from p2pnode.limits import LANE_MESSAGE_BYTES_MAX, LANE_MESSAGES_KEPT_MAX

SECRET = bytes(range(32))


class Wire:
    """Two lanes' sockets with a carrier between them that loses, doubles and delays as told."""

    def __init__(self, seed: int, loss: float) -> None:
        self._rng, self.loss = random.Random(seed), loss
        self.ends = [self._bound() for _ in range(2)]
        self._middle = [self._bound() for _ in range(2)]
        for end, middle in zip(self.ends, self._middle, strict=True):
            end.connect(middle.getsockname())
            middle.connect(end.getsockname())
            middle.setblocking(False)
        self._late: list[tuple[int, bytes]] = []

    @staticmethod
    def _bound() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        return sock

    def carry(self) -> None:
        late, self._late = self._late, []
        for side in (0, 1):
            while True:
                try:
                    datagram = self._middle[side].recv(65_536)
                except BlockingIOError:
                    break
                luck = self._rng.random()
                if luck < self.loss / 2:
                    self._late.append((1 - side, datagram))
                elif luck >= self.loss:
                    for _ in range(1 + (luck > 1 - self.loss / 2)):
                        self._middle[1 - side].send(datagram)
        for side, datagram in late:
            self._middle[side].send(datagram)

    def lanes(self) -> tuple[FrameLane, FrameLane]:
        a, b = self.ends
        return FrameLane(a, LaneEnd(SECRET, 0, 1, 1452)), FrameLane(b, LaneEnd(SECRET, 1, 0, 1452))

    def close(self) -> None:
        for sock in (*self.ends, *self._middle):
            sock.close()


@pytest.fixture
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    made = Wire(seed=1, loss=getattr(request, "param", 0.0))
    yield made
    made.close()


def exchange(wire: Wire, messages: list[bytes], *, session_of: int = 0) -> list[bytes]:
    """Send all at once and turn the clock until all have arrived."""
    sender, receiver = wire.lanes()
    now, got = 0.0, []
    for message in messages:
        sender.send(session_of, message, now)
    for _ in range(4000):
        wire.carry()
        got += receiver.pump(now)
        sender.pump(now)
        if len(got) >= len(messages) and sender.wake_at() is None:
            break
        now += 0.001
    return got


@pytest.mark.parametrize("wire", [0.0, 0.1, 0.4], indirect=True)
def test_every_message_arrives_once(wire: Wire) -> None:
    rng = random.Random(2)
    messages = [rng.randbytes(size) for size in (1, 100, 1412, 1413, 8192, 50_000, LANE_MESSAGE_BYTES_MAX)]
    assert sorted(exchange(wire, messages)) == sorted(messages)


def test_nothing_is_asked_for_when_nothing_is_lost(wire: Wire) -> None:
    sender, receiver = wire.lanes()
    sender.send(5, b"rows" * 2000, 0.0)
    wire.carry()
    assert receiver.pump(0.0) == [b"rows" * 2000]
    assert receiver.wake_at() is None
    sender.settle(4)
    assert sender.wake_at() is not None
    sender.settle(5)
    assert sender.wake_at() is None
    assert sender.resent == 0


def test_silence_ends_a_lane(wire: Wire) -> None:
    sender, _ = wire.lanes()
    sender.send(1, b"anybody there", 0.0)
    last = 0.0

    def wait() -> None:
        nonlocal last
        while (at := sender.wake_at()) is not None:
            last = at
            sender.pump(at)

    with pytest.raises(StageLost):
        wait()
    assert 1 < last < 10


def test_what_does_not_fit_is_refused(wire: Wire) -> None:
    sender, _ = wire.lanes()
    with pytest.raises(RequestError):
        sender.send(1, bytes(LANE_MESSAGE_BYTES_MAX + 1), 0.0)


def test_strangers_and_old_datagrams_change_nothing(wire: Wire) -> None:
    """Another key, noise, the same datagram again, a number long gone."""
    sender, receiver = wire.lanes()
    outside = wire.ends[0]
    stranger = Sealer(os.urandom(32), 0, 1)
    for datagram in (b"", b"L", os.urandom(300), stranger.seal(Type.DATA, 1, 0, 1, 2, b"hi")):
        outside.send(datagram)
    own = Sealer(SECRET, 0, 1)
    first = own.seal(Type.DATA, 1000, 0, 1, 2, b"hi")
    for datagram in (first, first, own.seal(Type.DATA, 1000 - LANE_MESSAGES_KEPT_MAX, 0, 1, 3, b"old")):
        outside.send(datagram)
    wire.carry()
    assert receiver.pump(time.monotonic()) == [b"hi"]
    assert sender.pump(0.0) == []


def test_half_messages_take_bounded_memory(wire: Wire) -> None:
    """A neighbour that begins messages and never ends them keeps a few of them here, and the last ones."""
    _, receiver = wire.lanes()
    own = Sealer(SECRET, 0, 1)
    for number in range(1, 2001):
        wire.ends[0].send(own.seal(Type.DATA, number, 0, 2, 2, b"a"))
        wire.carry()
        assert receiver.pump(0.0) == []
    wire.ends[0].send(own.seal(Type.DATA, 2000, 1, 2, 2, b"b"))
    wire.ends[0].send(own.seal(Type.DATA, 1000, 1, 2, 2, b"b"))
    wire.carry()
    assert receiver.pump(0.0) == [b"ab"]


def test_pieces_that_disagree_end_a_lane(wire: Wire) -> None:
    _, receiver = wire.lanes()
    own = Sealer(SECRET, 0, 1)
    wire.ends[0].send(own.seal(Type.DATA, 1, 0, 2, 4, b"ab"))
    wire.ends[0].send(own.seal(Type.DATA, 1, 1, 3, 4, b"cd"))
    wire.carry()
    with pytest.raises(StageLost):
        receiver.pump(0.0)
