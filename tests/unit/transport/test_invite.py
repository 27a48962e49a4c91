"""Tickets: the vectors of specs/02-invites.md, and that damage is always noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import InviteExpired, P2PNodeError, TicketInvalid
from p2pnode.transport.invite import ROLES, Ticket, decode_ticket, encode_ticket, secret_hash
from p2pnode.units import UnixMs

VECTORS = json.loads((Path(__file__).parents[3] / "specs/vectors/invites.json").read_text())


def from_json(fields: dict[str, object]) -> Ticket:
    return Ticket(
        mesh_key=bytes.fromhex(str(fields["mesh_key"])),
        inviter_key=bytes.fromhex(str(fields["inviter_key"])),
        secret=bytes.fromhex(str(fields["secret"])),
        expires_ms=UnixMs(int(str(fields["expires_ms"]))),
        role=str(fields["role"]),
        mesh_name=str(fields["mesh_name"]),
        addresses=tuple(fields["addresses"]),  # type: ignore[arg-type]  # JSON list of text
    )


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_vectors(vector: dict[str, object]) -> None:
    """Each vector decodes to its ticket, or is refused with its code."""
    now_ms = UnixMs(int(str(vector["now_ms"]))) if "now_ms" in vector else None
    if vector["expect"] == "ok":
        ticket = decode_ticket(str(vector["input"]), now_ms=now_ms)
        assert ticket == from_json(vector["output"])  # type: ignore[arg-type]  # a JSON object
        assert decode_ticket(encode_ticket(ticket)) == ticket
    else:
        with pytest.raises(P2PNodeError) as caught:
            decode_ticket(str(vector["input"]), now_ms=now_ms)
        assert caught.value.code == vector["expect"]
        assert caught.value.hint


addresses = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(1, 65535)).map(lambda a: f"/ip4/{a[0]}/udp/{a[1]}/quic-v1"),
    st.tuples(st.ip_addresses(v=6), st.integers(1, 65535)).map(lambda a: f"/ip6/{a[0]}/udp/{a[1]}/quic-v1"),
    st.just("/dns4/kitchen.example/udp/4001/quic-v1"),
)
tickets = st.builds(
    Ticket,
    mesh_key=st.binary(min_size=32, max_size=32),
    inviter_key=st.binary(min_size=32, max_size=32),
    secret=st.binary(min_size=16, max_size=16),
    expires_ms=st.integers(0, 2**38).map(lambda s: UnixMs(s * 1000)),
    role=st.sampled_from(ROLES),
    mesh_name=st.text(max_size=64),
    addresses=st.lists(addresses, max_size=8).map(tuple),
)


@given(tickets)
def test_round_trip(ticket: Ticket) -> None:
    """What was made is what is read, in any case and however it was broken into lines."""
    text = encode_ticket(ticket)
    assert decode_ticket(text) == ticket
    assert decode_ticket("  " + text.lower()[:40] + "\n" + text.lower()[40:] + " ") == ticket


@given(tickets, st.data())
def test_one_wrong_character_is_noticed(ticket: Ticket, data: st.DataObject) -> None:
    text = encode_ticket(ticket)
    at = data.draw(st.integers(5, len(text) - 1))
    wrong = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567").filter(lambda c: c != text[at]))
    try:
        other = decode_ticket(text[:at] + wrong + text[at + 1 :])
    except TicketInvalid:
        return
    # base32's last character has unused bits: a change there is no change of content
    assert other == ticket
    assert at == len(text) - 1


@given(st.text(max_size=300))
def test_any_text_is_refused_in_words(text: str) -> None:
    with pytest.raises(TicketInvalid):
        decode_ticket("p2p1-" + text)


def test_expired_says_since_when() -> None:
    ticket = from_json(VECTORS[0]["output"])
    with pytest.raises(InviteExpired, match="2 min ago"):
        decode_ticket(encode_ticket(ticket), now_ms=UnixMs(ticket.expires_ms + 125_000))


def test_secret_hash_is_not_the_secret() -> None:
    assert secret_hash(b"s" * 16) != secret_hash(b"t" * 16)
    assert len(secret_hash(b"s" * 16)) == 32
