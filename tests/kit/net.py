"""Builders for tests that need nodes on a network: memory or real QUIC on loopback."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from p2pnode.identity import Identity
from p2pnode.transport.port import Stream, Transport
from p2pnode.transport.quic import QuicTransport

LOOPBACK = ("/ip4/127.0.0.1/udp/0/quic-v1",)
TEST_TIMEOUT_S = 20.0
"""Against hanging only; nothing in the tests takes a twentieth of it."""


def identity(name: str) -> Identity:
    """The same name gives the same node."""
    return Identity.from_seed(hashlib.sha256(name.encode()).digest())


def quic(name: str, listen: tuple[str, ...] = LOOPBACK, **options: object) -> QuicTransport:
    return QuicTransport(identity(name), listen, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def running(*transports: Transport) -> AsyncIterator[None]:
    """Started together, closed together, within a time limit."""
    async with asyncio.timeout(TEST_TIMEOUT_S):
        try:
            for transport in transports:
                await transport.start()
            yield
        finally:
            for transport in transports:
                await transport.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something the event loop is about to do."""
    async with asyncio.timeout(TEST_TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 (there is no event for "the other node noticed")
            await asyncio.sleep(0.002)


async def echo(stream: Stream) -> None:
    while data := await stream.read(65_536):
        await stream.write(data)


async def read_all(stream: Stream, size_max: int = 1 << 20) -> bytes:
    parts = []
    while data := await stream.read(size_max):
        parts.append(data)
    return b"".join(parts)
