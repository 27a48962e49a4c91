"""Frames of one stream against a clock: a frame that has begun must arrive, a stream between frames may be quiet.

Whoever sends a frame byte by byte would hold a stage of this device, and all streams behind it, for as long as it
likes. An honest stream is silent for minutes between two tokens, so only begun frames are timed.
"""

from __future__ import annotations

import asyncio

from p2pnode import limits
from p2pnode.errors import P2PNodeError, PeerTimeout, RemoteProtocolError
from p2pnode.frame import HEADER_BYTES, Frame, decode, decode_header
from p2pnode.transport.port import Stream


class TimedFrames:
    """`trouble` is what was wrong with the stream, beyond its end."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.trouble: P2PNodeError | None = None

    async def read(self) -> Frame:
        """The next frame; RemoteProtocolError at the end of the stream."""
        head = await self._stream.read(HEADER_BYTES)
        if not head:
            raise RemoteProtocolError("the stream of frames ended")
        try:
            if len(head) < HEADER_BYTES:
                head += await self._timed(HEADER_BYTES - len(head))
            header = decode_header(head)
            body = await self._timed(header.body_bytes) if header.body_bytes else b""
            return decode(header, body)
        except RemoteProtocolError as error:
            self.trouble = error
            raise

    async def _timed(self, size: int) -> bytes:
        allowed_s = limits.FRAME_TIMEOUT_S + size / limits.FRAME_BYTES_PER_S_MIN
        try:
            async with asyncio.timeout(allowed_s):
                return await self._stream.read_exactly(size)
        except TimeoutError:
            self.trouble = PeerTimeout(
                f"{size} bytes of a frame did not arrive within {allowed_s:.1f} s", peer=self._stream.peer_id
            )
            raise self.trouble from None
