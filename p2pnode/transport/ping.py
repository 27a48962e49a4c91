"""libp2p ping (libp2p/specs ping/ping.md): 32 random bytes come back unchanged."""

from __future__ import annotations

from collections.abc import Callable

from p2pnode.errors import RemoteProtocolError
from p2pnode.transport.port import Stream

PROTOCOL = "/ipfs/ping/1.0.0"
PAYLOAD_BYTES = 32


async def serve(stream: Stream) -> None:
    """Echo until the peer ends its side (or breaks off inside a payload)."""
    pending = b""
    while data := await stream.read(PAYLOAD_BYTES - len(pending)):
        pending += data
        if len(pending) == PAYLOAD_BYTES:
            await stream.write(pending)
            pending = b""


async def measure(stream: Stream, payload: bytes, clock: Callable[[], float]) -> float:
    """One round trip in the clock's seconds; the stream is closed afterwards."""
    assert len(payload) == PAYLOAD_BYTES
    try:
        started = clock()
        await stream.write(payload)
        answer = await stream.read_exactly(PAYLOAD_BYTES)
        elapsed = clock() - started
        if answer != payload:
            raise RemoteProtocolError("the peer answered a ping with other bytes", peer=stream.peer_id)
        await stream.close_write()
    except BaseException:
        stream.reset()
        raise
    return elapsed
