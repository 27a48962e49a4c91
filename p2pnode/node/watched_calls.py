"""Calls to devices that are asked, while the answer is awaited, whether they are there at all."""

from __future__ import annotations

import asyncio
from typing import Any

from p2pnode import limits
from p2pnode.errors import P2PNodeError, StageLost
from p2pnode.node.links import Links
from p2pnode.units import PeerId


class WatchedCalls:
    def __init__(self, links: Links) -> None:
        self._links = links

    async def call(self, peer: PeerId, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """A device that is gone does not answer a ping either: known long before the call's own patience ends."""
        call = asyncio.ensure_future(self._links.call(peer, method, arguments))
        try:
            while not (await asyncio.wait([call], timeout=limits.STAGE_ASK_AFTER_S))[0]:
                await self.ask_all({peer})
            return call.result()
        finally:
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    async def ask_all(self, peers: set[PeerId]) -> None:
        """Devices that do not answer are hung up on, so that whoever plans next knows at once."""
        await asyncio.gather(*(self._ask_one(peer) for peer in sorted(peers) if peer != self._links.me))

    async def _ask_one(self, peer: PeerId) -> None:
        connection = self._links.connection_to(peer)
        if connection is None:
            raise StageLost(f"{self._links.name_of(peer)} is not connected", peer=peer)
        try:
            await connection.ping(timeout_s=limits.SILENCE_PING_S)
        except (P2PNodeError, TimeoutError):
            await connection.close(0, "no answer to a ping")
            raise StageLost(f"{self._links.name_of(peer)} does not answer", peer=peer) from None
