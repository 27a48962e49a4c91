"""`/omni/tensor-xfer/1`: the vectors, round trips, and nothing but exact bytes is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.errors import LocalProtocolError, RemoteProtocolError
from p2pnode.transport import omni
from p2pnode.transport.omni import Activation, Answer, Request

VECTORS = json.loads((Path(__file__).parents[3] / "specs/vectors/omni.json").read_text())["cases"]

numbers = st.integers(0, 2**32 - 1)
texts = st.text(max_size=30)


@st.composite
def activations(draw: st.DrawFn) -> Activation:
    rows, columns, dtype = draw(st.integers(1, 300)), draw(st.integers(1, 5)), draw(st.integers(0, 2))
    size = 4 if columns == 1 else columns * (2, 2, 4)[dtype]
    return Activation(rows, columns, dtype, bytes([draw(st.integers(0, 255))]) * (rows * size))


def decoded(kind: str, body: bytes) -> dict[str, Any]:
    found: Request | Answer = omni.decode_request(body) if kind == "request" else omni.decode_answer(body)
    view: dict[str, Any] = {
        name: getattr(found, name) for name in type(found).__slots__ if name != "activation"
    }
    if (activation := found.activation) is not None:
        view["activation"] = [
            activation.seq_len, activation.hidden_dim, activation.dtype, activation.data.hex(),
        ]  # fmt: skip
    return view


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_vectors(case: dict[str, Any]) -> None:
    kind, body = case["input"]["kind"], bytes.fromhex(case["input"]["body"])
    if case["expect"] == "ok":
        assert decoded(kind, body) == case["output"]
        return
    with pytest.raises(RemoteProtocolError) as refused:
        decoded(kind, body)
    assert refused.value.code == case["expect"]


@given(texts, numbers, numbers, numbers, activations())
def test_requests_round_trip(session: str, index: int, first: int, second: int, made: Activation) -> None:
    request = Request(session, index, first, second, made)
    framed = omni.encode_request(request)
    assert len(framed) == 4 + int.from_bytes(framed[:4], "big")
    assert omni.decode_request(framed[4:]) == request


@given(texts, numbers, numbers, st.one_of(texts, activations()))
def test_answers_round_trip(session: str, index: int, stage: int, what: str | Activation) -> None:
    words = {"error": what} if isinstance(what, str) else {"activation": what}
    answer = Answer(session, index, stage, **words)  # type: ignore[arg-type]
    assert omni.decode_answer(omni.encode_answer(answer)[4:]) == answer


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_a_message_or_refused(body: bytes, is_request: bool) -> None:
    try:
        if is_request:
            assert omni.encode_request(omni.decode_request(body))[4:] == body
        else:
            assert omni.encode_answer(omni.decode_answer(body))[4:] == body
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize(
    "activation",
    [
        Activation(0, 4, 2, b""),
        Activation(1, 0, 2, b""),
        Activation(1, 2, 3, bytes(8)),
        Activation(1, 2, 2, bytes(7)),
        Activation(limits.FRAME_ROWS_MAX + 1, 1, 0, bytes(4 * (limits.FRAME_ROWS_MAX + 1))),
    ],
)
def test_what_cannot_be_is_not_sent(activation: Activation) -> None:
    with pytest.raises(LocalProtocolError):
        omni.encode_request(Request("s", 0, 0, 1, activation))


def test_a_message_over_the_limit_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError):
        omni.encode_answer(Answer("s", 0, 0, error="x" * (limits.OMNI_MESSAGE_BYTES_MAX + 1)))


async def test_a_length_over_the_limit_is_refused_before_the_body() -> None:
    async def read(size: int) -> bytes:
        assert size == 4
        return (limits.OMNI_MESSAGE_BYTES_MAX + 1).to_bytes(4, "big")

    with pytest.raises(RemoteProtocolError):
        await omni.read_body(read)


async def test_a_body_is_read_to_its_length_and_no_further() -> None:
    rest = bytearray((3).to_bytes(4, "big") + b"abcd")

    async def read(size: int) -> bytes:
        taken = bytes(rest[:size])
        del rest[:size]
        return taken

    assert await omni.read_body(read) == b"abc"
    assert rest == b"d"
