"""The lane: sealed datagrams by their vectors, hostile ones, and exchanges that lose half of everything."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import threading
from collections.abc import Callable
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.compute.lane import (
    OVERHEAD_BYTES,
    Incoming,
    Opener,
    Sealer,
    Type,
    check_datagram_bytes,
    direction_key,
    missing_bitmap,
    missing_pieces,
    piece_bounds,
    piece_count,
)
from p2pnode.compute.lane_socket import LaneEnd
from p2pnode.compute.reduce import AllReduce, Link
from p2pnode.compute.reduce_lane import LaneLink
from p2pnode.compute.reduce_stream import StreamLink
from p2pnode.errors import P2PNodeError, RemoteProtocolError, RequestError, StageLost

VECTORS = json.loads((Path(__file__).parents[3] / "specs/vectors/lane.json").read_text())
SECRET = bytes(range(32))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_published_vectors(vector: dict[str, object]) -> None:
    opener = Opener(SECRET, 0, 1)
    data = bytes.fromhex(str(vector["input"]))
    if vector["expect"] != "ok":
        with pytest.raises(P2PNodeError) as caught:
            opener.open(data)
        assert caught.value.code == vector["expect"]
        return
    piece = opener.open(data)
    assert {
        "type": piece.type.name, "exchange": piece.exchange, "index": piece.index, "count": piece.count,
        "size": piece.size, "payload": piece.payload.hex(),
    } == vector["output"]  # fmt: skip


@given(size=st.integers(0, 96 * 1024), datagram=st.integers(256, 65_000))
def test_pieces_cover_a_message_once(size: int, datagram: int) -> None:
    """No gap, no overlap, none too long, all equal but the last."""
    count = piece_count(size, datagram)
    bounds = [piece_bounds(size, count, index) for index in range(count)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == size
    assert all(a[1] == b[0] for a, b in pairwise(bounds))
    assert max(end - first for first, end in bounds) + OVERHEAD_BYTES <= datagram
    assert len({end - first for first, end in bounds[:-1]}) <= 1


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_missing_pieces_are_named(have: list[bool]) -> None:
    named = set(missing_pieces(missing_bitmap(have), len(have)))
    assert named == {index for index, arrived in enumerate(have) if not arrived}
    assert set(missing_pieces(b"\xff" * 400, len(have))) == set(range(len(have)))


@given(st.data())
def test_any_change_breaks_the_seal(data: st.DataObject) -> None:
    sealed = bytearray(Sealer(SECRET, 0, 1).seal(Type.DATA, 7, 0, 1, 5, b"hello"))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RemoteProtocolError):
        Opener(SECRET, 0, 1).open(bytes(sealed))


def test_directions_have_keys_of_their_own() -> None:
    """What one side sent cannot be sent back to it, nor does another pair's secret open it."""
    sealed = Sealer(SECRET, 0, 1).seal(Type.DATA, 1, 0, 1, 1, b"x")
    for opener in (Opener(SECRET, 1, 0), Opener(bytes(32), 0, 1), Opener(SECRET, 0, 2)):
        with pytest.raises(RemoteProtocolError):
            opener.open(sealed)
    assert Opener(SECRET, 0, 1).open(sealed).payload == b"x"


def test_a_counter_is_never_used_twice() -> None:
    sealer = Sealer(SECRET, 0, 1)
    assert len({sealer.seal(Type.DATA, 1, 0, 1, 1, b"x") for _ in range(100)}) == 100


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33)])
def test_secrets_have_one_size(secret: bytes) -> None:
    with pytest.raises(RequestError):
        direction_key(secret, 0, 1)


@pytest.mark.parametrize("size", [0, 255, 65_001])
def test_datagram_sizes_are_bounded(size: int) -> None:
    with pytest.raises(RequestError):
        check_datagram_bytes(size)


def test_a_message_of_another_size_is_out_of_step() -> None:
    sealer, opener = Sealer(SECRET, 0, 1), Opener(SECRET, 0, 1)
    incoming = Incoming(10, 1)
    with pytest.raises(RemoteProtocolError, match="out of step"):
        incoming.add(opener.open(sealer.seal(Type.DATA, 1, 0, 1, 5, b"hello")))
    piece = opener.open(sealer.seal(Type.DATA, 1, 0, 1, 10, b"helloworld"))
    assert incoming.add(piece)
    assert not incoming.add(piece)
    assert bytes(incoming.data) == b"helloworld"


# --- exchanges over sockets ------------------------------------------------------------------------
class Relay:
    """Datagrams between two ranks, through which some are lost, doubled, damaged or swapped; seeded."""

    def __init__(self, seed: int, loss: float) -> None:
        self._rng, self._loss = random.Random(seed), loss
        self.sides = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        self.ends = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        for sock in (*self.sides, *self.ends):
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(0.05)
        for side, end in zip(self.sides, self.ends, strict=True):
            end.connect(side.getsockname())
            side.connect(end.getsockname())
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._carry, args=(n,), daemon=True) for n in range(2)]
        for thread in self._threads:
            thread.start()

    def _carry(self, side: int) -> None:
        while not self._stop.is_set():
            try:
                data = self.sides[side].recv(65536)
            except (TimeoutError, ConnectionRefusedError):
                continue
            luck = self._rng.random()
            copies = 0 if luck < self._loss else 2 if luck < 1.3 * self._loss else 1
            if self._rng.random() < self._loss / 4:
                data = bytes([data[0] ^ 1]) + data[1:]
            for _ in range(copies):
                try:
                    self.sides[1 - side].send(data)
                except ConnectionRefusedError:
                    continue

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for sock in (*self.sides, *self.ends):
            sock.close()


def reduce_everywhere(
    groups: list[Callable[[int], AllReduce]], values: list[list[np.ndarray]]
) -> list[list[np.ndarray]]:
    """Run each rank in a thread of its own."""
    results: list[list[np.ndarray]] = [[] for _ in groups]
    failures: list[BaseException] = []
    finished: set[int] = set()

    def run(rank: int) -> None:
        try:
            group = groups[rank](rank)
            for value in values[rank]:
                mine = value.copy()
                group.reduce(mine)
                results[rank].append(mine)
            finished.add(rank)
            while len(finished) < len(groups) and not failures:
                group.service()  # whoever is done first still owes the others what got lost
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(len(groups))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


@pytest.fixture
def never() -> int:
    reader, _ = os.pipe()
    return reader


def test_a_bad_lane_gives_exact_sums(never: int) -> None:
    """A fifth of all datagrams lost, some doubled or damaged: the sums are right, only missing pieces resent."""
    relay = Relay(5, 0.2)
    links: list[LaneLink] = []

    def make(rank: int) -> AllReduce:
        link = LaneLink(relay.ends[rank], LaneEnd(SECRET, rank, 1 - rank, 1452))
        links.append(link)
        link.greet()
        return AllReduce(rank, {1 - rank: link}, half=False, abort_fd=never)

    rng = np.random.default_rng(3)
    values = [
        [rng.standard_normal((rows, 256)).astype(np.float32) for rows in (1, 8, 1, 60, 1)] for _ in range(2)
    ]
    results = reduce_everywhere([make, make], values)
    for a, b, x, y in zip(*results, *values, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a, x + y)
    relay.close()
    pieces = 2 * sum(piece_count(value.nbytes, 1452) for value in values[0])
    assert 0 < sum(link.resent for link in links) < pieces
    assert sum(link.dropped for link in links) > 0


@pytest.mark.parametrize(("ranks", "half"), [(2, False), (3, False), (4, False), (3, True)])
def test_all_ranks_get_the_same_bits(never: int, ranks: int, half: bool) -> None:
    """Small messages go to everybody, large ones by owners; the sum is in rank order everywhere."""
    ends: dict[tuple[int, int], socket.socket] = {}
    for a in range(ranks):
        for b in range(a + 1, ranks):
            ends[a, b], ends[b, a] = socket.socketpair()

    def make(rank: int) -> AllReduce:
        links: dict[int, Link] = {
            other: StreamLink(ends[rank, other]) for other in range(ranks) if other != rank
        }
        return AllReduce(rank, links, half=half, abort_fd=never)

    rng = np.random.default_rng(3)
    sizes = [(1, 64), (200, 257), (0, 64), (3, 64)]
    values = [[rng.standard_normal(size).astype(np.float32) for size in sizes] for _ in range(ranks)]
    results = reduce_everywhere([make] * ranks, values)
    for step, size in enumerate(sizes):
        exact = np.sum([values[rank][step] for rank in range(ranks)], axis=0)
        assert results[0][step].shape == size
        for rank in range(1, ranks):
            assert np.array_equal(results[rank][step], results[0][step])
        assert np.allclose(results[0][step], exact, atol=1e-2 if half else 1e-5)
    for end in ends.values():
        end.close()


@pytest.mark.parametrize("arriving", list(permutations((1, 2, 3))))
def test_sums_are_made_in_the_order_of_ranks_whoever_comes_first(
    never: int, arriving: tuple[int, ...]
) -> None:
    """Float sums depend on their order: the same numbers would give another text on another day."""
    parts = [np.full((1, 8), value, np.float32) for value in (1.0, 1e8, -1e8, 3e-4)]
    expected = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    assert not np.array_equal(expected, ((parts[3] + parts[2]) + parts[1]) + parts[0])
    ends = {rank: socket.socketpair() for rank in arriving}
    group = AllReduce(0, {rank: StreamLink(ends[rank][0]) for rank in arriving}, half=False, abort_fd=never)

    def arrive() -> None:
        for rank in arriving:
            ends[rank][1].recv(4096)  # the sum is under way
            ends[rank][1].sendall(struct.pack("<II", 1, 32) + parts[rank].tobytes())

    sender = threading.Thread(target=arrive)
    sender.start()
    values = parts[0].copy()
    group.reduce(values)
    sender.join()
    assert np.array_equal(values, expected)
    group.close()
    for rank in arriving:
        ends[rank][1].close()


def test_a_stream_out_of_step_is_noticed(never: int) -> None:
    ours, theirs = socket.socketpair()
    group = AllReduce(0, {1: StreamLink(ours)}, half=False, abort_fd=never)
    theirs.sendall(b"\x09\0\0\0\x10\0\0\0" + bytes(16))
    with pytest.raises(StageLost, match="out of step"):
        group.reduce(np.zeros((1, 4), np.float32))
    with pytest.raises(StageLost, match="out of step"):
        group.reduce(np.zeros((1, 4), np.float32))
    group.close()
    theirs.close()


def test_a_closed_stream_and_a_wish_to_stop_end_the_wait() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    theirs.close()
    closed = AllReduce(0, {1: StreamLink(ours)}, half=False, abort_fd=reader)
    with pytest.raises(StageLost):
        closed.reduce(np.zeros((1, 4), np.float32))
    closed.close()
    ours, theirs = socket.socketpair()
    silent = AllReduce(0, {1: StreamLink(ours)}, half=False, abort_fd=reader)
    os.write(writer, b"x")
    with pytest.raises(StageLost, match="given up"):
        silent.reduce(np.zeros((1, 4), np.float32))
    silent.close()
    theirs.close()
    for descriptor in (reader, writer):
        os.close(descriptor)
