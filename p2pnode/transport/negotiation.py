"""multistream-select on a stream: the sans-I/O machines of multistream.py, driven."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from p2pnode import limits
from p2pnode.errors import RemoteProtocolError
from p2pnode.transport.multistream import Initiator, Responder
from p2pnode.transport.port import Buffer


class RawStream(Protocol):
    """A stream on which nothing is agreed yet."""

    protocol: str

    async def read(self, size_max: int) -> bytes: ...
    async def write(self, *chunks: Buffer) -> None: ...
    def unread(self, data: bytes) -> None: ...


async def agree_outbound(stream: RawStream, protocol: str) -> None:
    """Propose one protocol; RemoteProtocolError when the peer does not speak it (to us)."""
    stream.protocol = protocol
    initiator = Initiator(protocol)
    await stream.write(initiator.opening())
    while not initiator.done:
        data = await stream.read(limits.DATAGRAM_BYTES_MAX)
        if not data:
            raise RemoteProtocolError(f"the peer closed the stream instead of speaking {protocol}")
        initiator.feed(data)
    stream.unread(initiator.take_rest())


async def agree_inbound(stream: RawStream, accepts: Callable[[str], bool]) -> bool:
    """Answer proposals until one is accepted; False when the peer gave up first."""
    responder = Responder(accepts)
    while responder.chosen is None:
        data = await stream.read(limits.DATAGRAM_BYTES_MAX)
        if not data:
            return False
        responder.feed(data)
        if answer := responder.outgoing():
            await stream.write(answer)
    stream.protocol = responder.chosen
    stream.unread(responder.take_rest())
    return True
