"""Bytes over the lanes of all engines of a node: they are counted by the engines, which come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from p2pnode import limits
from p2pnode.errors import P2PNodeError
from p2pnode.node.engines import EngineHost


class LaneBytes:
    """What engines said when they were last asked; one that ended keeps what it had said."""

    def __init__(self) -> None:
        self._ended = (0, 0)
        self._running: dict[int, tuple[int, int]] = {}
        """By process."""

    async def look(self, hosts: Iterable[EngineHost]) -> None:
        """Ask all engines at once; one that computes answers between two steps, or is asked again next time."""
        asked = {host.pid: host for host in hosts if host.is_up and host.pid is not None}
        await asyncio.gather(*(self._ask(pid, host) for pid, host in asked.items()))
        for pid in self._running.keys() - asked.keys():
            self._ended = _sum([self._ended, self._running.pop(pid)])

    async def _ask(self, pid: int, host: EngineHost) -> None:
        try:
            async with asyncio.timeout(limits.COUNT_TIMEOUT_S):
                received, sent = (await host.client.stats())["lane_bytes"]
        except (P2PNodeError, TimeoutError):
            return
        self._running[pid] = (received, sent)

    def total(self) -> tuple[int, int]:
        """Received and sent."""
        return _sum([self._ended, *self._running.values()])


def _sum(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    received, sent = zip(*counts, strict=True)
    return sum(received), sum(sent)
