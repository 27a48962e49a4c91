"""Control messages: typed, bounded, and the peer's conditions arrive as the same conditions."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import errors, limits
from p2pnode.transport import messages as m
from tests.kit.message_vectors import SENT, shown

VECTORS = json.loads((Path(__file__).parents[3] / "specs/vectors/messages.json").read_text())


class Pipe:
    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)

    async def write(self, *chunks: bytes) -> None:
        for chunk in chunks:
            self.data += chunk

    async def read_exactly(self, size: int) -> bytes:
        if len(self.data) < size:
            raise errors.RemoteProtocolError("the stream ended in the middle")
        taken = bytes(self.data[:size])
        del self.data[:size]
        return taken


ALL: list[m.AnyMessage] = [
    m.AdmitRequest(secret=b"s" * 16, name="kitchen", version="0.1.0", addresses=["/ip4/1.2.3.4/udp/1/quic-v1"]),
    m.Admitted(grant=b"g", mesh_name="home", grants=[b"a"], revocations=[], peers=[{"name": "x"}]),
    m.Refused(code="invite_expired", message="too late"),
    m.Call(method="stage.prepare", arguments={"layers": [0, 4]}),
    m.Progress(data={"done": 1}),
    m.Answer(data={}),
    m.Status(
        name="n", version="0", role="worker", mesh_key=b"k" * 32, addresses=[], grants=[], revocations=[],
        models=[], capability={}, state="active", now_ms=1,
    ),
]  # fmt: skip


@pytest.mark.parametrize("message", ALL, ids=lambda x: type(x).__name__)
async def test_round_trip(message: m.AnyMessage) -> None:
    pipe = Pipe()
    await m.send_message(pipe, message)
    assert await m.receive_message(pipe) == message
    assert not pipe.data


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
async def test_vectors(case: dict[str, Any]) -> None:
    """Of specs/05-messages.md: each message whole, as it lies on a stream."""
    pipe = Pipe(bytes.fromhex(case["input"]["frame"]))
    if case["expect"] != "ok":
        with pytest.raises(errors.RemoteProtocolError) as refused:
            await m.receive_message(pipe)
        assert refused.value.code == case["expect"]
        return
    message = await m.receive_message(pipe)
    frame = m.encode_message(message)
    assert shown(msgpack.unpackb(frame[4:])) == case["output"]
    if case["name"] in {name for name, *_ in SENT}:
        assert frame.hex() == case["input"]["frame"]


async def test_every_type_has_a_vector() -> None:
    types = {kind.__struct_config__.tag for kind in m.AnyMessage.__args__}  # type: ignore[attr-defined]
    assert types <= {case["output"]["t"] for case in VECTORS if case["expect"] == "ok"}


async def test_unknown_fields_are_ignored_unknown_types_are_not() -> None:
    body = msgpack.packb({"t": "answer", "data": {}, "later": 1})
    assert m.decode_message(body) == m.Answer(data={})
    for wrong in (
        {"t": "nonsense"},
        {"data": {}},
        {"t": "call", "method": 5, "arguments": {}},
        {"t": "call", "method": "x"},
        [1, 2],
        "text",
    ):
        with pytest.raises(errors.RemoteProtocolError):
            m.decode_message(msgpack.packb(wrong))


async def test_lengths_are_checked_before_reading() -> None:
    with pytest.raises(errors.RemoteProtocolError, match="over"):
        await m.receive_message(Pipe((limits.MESSAGE_BYTES_MAX + 1).to_bytes(4, "big")))
    with pytest.raises(errors.RemoteProtocolError, match="middle"):
        await m.receive_message(Pipe(b"\x00\x00\x00\x05abc"))
    with pytest.raises(errors.RemoteProtocolError, match="too long"):
        m.decode_message(b"\x00" * (limits.MESSAGE_BYTES_MAX + 1))
    with pytest.raises(errors.LocalProtocolError):
        m.encode_message(m.Answer(data={"x": b"\x00" * limits.MESSAGE_BYTES_MAX}))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(body: bytes) -> None:
    with contextlib.suppress(errors.RemoteProtocolError):
        m.decode_message(body)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(errors.RemoteProtocolError):
        m.decode_message(b"\x82\xa1t\xa6answer\xa4data" + b"\x81\xa1a" * 100_000 + b"\xc0")


def test_conditions_cross_the_wire() -> None:
    original = errors.InviteExpired("expired 2 min ago")
    back = m.refusal_error(m.refusal(original))
    assert type(back) is errors.InviteExpired
    assert (back.message, back.hint) == (original.message, original.hint)
    assert type(m.refusal_error(m.Refused(code="from_the_future", message="?"))) is errors.RemoteProtocolError


async def test_what_is_asked_is_answered_or_refused_as_the_condition_it_was() -> None:
    wish = m.Call(method="state", arguments={})
    pipe = Pipe(m.encode_message(m.Answer(data={"bytes": 3})))
    assert await m.ask(pipe, wish) == m.Answer(data={"bytes": 3})
    with pytest.raises(errors.NotFound, match="no such plan"):
        await m.ask(Pipe(m.encode_message(m.refusal(errors.NotFound("no such plan")))), wish)
