"""A rank that cannot compute what came by a lane: its leader hears it from its node, long before patience ends."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import msgpack

from p2pnode.compute.engine_protocol import StreamToRank, frame_fields
from p2pnode.compute.reduce import ANNOUNCED_BYTES
from p2pnode.frame import DType, Frame, Kind, pack_tokens
from p2pnode.limits import REDUCE_TIMEOUT_S
from p2pnode.node.hosted_stage import UNIT
from p2pnode.node.orders import STAGE, slot
from p2pnode.transport import messages
from tests.integration.test_stage_gate import Head
from tests.kit.net import quic, running
from tests.kit.node_here import become_member, node_here


def announced(frame: Frame) -> bytes:
    """The leader's word over one frame that no node brings, as its engine writes it to a stream."""
    part = [frame.session, frame.epoch, frame.position_first, frame.rows, frame.rows]
    word = msgpack.packb([[], [[*part, frame_fields(frame), bytes(frame.payload)]]])
    first = (struct.pack("<I", len(word)) + word).ljust(ANNOUNCED_BYTES, b"\0")
    return struct.pack("<II", 1, ANNOUNCED_BYTES) + first


async def test_a_leader_hears_at_once_that_a_rank_cannot_go_on(tmp_path: Path) -> None:
    """The engine and the node of the rank are real; the leader is this test."""
    transport = quic("head")
    async with running(transport), node_here(tmp_path) as node:
        head = Head(transport, await become_member(transport, node, "head"))
        model, me, number = node.catalog.resolve(None), transport.peer_id, slot(1, 1)
        await head.call(
            "stage.prepare", plan_id="p", stage=1, model=model.content_id, model_name=model.name, layer_first=0,
            layer_end=2, is_last=False, context_tokens=2048, sessions=4, head=me, previous_peer=me, next_peer=me,
            next_stage=-1, next_addresses=head.addresses, rank=1, shares=[1, 1],
        )  # fmt: skip
        engine = node.hosting.stages["p", number].engine
        ours, theirs = socket.socketpair()
        await engine.client.link(engine.unit(UNIT), [StreamToRank(0, theirs)])
        theirs.close()
        forward = await head.connection.open_stream(STAGE)
        await messages.send_message(
            forward, messages.Call(method="attach", arguments={"plan_id": "p", "stage": number})
        )
        assert isinstance(await messages.receive_message(forward), messages.Answer)
        lost = Frame(Kind.TOKENS, DType.I32, 1, 1, 7, pack_tokens([5]), position_first=40)
        ours.sendall(announced(lost))
        async with asyncio.timeout(REDUCE_TIMEOUT_S / 2):
            answer = await messages.receive_message(forward)
        assert isinstance(answer, messages.Refused)
        assert answer.code == "stage_lost"
        assert "40" in answer.message, answer
        ours.close()
