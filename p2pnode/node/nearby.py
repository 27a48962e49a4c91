"""Who answers on this network, before this device is anybody there."""

from __future__ import annotations

import asyncio

from p2pnode import limits
from p2pnode.identity import Identity
from p2pnode.node.approval import survey
from p2pnode.transport.discovery import Discovery
from p2pnode.transport.messages import Here
from p2pnode.transport.quic import QuicTransport
from p2pnode.units import PeerId

Found = dict[PeerId, list[str]]


async def listen_nearby(me: PeerId) -> Found:
    """Peers heard by mDNS within a few seconds; this device announces nothing of itself."""
    discovery = Discovery(me, lambda: [], lambda _peer, _addresses: None)
    await discovery.start()
    try:
        await asyncio.sleep(limits.NEARBY_WAIT_S)
    finally:
        await discovery.close()
    return {peer: list(addresses) for peer, addresses in discovery.peers_heard.items()}


async def meshes_nearby() -> tuple[Found, dict[PeerId, Here]]:
    """Devices on this network and which mesh each says it belongs to; asked under a passing identity."""
    identity = Identity.generate()
    transport = QuicTransport(identity, (), agent="p2pnode")
    await transport.start()
    try:
        found = await listen_nearby(identity.peer_id)
        return found, await survey(transport, found)
    finally:
        await transport.close()
