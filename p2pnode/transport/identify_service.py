"""Identify as a service: answer it, ask it, and collect how others see this node."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from p2pnode import limits
from p2pnode.errors import P2PNodeError, PeerTimeout, RemoteProtocolError
from p2pnode.identity import Identity
from p2pnode.transport import identify
from p2pnode.transport.identify import Identify
from p2pnode.transport.port import Connection, Stream
from p2pnode.transport.router import Router
from p2pnode.units import PeerId

logger = logging.getLogger(__name__)

IdentifyObserver = Callable[[Connection, Identify], None]
"""Called each time a peer told about itself; `observed_multiaddr` is how it sees this node."""


class Identified(Connection, Protocol):
    identified: Identify | None


class IdentifyService:
    def __init__(
        self, identity: Identity, router: Router, agent: str, listen_multiaddrs: Callable[[], Sequence[str]]
    ) -> None:
        self._identity = identity
        self._router = router
        self._agent = agent
        self._listen_multiaddrs = listen_multiaddrs
        self._observers: list[IdentifyObserver] = []

    def observe(self, observer: IdentifyObserver) -> None:
        self._observers.append(observer)

    def learned(self, connection: Connection, message: Identify) -> None:
        for observer in self._observers:
            observer(connection, message)

    def message_for(self, connection: Connection) -> Identify:
        addresses = tuple(self._listen_multiaddrs())
        return Identify(
            public_key=self._identity.public_key,
            listen_multiaddrs=addresses,
            protocols=self._router.protocols,
            observed_multiaddr=connection.remote_multiaddr,
            protocol_version=identify.PROTOCOL_VERSION,
            agent=self._agent,
            signed_peer_record=identify.seal_peer_record(self._identity, 1, addresses),
        )

    async def serve(self, stream: Stream) -> None:
        await stream.write(identify.encode_delimited(self.message_for(stream.connection)))

    async def serve_push(self, stream: Stream) -> None:
        async with asyncio.timeout(limits.IDENTIFY_TIMEOUT_S):
            pushed = await _read(stream, stream.peer_id)
        connection: Identified = stream.connection  # type: ignore[assignment]
        # Both transports' connections carry `identified`; the port leaves it to them.
        known = connection.identified
        connection.identified = pushed if known is None else identify.merge_push(known, pushed)
        self.learned(connection, connection.identified)

    async def announce(self, connections: Sequence[Connection]) -> None:
        """identify/push: what this node now says of itself, to peers that know an older state."""
        await asyncio.gather(*[self._push(connection) for connection in connections])

    async def _push(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(limits.IDENTIFY_TIMEOUT_S):
                stream = await connection.open_stream(identify.PROTOCOL_PUSH)
                await stream.write(identify.encode_delimited(self.message_for(connection)))
                await stream.close_write()
        except (P2PNodeError, TimeoutError) as error:
            # A peer without push asks when it wants to know.
            logger.debug("push to %s failed: %s", connection.peer_id, error)

    async def ask(self, connection: Connection) -> Identify:
        try:
            async with asyncio.timeout(limits.IDENTIFY_TIMEOUT_S):
                stream = await connection.open_stream(identify.PROTOCOL)
                try:
                    await stream.close_write()
                    return await _read(stream, connection.peer_id)
                finally:
                    stream.reset()
        except TimeoutError as error:
            raise PeerTimeout(f"{connection.peer_id} did not answer identify") from error


async def _read(stream: Stream, peer_id: PeerId) -> Identify:
    """One varint-prefixed message; several that follow are merged (go-libp2p splits large ones)."""
    merged: Identify | None = None
    while (size := await _read_size(stream, is_first=merged is None)) is not None:
        part = identify.decode(await stream.read_exactly(size), peer_id)
        merged = part if merged is None else identify.merge_push(merged, part)
        if merged is not None and size < identify.MESSAGE_BYTES_MAX // 2:
            break
    assert merged is not None
    return merged


async def _read_size(stream: Stream, *, is_first: bool) -> int | None:
    size = shift = 0
    while True:
        data = await stream.read(1)
        if not data:
            if is_first or shift:
                raise RemoteProtocolError("the peer ended identify without a message")
            return None
        size |= (data[0] & 0x7F) << shift
        shift += 7
        if data[0] < 0x80:
            break
        if shift > 14:
            raise RemoteProtocolError("an identify message has an endless length")
    if size > identify.MESSAGE_BYTES_MAX:
        raise RemoteProtocolError(f"an identify message of {size} bytes is not allowed")
    return size
