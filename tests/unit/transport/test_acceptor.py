"""Who may begin a handshake: floods, forged addresses and garbage cost bounded memory and no answers."""

from __future__ import annotations

import random

import pytest
from aioquic.quic.packet import encode_quic_retry
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.transport.quic_acceptor import Acceptor, Verdict, source_key

ADDRESS = ("192.0.2.1", 4001)


def initial(destination: bytes = bytes(8), token: bytes = b"", size: int = 1200, version: int = 1) -> bytes:
    """The outside of a client's first datagram; its inside is noise."""
    head = bytes([0xC0]) + version.to_bytes(4, "big")
    head += bytes([len(destination)]) + destination + b"\x08" + b"clientid"
    head += (len(token) | 0x4000).to_bytes(2, "big") + token
    rest = size - len(head) - 2
    return head + (rest | 0x4000).to_bytes(2, "big") + bytes(rest)


@pytest.fixture
def acceptor() -> Acceptor:
    return Acceptor(random.Random(1).randbytes)


def test_first_handshakes_are_accepted(acceptor: Acceptor) -> None:
    decision = acceptor.judge(initial(b"12345678"), ADDRESS, 0.0)
    assert decision.verdict is Verdict.ACCEPT
    assert decision.original_destination == decision.destination == b"12345678"
    assert decision.retry_source is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (initial(size=1199), "not_initial"),
        (bytes([0x40]) + bytes(1300), "not_initial"),
        (initial(destination=bytes(7)), "not_initial"),
        (bytes([0xE0]) + initial()[1:], "not_initial"),
        (initial()[:6] + b"\xff" * 1194, "malformed"),
        (initial(version=0), "malformed"),
        (bytes([0x80]) + initial()[1:], "malformed"),
        (initial(token=bytes(40)), "bad_token"),
        (initial(token=b"x"), "bad_token"),
    ],
)
def test_garbage_is_dropped_without_an_answer(acceptor: Acceptor, data: bytes, reason: str) -> None:
    decision = acceptor.judge(data, ADDRESS, 0.0)
    assert (decision.verdict, decision.reason, decision.reply) == (Verdict.DROP, reason, b"")
    assert acceptor.refused == {reason: 1}


def test_unknown_version_is_answered_with_less_than_was_received(acceptor: Acceptor) -> None:
    data = initial(version=0x6B3343CF)
    decision = acceptor.judge(data, ADDRESS, 0.0)
    assert decision.verdict is Verdict.ANSWER
    assert len(decision.reply) < len(data) / 3


def test_under_load_an_address_has_to_prove_itself(acceptor: Acceptor) -> None:
    """A Retry is smaller than what asked for it, keeps no state, and its token opens the door once echoed."""
    for index in range(limits.HANDSHAKES_BEFORE_RETRY):
        acceptor.begun((f"192.0.2.{index}", 1), 0.0)
    data = initial(b"original")
    answer = acceptor.judge(data, ADDRESS, 0.0)
    assert answer.verdict is Verdict.ANSWER
    assert len(answer.reply) < len(data) / 3
    retry_source, token = answer.reply[15:23], answer.reply[23:-16]
    expected = encode_quic_retry(
        version=1,
        source_cid=retry_source,
        destination_cid=b"clientid",
        original_destination_cid=b"original",
        retry_token=token,
    )
    assert answer.reply == expected
    second = initial(retry_source, token)
    accepted = acceptor.judge(second, ADDRESS, 1.0)
    assert accepted.verdict is Verdict.ACCEPT
    assert (accepted.original_destination, accepted.retry_source) == (b"original", retry_source)
    assert acceptor.judge(second, ("192.0.2.99", 4001), 1.0).reason == "bad_token"
    assert acceptor.judge(second, ADDRESS, 60.0).reason == "bad_token"
    assert acceptor.judge(initial(b"otherdst", token), ADDRESS, 1.0).reason == "bad_token"
    for _ in range(limits.HANDSHAKES_PER_ADDRESS_MAX):
        acceptor.begun(ADDRESS, 1.0)
    assert acceptor.judge(second, ADDRESS, 1.0).reason == "address_half_open"


def test_one_address_gets_its_share_and_no_more(acceptor: Acceptor) -> None:
    for _ in range(limits.HANDSHAKES_PER_ADDRESS_BURST):
        assert acceptor.judge(initial(), ADDRESS, 0.0).verdict is Verdict.ACCEPT
    assert acceptor.judge(initial(), ADDRESS, 0.0).reason == "address_rate"
    assert acceptor.judge(initial(), ("192.0.2.2", 1), 0.0).verdict is Verdict.ACCEPT
    assert acceptor.judge(initial(), ADDRESS, 1.0).verdict is Verdict.ACCEPT


def test_connections_are_counted_down_again(acceptor: Acceptor) -> None:
    for _ in range(limits.CONNECTIONS_PER_ADDRESS_MAX):
        acceptor.begun(ADDRESS, 0.0)
        acceptor.completed(ADDRESS, 0.0)
    assert acceptor.judge(initial(), ADDRESS, 0.0).reason == "address_full"
    acceptor.ended(ADDRESS, 0.0, was_complete=True)
    assert acceptor.judge(initial(), ADDRESS, 0.0).verdict is Verdict.ACCEPT
    acceptor.begun(ADDRESS, 0.0)
    acceptor.ended(ADDRESS, 0.0, was_complete=False)
    assert (acceptor.half_open, acceptor.open) == (0, limits.CONNECTIONS_PER_ADDRESS_MAX - 1)


def test_the_house_is_full_at_some_point(acceptor: Acceptor) -> None:
    acceptor.open = limits.CONNECTIONS_MAX
    assert acceptor.judge(initial(), ADDRESS, 0.0).reason == "full"


def test_ten_thousand_addresses_cost_bounded_memory(acceptor: Acceptor) -> None:
    """Spoofed senders: the table of sources has a limit, and busy ones are never forgotten."""
    acceptor.begun(("198.51.100.1", 1), 0.0)
    for index in range(10_000):
        acceptor.judge(initial(), (f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}", 1), 0.0)
    assert len(acceptor._sources) <= limits.ADDRESSES_TRACKED_MAX + 1
    assert source_key(("198.51.100.1", 1)) in acceptor._sources


def test_one_source_is_what_one_attacker_can_choose() -> None:
    assert source_key(("2001:db8::1", 1)) == source_key(("2001:db8::ffff:1", 2))
    assert source_key(("2001:db8:0:1::1", 1)) != source_key(("2001:db8::1", 1))
    assert source_key(("::ffff:1.2.3.4", 1)) == source_key(("1.2.3.4", 9))
    assert source_key(("fe80::1%eth0", 1)) == source_key(("fe80::2%eth1", 1))


@given(st.binary(max_size=1400))
def test_no_datagram_breaks_the_acceptor(data: bytes) -> None:
    acceptor = Acceptor(random.Random(1).randbytes)
    for padded in (data, data.ljust(1200, b"\0"), b"\xc0\0\0\0\1" + data.ljust(1200, b"\0")):
        if padded:
            decision = acceptor.judge(padded, ADDRESS, 0.0)
            assert len(decision.reply) <= len(padded)
