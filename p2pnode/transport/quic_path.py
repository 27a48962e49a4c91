"""How large datagrams may be on one path: probed before use, given up when the path stops carrying them.

RFC 8899 (DPLPMTUD) in small: a padded PING of the wanted size; its acknowledgement raises the size, losses of
large packets without an acknowledgement between them lower it to what every path carries.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from aioquic.quic.connection import NetworkAddress

from p2pnode import limits
from p2pnode.transport.quic_core import QuicCore

PROBE_SIZES = (1452, 8952, 16_384)
"""Ethernet and jumbo frames less IPv6 and UDP headers; loopback, where the core's own limit is reached."""

PROBE_ATTEMPTS_MAX = 3
"""RFC 8899 MAX_PROBES."""

PROBE_AGAIN_S = 60.0
"""After the path stopped carrying large datagrams: home networks change within minutes."""

PROBE_RAISE_S = 600.0
"""After a size was refused: RFC 8899 PMTU_RAISE_TIMER."""


def probe_sizes(datagram_bytes_max: int) -> tuple[int, ...]:
    """The usual sizes below a maximum, and the maximum itself."""
    smaller = [size for size in PROBE_SIZES if size < datagram_bytes_max]
    return (*smaller, datagram_bytes_max)


class Way(Protocol):
    """How probes leave."""

    def send(self, datagrams: list[tuple[bytes, NetworkAddress]]) -> None: ...
    def arm_timer(self) -> None: ...


class PathProber:
    def __init__(self, core: QuicCore, way: Way, sizes: tuple[int, ...]) -> None:
        self._core = core
        self._way = way
        self._sizes = sizes
        self._loop = asyncio.get_running_loop()
        self._losses: dict[int, int] = {}
        self._again: asyncio.TimerHandle | None = None
        self._is_over = False

    def probe(self) -> None:
        """Ask the path about every size above the one in use."""
        self._probe(self._sizes)

    def _probe(self, sizes: tuple[int, ...]) -> None:
        core = self._core
        if self._is_over or core.closing is not None:
            return
        largest = min(core.peer_datagram_bytes_max, limits.DATAGRAM_BYTES_MAX)
        for size in sizes:
            if core.datagram_bytes < size <= largest:
                self._way.send(core.probe_datagram(size, self._loop.time()))
        self._way.arm_timer()

    def judge_probes(self) -> None:
        """Larger datagrams once a probe arrived; a lost one is tried again a few times."""
        core = self._core
        results, core.probe_results = core.probe_results, []
        again: list[int] = []
        for size, arrived in results:
            if arrived:
                if size > core.datagram_bytes:
                    core.set_datagram_bytes(size)
                continue
            losses = self._losses[size] = self._losses.get(size, 0) + 1
            if losses < PROBE_ATTEMPTS_MAX:
                again.append(size)
        if again:
            self._probe(tuple(again))
        elif self._losses and self._again is None:
            self._probe_later(PROBE_RAISE_S)

    def judge_losses(self) -> None:
        """Back to the smallest size when large datagrams vanish one after the other."""
        core = self._core
        if core.path_swallows_datagrams:
            core.set_datagram_bytes(limits.DATAGRAM_BYTES_MIN)
            self._probe_later(PROBE_AGAIN_S)

    def _probe_later(self, delay_s: float) -> None:
        self._cancel()
        self._again = self._loop.call_later(delay_s, self._probe_anew)

    def _probe_anew(self) -> None:
        self._again = None
        self._losses.clear()
        self.probe()

    def stop(self) -> None:
        """The connection is over: nothing is probed any more."""
        self._is_over = True
        self._cancel()

    def _cancel(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
