"""Streams attached to a real stage that dribble, lie or pile up: ended with a reason, counted, and the stage lives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from p2pnode import limits
from p2pnode.errors import RemoteProtocolError
from p2pnode.frame import DType, Frame, Kind, encode, pack_tokens
from p2pnode.node.core import Node
from p2pnode.node.faces import Faces
from p2pnode.node.orders import STAGE
from p2pnode.transport import messages
from p2pnode.transport.port import Stream
from tests.integration.test_stage_gate import Head, Ring, attach, code, prepared
from tests.kit.net import until

WHOLE = b"".join(encode(Frame(Kind.TOKENS, DType.I32, 3, 1, 7, pack_tokens([1, 2, 3]))))
BROKEN = {
    "wrong magic": b"HTTP" + WHOLE[4:],
    "wrong checksum of the header": WHOLE[:20] + bytes([WHOLE[20] ^ 1]) + WHOLE[21:],
    "wrong checksum of the body": WHOLE[:-1] + bytes([WHOLE[-1] ^ 1]),
    "a body that ends early": WHOLE[:-3],
    "a header that ends early": WHOLE[:30],
}


def collect_returns(head: Head) -> list[Stream]:
    """The ends of rings, however many."""
    returns: list[Stream] = []

    async def take(stream: Stream) -> None:
        await messages.receive_message(stream)
        await messages.send_message(stream, messages.Answer(data={}))
        returns.append(stream)
        await asyncio.Event().wait()

    head.transport.handle(STAGE, take)
    return returns


def attached(node: Node) -> int:
    return node.hosting.stages["p", 1].servers


async def refused(forward: Stream) -> messages.Refused:
    answer = await messages.receive_message(forward)
    assert isinstance(answer, messages.Refused)
    return answer


async def test_a_frame_that_dribbles_ends_its_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut in its first bytes, before the end of the header, before the end of the body; then silence."""
    async with prepared(tmp_path) as (node, head):
        returns = collect_returns(head)
        for count, size in enumerate((4, 63, len(WHOLE) - 1), start=1):
            forward = await attach(head.connection)
            with monkeypatch.context() as patch:
                patch.setattr(limits, "FRAME_TIMEOUT_S", 0.1)
                await forward.write(WHOLE[:size])
                answer = await refused(forward)
            assert answer.code == "peer_timeout"
            assert "did not arrive within 0.1 s" in answer.message
            await until(lambda: attached(node) == 0)
            assert node.streams.refused == {"peer_timeout": count}
        await works(head, returns)


async def test_a_quiet_stream_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between frames an honest stream may be silent for as long as nobody asks for a token."""
    monkeypatch.setattr(limits, "FRAME_TIMEOUT_S", 0.02)
    async with prepared(tmp_path) as (node, head):
        returns = collect_returns(head)
        forward = await attach(head.connection)
        await until(lambda: bool(returns))
        await asyncio.sleep(0.2)  # ten times what a frame would have
        await head.open(7)
        assert code(await Ring(forward, returns[0]).feed(7, [1, 2, 3])) is Kind.ROWS
        assert node.streams.refused == {}
        forward.reset()


async def test_broken_frames_are_told_and_counted(tmp_path: Path) -> None:
    async with prepared(tmp_path) as (node, head):
        returns = collect_returns(head)
        for case, data in BROKEN.items():
            forward = await attach(head.connection)
            await forward.write(data)
            await forward.close_write()
            assert (await refused(forward)).code == "protocol_remote", case
            await until(lambda: attached(node) == 0)
        assert node.streams.refused == {"protocol_remote": len(BROKEN)}
        families = {family["name"]: family for family in Faces(node).metrics()["metrics"]}
        (sample,) = families["p2pnode_stage_streams_refused"]["samples"]
        assert sample == {"labels": {"code": "protocol_remote"}, "value": len(BROKEN)}
        await works(head, returns)


async def test_streams_do_not_pile_up_on_a_stage(tmp_path: Path) -> None:
    """A head has one ring of a plan: the newest stream has the stage, and those before it end in words."""
    async with prepared(tmp_path) as (node, head):
        returns = collect_returns(head)
        held = [await attach(head.connection) for _ in range(6)]
        for before in held[:-1]:
            assert (await refused(before)).code == "stage_lost"
        assert attached(node) == 1
        assert node.streams.refused == {"stage_lost": 5}
        held[-1].reset()
        await until(lambda: attached(node) == 0)
        await works(head, returns)


async def test_a_ring_that_ends_frees_nothing_of_the_next(tmp_path: Path) -> None:
    """The end of a broken ring may come late, when the request has gone on in the next ring of the same plan."""
    async with prepared(tmp_path) as (node, head):
        returns = collect_returns(head)
        forward = await attach(head.connection)
        await until(lambda: len(returns) == 1)
        await head.open(7)
        assert code(await Ring(forward, returns[0]).feed(7, [1, 2, 3])) is Kind.ROWS
        again = await attach(head.connection)
        await until(lambda: len(returns) == 2)
        await head.open(7)
        ring = Ring(again, returns[1])
        assert code(await ring.feed(7, [1, 2, 3])) is Kind.ROWS
        forward.reset()
        await until(lambda: attached(node) == 1)
        assert code(await ring.feed(7, [4], position=3)) is Kind.ROWS
        again.reset()


async def test_half_open_streams_are_given_up_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened, and no attach, or half of one."""
    async with prepared(tmp_path) as (node, head):
        monkeypatch.setattr(limits, "CONTROL_TIMEOUT_S", 0.1)
        streams = [await head.connection.open_stream(STAGE) for _ in range(20)]
        for stream in streams[:10]:
            await stream.write(b"\x00\x00")
        await until(lambda: node.streams.refused == {"peer_timeout": 20})
        monkeypatch.undo()
        await works(head, collect_returns(head))


async def works(head: Head, returns: list[Stream]) -> None:
    """A new ring through the same stage computes."""
    had = len(returns)
    forward = await attach(head.connection)
    await until(lambda: len(returns) > had)
    await head.open(8)
    assert code(await Ring(forward, returns[-1]).feed(8, [1, 2, 3])) is Kind.ROWS
    forward.reset()  # a node that ends waits for its rings


async def test_trouble_is_the_last_word_of_a_stream(tmp_path: Path) -> None:
    """Not a reset, which would overtake it: whoever reads late still hears what went wrong, and every time."""
    async with prepared(tmp_path) as (node, head):
        returns = collect_returns(head)
        for count in range(1, 11):
            forward = await attach(head.connection)
            await until(lambda count=count: len(returns) == count)  # type: ignore[misc]
            returns[-1].reset()
            await until(lambda: attached(node) == 0)
            answer = await refused(forward)
            assert answer.code == "stage_lost"
            assert "the way to head broke" in answer.message
            with pytest.raises(RemoteProtocolError, match="ended"):
                await messages.receive_message(forward)
        await works(head, returns)
