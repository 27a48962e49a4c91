"""A stream to oneself: a plan may give a device two stages, and frames between them need no wire."""

from __future__ import annotations

import asyncio

from p2pnode import limits
from p2pnode.errors import RemoteProtocolError, StreamReset
from p2pnode.transport.port import Buffer, Connection
from p2pnode.units import PeerId


class LoopbackStream:
    """One end of a pair; writing waits while the other end has a window's worth unread."""

    def __init__(self, peer_id: PeerId, protocol: str) -> None:
        self._peer_id = peer_id
        self._protocol = protocol
        self._unread = bytearray()
        self._changed = asyncio.Event()
        self._ended = False
        self._reset = False
        self._other: LoopbackStream = self

    @classmethod
    def pair(cls, peer_id: PeerId, protocol: str) -> tuple[LoopbackStream, LoopbackStream]:
        a, b = cls(peer_id, protocol), cls(peer_id, protocol)
        a._other, b._other = b, a
        return a, b

    @property
    def protocol(self) -> str:
        return self._protocol

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def connection(self) -> Connection:
        raise StreamReset("a stream to oneself has no connection")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def write(self, *chunks: Buffer) -> None:
        other = self._other
        if self._reset or other._ended:
            raise StreamReset("this stream was ended")
        for chunk in chunks:
            other._unread += chunk
        other._wake()
        while len(other._unread) > limits.LOOPBACK_WINDOW_BYTES and not self._reset:
            await other._changed.wait()
        if self._reset:
            raise StreamReset("this stream was reset")

    async def read(self, size_max: int) -> bytes:
        while not self._unread:
            if self._reset:
                raise StreamReset("this stream was reset")
            if self._ended:
                return b""
            await self._changed.wait()
        return self._take(min(size_max, len(self._unread)))

    async def read_exactly(self, size: int) -> bytes:
        while len(self._unread) < size:
            if self._reset:
                raise StreamReset("this stream was reset")
            if self._ended:
                raise RemoteProtocolError("the stream ended in the middle of a message")
            await self._changed.wait()
        return self._take(size)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._unread[:size])
        del self._unread[:size]
        self._wake()
        return taken

    async def close_write(self) -> None:
        self._other._ended = True
        self._other._wake()

    def reset(self, code: int = 0) -> None:
        del code
        for end in (self, self._other):
            end._reset = True
            end._wake()
