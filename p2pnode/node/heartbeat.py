"""Asks connections for a sign of life when nothing comes, and ends those that give none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from p2pnode import limits
from p2pnode.node.links import Links
from p2pnode.node.silence import Silence, words
from p2pnode.node.tasks import Tasks
from p2pnode.transport.port import Connection
from p2pnode.units import PeerId


class Heartbeat:
    def __init__(self, links: Links, *, tasks: Tasks, clock: Callable[[], float]) -> None:
        self._links = links
        self._tasks = tasks
        self._clock = clock
        self._silences: dict[PeerId, tuple[Connection, Silence]] = {}
        self._ended: dict[PeerId, str] = {}

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(limits.SILENCE_LOOK_S)

    def look(self) -> None:
        """At every connection once."""
        now_s, before = self._clock(), self._silences
        self._silences = {}
        for peer, link in self._links.links.items():
            connection = link.connection
            if connection is None or not link.is_up:
                continue
            received = connection.stats().bytes_received
            if link.connection is not before.get(peer, (None, None))[0]:
                self._ended.pop(peer, None)  # what was said of the one before
            known, silence = before.get(peer, (None, None))
            if silence is None or known is not connection:
                silence = Silence(received, now_s)
            silence = silence.looked(received, now_s)
            self._silences[peer] = (connection, silence)
            if silence.state == "offline":
                self._end(peer, connection, words(silence.silent_s(now_s)))
            elif silence.is_asking:
                connection.nudge()

    def _end(self, peer: PeerId, connection: Connection, why: str) -> None:
        self._ended[peer] = why
        self._tasks.spawn(f"end silent {peer[-6:]}", connection.close(0, why))

    def is_suspect(self, peer: PeerId) -> bool:
        known = self._of(peer)
        return known is not None and known.state != "online"

    def silent_s(self, peer: PeerId) -> float:
        """Since when nothing came from a device that is connected; 0 for others."""
        known = self._of(peer)
        return known.silent_s(self._clock()) if known is not None else 0.0

    def suspect_s(self, peer: PeerId) -> float:
        """The same of those that are suspect alone."""
        return self.silent_s(peer) if self.is_suspect(peer) else 0.0

    def _of(self, peer: PeerId) -> Silence | None:
        connection, silence = self._silences.get(peer, (None, None))
        link = self._links.links.get(peer)
        if link is None or connection is not link.connection or not link.is_up or silence is None:
            return None
        if connection is not None and connection.stats().bytes_received != silence.bytes_received:
            return Silence(connection.stats().bytes_received, self._clock())
        return silence

    def why_lost(self, peer: PeerId) -> str:
        """Of a connection that has just ended, for the record."""
        return self._ended.pop(peer, "connection lost")
