"""All-reduce between the ranks of a tensor group, inside the tap: blocking, exact, the same bits everywhere.

Every rank sums in rank order, so all continue with equal hidden states. Small messages (decoding) go to
everyone in one hop; large ones (prefill) of more than two ranks are summed slice by slice by their owners
and then shared, which moves 2 (N-1)/N of the data instead of N-1 times it.
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from p2pnode.errors import P2PNodeError, StageLost
from p2pnode.frame import F16_MAX
from p2pnode.limits import (
    ENGINE_HEADER_BYTES_MAX,
    REDUCE_DIRECT_BYTES_MAX,
    REDUCE_PART_BYTES,
    REDUCE_TIMEOUT_S,
)

Values = NDArray[np.floating[Any]]
SPIN_S = 0.0001
"""How long to look for the answer before sleeping: waking up costs as much as a round trip on one machine, but on a
machine with other work, looking longer only takes time from the rank that computes."""


ANNOUNCED_BYTES = 1400
"""First part of the leader's word, always of this size: a datagram that fits everywhere. Most words are shorter."""
_WORD_SIZE = struct.Struct("<I")


def _nothing() -> memoryview:
    """An empty message, which may be written to as well."""
    return memoryview(bytearray())


def _bytes(values: Values) -> memoryview:
    return values.view(np.uint8).data


class Link(Protocol):
    """One other rank. `start` an exchange, then `pump` until it says it is complete."""

    served_between_steps: bool
    """Whether the other rank may ask for something when no exchange is under way."""

    def start(self, out: memoryview, into: memoryview) -> None: ...

    def pump(self, now: float) -> bool:
        """Send and receive what is possible now; raises when the other side is gone or out of step."""
        ...

    def fileno(self) -> int: ...

    def wants_write(self) -> bool: ...

    def wait_s(self) -> float:
        """How long `pump` may stay uncalled although nothing arrives."""
        ...

    def close(self) -> None: ...


class AllReduce:
    """Sums float32 arrays over the ranks, in place."""

    def __init__(self, rank: int, links: Mapping[int, Link], *, half: bool, abort_fd: int) -> None:
        self._rank = rank
        self._links = dict(links)
        self._served = [link for link in links.values() if link.served_between_steps]
        self.ranks = len(links) + 1
        assert set(links) | {rank} == set(range(self.ranks))
        self._type = np.dtype("<f2" if half else "<f4")
        self._half = half
        self._abort_fd = abort_fd
        self._broken: P2PNodeError | None = None
        self._buffers: dict[tuple[int, int], bytearray] = {}
        self._first_word = bytearray(ANNOUNCED_BYTES)
        self._listening = False

    def reduce(self, values: Values) -> None:
        """values [S, D] becomes the sum over all ranks."""
        if self._broken is not None:
            raise self._broken
        flat = values.reshape(-1)
        if not flat.size:
            return
        try:
            mine = np.clip(flat, -F16_MAX, F16_MAX).astype(self._type) if self._half else flat
            if self.ranks == 2 or mine.nbytes <= REDUCE_DIRECT_BYTES_MAX:
                self._direct(mine, flat)
            else:
                self._by_owner(mine, flat)
        except P2PNodeError as exc:
            self._broken = exc
            raise

    def _direct(self, mine: Values, out: Values) -> None:
        """Everybody sends everything to everybody."""
        theirs = {rank: self._buffer(rank, mine.nbytes) for rank in self._links}
        self._exchange({rank: (_bytes(mine), memoryview(theirs[rank])) for rank in self._links}, mine.nbytes)
        self._sum(mine, theirs, out)

    def _by_owner(self, mine: Values, out: Values) -> None:
        """Rank r sums slice r of all, then everybody gets every sum."""
        size = self._type.itemsize
        edges = [mine.size * rank // self.ranks for rank in range(self.ranks + 1)]
        slices = [slice(edges[rank], edges[rank + 1]) for rank in range(self.ranks)]
        own = slices[self._rank]
        own_bytes = (own.stop - own.start) * size
        longest = -(-mine.size // self.ranks) * size
        theirs = {rank: self._buffer(rank, own_bytes) for rank in self._links}
        self._exchange(
            {rank: (_bytes(mine[slices[rank]]), memoryview(theirs[rank])) for rank in self._links},
            longest,
        )
        total = np.empty(own.stop - own.start, np.float32)
        self._sum(mine[own], theirs, total)
        shared = total.astype(self._type) if self._half else total
        sums = {
            rank: self._buffer(rank, (slices[rank].stop - slices[rank].start) * size) for rank in self._links
        }
        self._exchange({rank: (_bytes(shared), memoryview(sums[rank])) for rank in self._links}, longest)
        out[own] = shared
        for rank, data in sums.items():
            out[slices[rank]] = np.frombuffer(data, self._type)

    def _sum(self, mine: Values, theirs: Mapping[int, bytearray], out: Values) -> None:
        parts = [
            mine if rank == self._rank else np.frombuffer(theirs[rank], self._type)
            for rank in range(self.ranks)
        ]
        # Not in place before the last use of `mine`, which may be `out` itself.
        total = np.add(parts[0], parts[1], dtype=np.float32)
        for part in parts[2:]:
            total += part
        out[:] = total

    def _buffer(self, rank: int, size: int) -> bytearray:
        """Buffers are kept for the two sizes that alternate: one row, one batch."""
        found = self._buffers.get((rank, size))
        if found is None:
            if len(self._buffers) > 8 * self.ranks:
                self._buffers.clear()
            found = self._buffers[rank, size] = bytearray(size)
        return found

    def _exchange(self, messages: Mapping[int, tuple[memoryview, memoryview]], longest: int) -> None:
        """Part by part, so that no socket buffer overflows; parts of all links at once.

        All ranks know the longest message, so all take the same number of steps.
        """
        for start in range(0, max(longest, 1), REDUCE_PART_BYTES):
            part = slice(start, start + REDUCE_PART_BYTES)
            for rank, (out, into) in messages.items():
                self._links[rank].start(out[part], into[part])
            self._wait(dict.fromkeys(messages))

    def _wait(self, waiting: dict[int, None]) -> None:
        started = now = time.monotonic()
        while True:
            for rank in list(waiting):
                if self._links[rank].pump(now):
                    del waiting[rank]
            if not waiting:
                return
            now = time.monotonic()
            if now - started > SPIN_S:
                self._sleep(waiting, now - started)
                now = time.monotonic()

    def _sleep(self, waiting: Mapping[int, None], waited_s: float) -> None:
        if waited_s > REDUCE_TIMEOUT_S:
            names = ", ".join(map(str, waiting))
            raise StageLost(f"no partial sum from rank {names} within {REDUCE_TIMEOUT_S:g} s")
        links = [self._links[rank] for rank in waiting]
        readers = [self._abort_fd, *(link.fileno() for link in links)]
        writers = [link.fileno() for link in links if link.wants_write()]
        readable, _, _ = select.select(readers, writers, [], min(link.wait_s() for link in links))
        if self._abort_fd in readable:
            raise StageLost("the tensor group was given up")

    # the leader's word: rank 0 says what comes next
    def announce(self, word: bytes) -> None:
        """Tell every other rank; they have been listening since the step before."""
        if self._broken is not None:
            raise self._broken
        first = bytearray(ANNOUNCED_BYTES)
        _WORD_SIZE.pack_into(first, 0, len(word))
        first[_WORD_SIZE.size : _WORD_SIZE.size + len(word)] = word[: ANNOUNCED_BYTES - _WORD_SIZE.size]
        rest = word[ANNOUNCED_BYTES - _WORD_SIZE.size :]
        try:
            self._say(memoryview(first))
            for start in range(0, len(rest), REDUCE_PART_BYTES):
                self._say(memoryview(rest)[start : start + REDUCE_PART_BYTES])
        except P2PNodeError as exc:
            self._broken = exc
            raise

    def _say(self, out: memoryview) -> None:
        for link in self._links.values():
            link.start(out, _nothing())
        self._wait(dict.fromkeys(self._links))

    def listen(self) -> None:
        """Be ready for the next word; other ranks than 0 do so whenever they are done with one."""
        if self._broken is None:
            self._links[0].start(_nothing(), memoryview(self._first_word))
            self._listening = True

    def heard(self) -> bytes | None:
        """The next word once it is there."""
        if self._broken is not None or not self._listening:
            return None
        try:
            if select.select([self._abort_fd], [], [], 0)[0]:
                raise StageLost("the tensor group was given up")
            if not self._links[0].pump(time.monotonic()):
                return None
            self._listening = False
            return self._whole_word()
        except P2PNodeError as exc:
            self._broken = exc
            return None

    def _whole_word(self) -> bytes:
        (size,) = _WORD_SIZE.unpack_from(self._first_word)
        if size > ENGINE_HEADER_BYTES_MAX:
            raise StageLost(f"a word of {size} bytes from the leader")
        word = bytearray(self._first_word[_WORD_SIZE.size : _WORD_SIZE.size + size])
        while len(word) < size:
            part = bytearray(min(size - len(word), REDUCE_PART_BYTES))
            self._links[0].start(_nothing(), memoryview(part))
            self._wait({0: None})
            word += part
        return bytes(word)

    def service(self) -> None:
        """Between steps: answer requests for pieces that got lost."""
        try:
            for link in self._served:
                link.pump(time.monotonic())
        except P2PNodeError as exc:
            self._broken = self._broken or exc
            self._served = []

    def filenos(self) -> list[int]:
        """Descriptors to `service` when something arrives between steps."""
        found = {link.fileno() for link in self._served}
        if self._listening and self._broken is None:
            found |= {self._links[0].fileno(), self._abort_fd}
        return list(found)

    def give_up(self, error: P2PNodeError) -> None:
        """Nothing will be exchanged any more: another rank does not keep to what all agreed on."""
        self._broken = self._broken or error

    @property
    def broken(self) -> P2PNodeError | None:
        """Why nothing can be exchanged any more."""
        return self._broken

    def close(self) -> None:
        for link in self._links.values():
            link.close()
