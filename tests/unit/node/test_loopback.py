"""A stream to oneself: a window, an end, a reset."""

from __future__ import annotations

import asyncio

import pytest

from p2pnode import limits
from p2pnode.errors import RemoteProtocolError, StreamReset
from p2pnode.node.loopback import LoopbackStream
from p2pnode.units import PeerId
from tests.unit.compute.test_scheduler import settle


def pair() -> tuple[LoopbackStream, LoopbackStream]:
    return LoopbackStream.pair(PeerId("me"), "/test/1")


async def test_bytes_arrive_in_order() -> None:
    near, far = pair()
    await near.write(b"ab", memoryview(b"cd"))
    assert (await far.read(3), await far.read_exactly(1)) == (b"abc", b"d")


async def test_a_writer_waits_for_its_reader() -> None:
    near, far = pair()
    writing = asyncio.ensure_future(near.write(bytes(limits.LOOPBACK_WINDOW_BYTES + 1)))
    await settle()
    assert not writing.done()
    await far.read_exactly(1)
    await writing


async def test_an_end_is_an_end_and_not_in_the_middle() -> None:
    near, far = pair()
    await near.write(b"ab")
    await near.close_write()
    with pytest.raises(RemoteProtocolError):
        await far.read_exactly(3)
    assert (await far.read(9), await far.read(9)) == (b"ab", b"")
    with pytest.raises(StreamReset):
        await near.write(b"c")
    await far.write(b"still open the other way")


async def test_a_reset_wakes_whoever_waits() -> None:
    """A writer that was waiting for room has not written: it must not believe so."""
    near, far = pair()
    writing = asyncio.ensure_future(near.write(bytes(limits.LOOPBACK_WINDOW_BYTES + 1)))
    reading = asyncio.ensure_future(near.read(1))
    await settle()
    far.reset()
    for waiting in (writing, reading):
        with pytest.raises(StreamReset):
            await waiting
