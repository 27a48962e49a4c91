"""What routers may answer to a request for a port, bad answers included."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.multiformats import DecodeError
from p2pnode.transport import nat_pmp

PORT, NONCE = 4001, bytes(range(12))


def pcp_answer(*, version: int = 2, result: int = 0, nonce: bytes = NONCE, inside: int = PORT) -> bytes:
    host = bytes(10) + b"\xff\xff" + bytes((203, 0, 113, 7))
    head = struct.pack(">BBxBII12x", version, 0x81, result, 7200, 99)
    return head + struct.pack(">12sB3xHH16s", nonce, 17, inside, 40001, host)


def map_answer(*, result: int = 0, inside: int = PORT) -> bytes:
    return struct.pack(">BBHIHHI", 0, 0x81, result, 99, inside, 40001, 3600)


def address_answer(*, result: int = 0) -> bytes:
    return struct.pack(">BBHI4s", 0, 0x80, result, 99, bytes((203, 0, 113, 7)))


def test_a_granted_port() -> None:
    assert nat_pmp.read_pcp(pcp_answer(), PORT, NONCE) == nat_pmp.Granted(40001, 7200, 99, "203.0.113.7")
    assert nat_pmp.read_map(map_answer(), PORT).external_port == 40001
    assert nat_pmp.read_address(address_answer()) == "203.0.113.7"


@pytest.mark.parametrize(
    ("version", "result", "is_version"), [(0, 1, True), (1, 1, True), (2, 1, True), (2, 8, False)]
)
def test_a_refusal_by_pcp(version: int, result: int, is_version: bool) -> None:
    """A router of another version says so under its own number."""
    with pytest.raises(nat_pmp.RefusedError) as caught:
        nat_pmp.read_pcp(pcp_answer(version=version, result=result), PORT, NONCE)
    assert caught.value.is_version is is_version


@pytest.mark.parametrize(
    "answer", [pcp_answer(nonce=bytes(12)), pcp_answer(inside=1), pcp_answer()[:-1], b""]
)
def test_what_answers_no_request_of_pcp(answer: bytes) -> None:
    with pytest.raises(DecodeError):
        nat_pmp.read_pcp(answer, PORT, NONCE)


@pytest.mark.parametrize("cut", [4, 8, None])
def test_a_refusal_by_nat_pmp_in_any_length(cut: int | None) -> None:
    with pytest.raises(nat_pmp.RefusedError, match="does not allow mappings"):
        nat_pmp.read_map(map_answer(result=2)[:cut], PORT)
    with pytest.raises(nat_pmp.RefusedError, match="no address outside itself"):
        nat_pmp.read_address(address_answer(result=3)[:cut])


@pytest.mark.parametrize(
    "answer", [map_answer()[:8], map_answer()[:3], address_answer(), map_answer(inside=1), b""]
)
def test_what_answers_no_request_of_nat_pmp(answer: bytes) -> None:
    with pytest.raises(DecodeError):
        nat_pmp.read_map(answer, PORT)


@given(st.binary(max_size=80))
def test_any_bytes_are_an_answer_or_refused(data: bytes) -> None:
    for read in (
        lambda: nat_pmp.read_pcp(data, PORT, NONCE),
        lambda: nat_pmp.read_map(data, PORT),
        lambda: nat_pmp.read_address(data),
    ):
        try:
            read()
        except (DecodeError, nat_pmp.RefusedError):
            continue
