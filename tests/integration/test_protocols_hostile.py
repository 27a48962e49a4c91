"""Every protocol of ours against peers that mean harm, over real QUIC: refused, ended in time, and the node lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from structlog.testing import capture_logs

from p2pnode import limits
from p2pnode.errors import RemoteProtocolError, StreamReset
from p2pnode.node.core import Node
from p2pnode.node.roles import ADMIT, OPEN_PROTOCOLS
from p2pnode.transport import messages
from p2pnode.transport.port import Connection
from p2pnode.units import PeerId
from tests.kit.net import TEST_TIMEOUT_S, quic, running
from tests.kit.node_here import become_member, node_here, reach

PRIVATE = {
    "/p2pnode/status/1",
    "/p2pnode/control/1",
    "/p2pnode/stage/1",
    "/p2pnode/reduce/1",
    "/p2pnode/blob/1",
    "/p2pnode/rpc/2",
    "/p2pnode/infer/1",
    "/omni/tensor-xfer/1",
    "/p2pnode/log/1",
}
"""At least these are for members alone."""


def packed(document: object) -> bytes:
    body = msgpack.packb(document)
    return len(body).to_bytes(4, "big") + body


NASTY: dict[str, bytes] = {
    "nothing": b"",
    "half a length": b"\x00\x00",
    "half a message": (100).to_bytes(4, "big") + b"\x81",
    "a huge length": b"\xff\xff\xff\xff" + bytes(64),
    "one byte too many": (limits.MESSAGE_BYTES_MAX + 1).to_bytes(4, "big") + bytes(64),
    "an empty message": bytes(4),
    "noise": bytes(range(7, 256, 3)) * 8,
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "no map": packed([1, 2, 3]),
    "an unknown type": packed({"t": "destroy"}),
    "a number for a type": packed({"t": 7}),
    "wrong fields": packed({"t": "call", "method": 5, "arguments": [1]}),
    "an answer nobody asked for": packed({"t": "answer", "data": {}}),
    "an unknown method": packed({"t": "call", "method": "x" * 4000, "arguments": {}}),
    "arguments of no kind": packed({"t": "call", "method": "generate", "arguments": {"prompt": {"a": []}}}),
    "a wrong secret": packed({"t": "admit", "secret": b"", "name": "x" * 10_000, "version": ""}),
    "a secret that is text": packed({"t": "admit", "secret": 5, "name": [], "version": None}),
    "very deep": (2000).to_bytes(4, "big") + b"\x91" * 2000,
    "an attach to nothing": packed({"t": "call", "method": "attach", "arguments": {"plan_id": [], "stage": "x"}}),
}  # fmt: skip


def private_protocols(node: Node) -> list[str]:
    known = set(node.transport.router.protocols) - OPEN_PROTOCOLS  # type: ignore[attr-defined]
    # (the router is QuicTransport's; the port does not list protocols)
    assert known >= PRIVATE
    return sorted(known)


async def outcome(connection: Connection, protocol: str, data: bytes, *, end: bool = True) -> bytes:
    """What comes back until the other side ends the stream, by whatever means."""
    received = b""
    try:
        stream = await connection.open_stream(protocol)
        await stream.write(data)
        if end:
            await stream.close_write()
        while piece := await stream.read(65_536):
            received += piece
    except StreamReset:
        pass  # an end too, for some before the agreement on the protocol has arrived
    return received


@pytest.fixture(autouse=True)
def no_bug(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Bad input is a condition; an exception nobody expected would be logged as an error."""
    with capture_logs() as entries:
        yield
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []
    assert [entry for entry in entries if entry["log_level"] == "error"] == []


async def assert_alive(node: Node, connection: Connection) -> None:
    """A member's question is answered and the record can be written."""
    stream = await connection.open_stream("/p2pnode/control/1")
    await messages.send_message(stream, messages.Call(method="log.binding", arguments={}))
    async with asyncio.timeout(TEST_TIMEOUT_S):
        assert isinstance(await messages.receive_message(stream), messages.Answer)
    await node.mesh.invite(uses=1, expires_s=60, role="worker", label="alive")


async def test_a_stranger_gets_na_for_everything_but_admission(tmp_path: Path) -> None:
    stranger = quic("stranger")
    async with running(stranger), node_here(tmp_path) as node:
        connection = await reach(stranger, node)
        protocols = private_protocols(node)
        for protocol in protocols:
            with pytest.raises(RemoteProtocolError) as refused:
                await connection.open_stream(protocol)
            assert refused.value.details["reason"] == "na", protocol
        counters = node.transport.counters()  # type: ignore[attr-defined]
        assert counters["gate_refused"] >= len(protocols)
        assert await connection.ping() > 0
        (await connection.open_stream(ADMIT)).reset()


async def test_a_member_sends_nonsense_on_every_protocol(tmp_path: Path) -> None:
    """Every stream ends by itself; nothing but conditions is logged; the next question is answered."""
    member = quic("mallory")
    async with running(member), node_here(tmp_path) as node:
        connection = await become_member(member, node)
        for protocol in [ADMIT, *private_protocols(node)]:
            async with asyncio.timeout(TEST_TIMEOUT_S):
                await asyncio.gather(*(outcome(connection, protocol, data) for data in NASTY.values()))
        await assert_alive(node, connection)


async def test_a_member_whose_status_is_nonsense(tmp_path: Path) -> None:
    """Fields of the right type with contents that mean nothing."""
    member = quic("mallory")
    async with running(member), node_here(tmp_path) as node:
        connection = await become_member(member, node)
        assert node.mesh.membership is not None
        status = {
            "t": "status", "name": "x" * 5000, "version": "v" * 5000, "role": "founder",
            "mesh_key": node.mesh.membership.mesh_key, "addresses": ["", "/", "/ip4/x/udp/99999/quic-v1"] * 50,
            "grants": [], "revocations": [], "models": [{}],
            "capability": {"cores": "many"}, "state": "asleep", "now_ms": -(2**62), "checkpoint": "no note",
            "extra": {},
        }  # fmt: skip
        for change in (
            {},
            {"models": [{"manifest": 5, "name": []}]},
            {"grants": [b"", b"x" * 600]},
            {"revocations": [b"\x95\xc0\xc0\xc0\xc0\xc0"]},
            {"extra": {"peers": 5, "rtt_ms": "x", "stages": {}}},
            {"extra": {"peers": {"no peer id": ["/ip4/1.2.3.4/udp/1/quic-v1"], node.me: 7}}},
            {"extra": {"peers": [["a", "b", "c"]]}},
        ):
            await outcome(connection, "/p2pnode/status/1", packed({**status, **change}))
        await assert_alive(node, connection)
        assert node.links.links[PeerId(member.peer_id)].name == "x" * limits.NAME_CHARACTERS_MAX


async def test_a_slow_loris_is_ended_on_every_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three bytes and then silence with the stream held open: each handler gives up by itself."""
    member = quic("mallory")
    async with running(member), node_here(tmp_path) as node:
        connection = await become_member(member, node)
        for name in (
            "CONTROL_TIMEOUT_S",
            "STATUS_SILENCE_S_MAX",
            "BLOB_IDLE_TIMEOUT_S",
            "OMNI_BODY_TIMEOUT_S",
        ):
            monkeypatch.setattr(limits, name, 0.2)
        async with asyncio.timeout(TEST_TIMEOUT_S):
            held = [ADMIT, *private_protocols(node)]
            await asyncio.gather(*(outcome(connection, p, b"\x00\x00\x00", end=False) for p in held))
        monkeypatch.undo()
        await assert_alive(node, connection)
