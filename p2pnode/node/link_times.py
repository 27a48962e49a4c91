"""How far and how wide the ways to the others are: round trips and transfers, timed now and then, little each time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from p2pnode import limits
from p2pnode.errors import P2PNodeError, RemoteProtocolError
from p2pnode.node.calls import ProgressCallback
from p2pnode.node.link import Link
from p2pnode.node.links import Links
from p2pnode.units import PeerId

ECHO = "link.echo"
Tell = Callable[[Link, "LinkTime"], Awaitable[None]]


@dataclass(slots=True)
class LinkTime:
    """The way to one device."""

    rtt_s: float
    """Least of some round trips: what is more than that is waiting, not distance."""
    bytes_per_s: float
    at_s: float
    connection: object
    """Timed again when another one took its place."""


class LinkTimes:
    """One link after the other, so that none is timed while another one is."""

    def __init__(self, links: Links, *, is_busy: Callable[[], bool], tell: Tell) -> None:
        self._links = links
        self._is_busy = is_busy
        self._tell = tell
        self.times: dict[PeerId, LinkTime] = {}
        links.serve(ECHO, self._echo)

    async def run(self) -> None:
        while True:
            self._forget()
            for link in list(self._links.links.values()):
                if self._is_due(link) and not self._is_busy():
                    await self._time(link)
            await asyncio.sleep(limits.MEASURE_LOOK_S)

    def _forget(self) -> None:
        for peer in [peer for peer in self.times if peer not in self._links.links]:
            del self.times[peer]

    def _is_due(self, link: Link) -> bool:
        if not link.is_up or link.connection is None or link.status is None:
            return False
        known = self.times.get(link.peer_id)
        return (
            known is None
            or known.connection is not link.connection
            or time.monotonic() - known.at_s > limits.LINK_TIME_FRESH_S
        )

    async def _time(self, link: Link) -> None:
        connection = link.connection
        assert connection is not None
        try:
            pings = [
                await connection.ping(timeout_s=limits.CONTROL_TIMEOUT_S) for _ in range(limits.LINK_PINGS)
            ]
            rtt_s = max(min(pings), limits.MEASURE_SECONDS_MIN)
            started_s = time.perf_counter()
            answer = await self._links.call(link.peer_id, ECHO, {"size": limits.LINK_ECHO_BYTES})
            spent_s = max(time.perf_counter() - started_s - rtt_s, limits.MEASURE_SECONDS_MIN)
        except (P2PNodeError, TimeoutError):
            return  # it went away, or is of a version that does not answer this
        data = answer.get("data")
        if not isinstance(data, bytes) or len(data) != limits.LINK_ECHO_BYTES:
            return
        found = LinkTime(rtt_s, len(data) / spent_s, time.monotonic(), connection)
        self.times[link.peer_id] = found
        await self._tell(link, found)

    async def _echo(self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback) -> dict[str, Any]:
        del peer
        size = arguments.get("size")
        if not isinstance(size, int) or not 0 < size <= limits.LINK_ECHO_BYTES:
            raise RemoteProtocolError(f"an echo has 1 to {limits.LINK_ECHO_BYTES} bytes")
        return {"data": bytes(size)}
