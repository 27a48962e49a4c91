"""Properties of the small codecs: round trips, and no surprise from any bytes."""

from __future__ import annotations

import contextlib

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import multiformats as mf
from p2pnode import peer_id as ids
from p2pnode.errors import RemoteProtocolError
from p2pnode.multiformats import DecodeError
from p2pnode.transport import identify, multiaddr
from p2pnode.transport.multistream import HEADER, Initiator, Responder, encode_message
from tests.kit.net import identity


@given(st.integers(0, (1 << 63) - 1), st.binary(max_size=4))
def test_uvarint_round_trip(value: int, rest: bytes) -> None:
    data = mf.encode_uvarint(value)
    assert mf.decode_uvarint(b"x" + data + rest, 1) == (value, 1 + len(data))


@given(st.binary(max_size=12))
def test_uvarint_is_canonical_or_refused(data: bytes) -> None:
    try:
        value, end = mf.decode_uvarint(data)
    except DecodeError:
        return
    assert mf.encode_uvarint(value) == data[:end]


@given(st.binary(max_size=64))
def test_base58_and_base32_round_trip(data: bytes) -> None:
    assert mf.base58_decode(mf.base58_encode(data)) == data
    assert mf.base32_decode(mf.base32_encode(data)) == data


@given(st.text(max_size=40))
def test_base32_is_canonical_or_refused(text: str) -> None:
    try:
        data = mf.base32_decode(text)
    except DecodeError:
        return
    assert mf.base32_encode(data) == text


fields = st.lists(st.tuples(st.integers(1, 200), st.one_of(st.integers(0, 1 << 62), st.binary(max_size=20))))


@given(fields)
def test_protobuf_round_trip(pairs: list[tuple[int, int | bytes]]) -> None:
    assert mf.decode_fields(mf.encode_fields(pairs)) == pairs


def test_protobuf_fixed_width_fields_are_kept_raw() -> None:
    data = b"\x09" + bytes(8) + b"\x15" + bytes(4)
    assert mf.decode_fields(data) == [(1, bytes(8)), (2, bytes(4))]
    with pytest.raises(DecodeError):
        mf.decode_fields(b"\x15\0")


def test_protobuf_accessors_take_the_last_value_and_check_types() -> None:
    pairs: list[mf.Field] = [(1, 5), (1, 6), (2, b"a"), (2, b"b")]
    assert (mf.int_field(pairs, 1), mf.bytes_field(pairs, 2), mf.text_field(pairs, 2)) == (6, b"b", "b")
    assert (mf.int_field(pairs, 9), mf.bytes_field(pairs, 9), mf.text_field(pairs, 9)) == (None, None, "")
    for accessor in (mf.bytes_field, mf.text_field):
        with pytest.raises(DecodeError):
            accessor(pairs, 1)
    with pytest.raises(DecodeError):
        mf.int_field(pairs, 2)
    assert mf.encode_fields([(3, "text")]) == b"\x1a\x04text"


@given(st.binary(max_size=200))
def test_decoders_raise_their_own_errors_only(data: bytes) -> None:
    """Arbitrary bytes: a value or the documented condition, never anything else."""
    for decode in (mf.decode_fields, ids.decode_private_key, ids.check_multihash, multiaddr.from_bytes):
        try:
            decode(data)
        except DecodeError:
            continue
    for read in (
        lambda: identify.decode(data, identity("node").peer_id),
        lambda: identify.open_peer_record(data),
    ):
        try:
            read()
        except RemoteProtocolError:
            continue
    with contextlib.suppress(DecodeError):
        ids.verify_signature(data, b"signature", b"message")


@given(st.text(max_size=80))
def test_text_parsers_raise_their_own_errors_only(text: str) -> None:
    for parse in (ids.peer_id_to_bytes, multiaddr.parse, multiaddr.quic_address, mf.base58_decode):
        try:
            parse(text)
        except DecodeError:
            continue


@given(st.binary(max_size=120))
def test_multiaddr_bytes_are_canonical_or_refused(data: bytes) -> None:
    try:
        text = multiaddr.from_bytes(data)
    except DecodeError:
        return
    assert multiaddr.from_bytes(multiaddr.to_bytes(text)) == text


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=20))
def test_multistream_survives_any_stream(pieces: list[bytes]) -> None:
    """Both roles: an agreement, a wait for more, or a refusal; memory stays below two messages."""
    responder, initiator = Responder(lambda protocol: protocol == "/a"), Initiator("/a")
    for machine in (responder, initiator):
        try:
            machine.feed(encode_message(HEADER))
            for piece in pieces:
                machine.feed(piece)
        except RemoteProtocolError:
            continue


@given(st.text(st.characters(codec="ascii", exclude_characters="\n"), min_size=1, max_size=300))
def test_multistream_roles_agree(protocol: str) -> None:
    initiator, responder = Initiator(protocol), Responder(lambda offered: offered == protocol)
    responder.feed(initiator.opening() + b"first")
    initiator.feed(responder.outgoing() + b"answer")
    if protocol not in ("ls", "na"):
        assert initiator.done
        assert responder.chosen == protocol
        assert (responder.take_rest(), initiator.take_rest()) == (b"first", b"answer")


def test_initiator_refuses_what_was_not_asked() -> None:
    for answer, words in [
        (encode_message("/other"), "not proposed"),
        (encode_message("na"), "does not speak /a"),
    ]:
        initiator = Initiator("/a")
        with pytest.raises(RemoteProtocolError, match=words):
            initiator.feed(encode_message(HEADER) + answer)
    with pytest.raises(RemoteProtocolError, match=r"multistream-select 1\.0"):
        Initiator("/a").feed(encode_message("/multistream/9"))


def test_quic_addresses() -> None:
    peer = identity("node").peer_id
    for text, host in [
        (f"/ip4/1.2.3.4/udp/9/quic-v1/p2p/{peer}", "1.2.3.4"),
        ("/ip6zone/eth0/ip6/fe80::1/udp/9/quic-v1", "fe80::1%eth0"),
        ("/dns4/a.example/udp/9/quic-v1", "a.example"),
    ]:
        address = multiaddr.quic_address(text)
        assert (address.host, address.port) == (host, 9)
        assert address.multiaddr() == multiaddr.without_peer_id(text)
    for text in [
        "/ip4/1.2.3.4/udp/9",
        "/ip4/1.2.3.4/tcp/9/quic-v1",
        "/dnsaddr/a.example/udp/9/quic-v1",
        "/ip6zone/eth0/ip4/1.2.3.4/udp/9/quic-v1",
        "/ip4/1.2.3.4/udp/9/quic-v1/p2p-circuit",
        f"/p2p/{peer}",
        "/ip6zone/eth0",
    ]:
        with pytest.raises(DecodeError):
            multiaddr.quic_address(text)


def test_addresses_from_sockets() -> None:
    assert multiaddr.from_socket_address("1.2.3.4", 5) == "/ip4/1.2.3.4/udp/5/quic-v1"
    assert multiaddr.from_socket_address("::ffff:1.2.3.4", 5) == "/ip4/1.2.3.4/udp/5/quic-v1"
    assert multiaddr.from_socket_address("fe80::1%eth0", 5) == "/ip6zone/eth0/ip6/fe80::1/udp/5/quic-v1"


def test_peer_id_behind_a_relay_stays() -> None:
    peer = identity("node").peer_id
    relayed = f"/ip4/1.2.3.4/udp/9/quic-v1/p2p/{peer}/p2p-circuit/p2p/{peer}"
    assert multiaddr.without_peer_id(relayed) == relayed


def test_push_leaves_missing_fields_unchanged() -> None:
    known = identify.Identify(b"key", ("/ip4/1.1.1.1/udp/1/quic-v1",), ("/a",), None, "v", "agent", b"record")
    assert identify.merge_push(known, identify.Identify()) == known
    assert identify.merge_push(known, identify.Identify(agent="new")).agent == "new"


def _spki(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_host_keys_of_every_type_verify() -> None:
    """RSA, secp256k1 and ECDSA peers prove themselves too; a key of another type than it says does not."""
    rsa_key = rsa.generate_private_key(65537, 2048)
    k1, p256 = ec.generate_private_key(ec.SECP256K1()), ec.generate_private_key(ec.SECP256R1())
    point = k1.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
    )
    keys = {
        ids.RSA: (_spki(rsa_key.public_key()), rsa_key.sign(b"m", padding.PKCS1v15(), hashes.SHA256())),
        ids.SECP256K1: (point, k1.sign(b"m", ec.ECDSA(hashes.SHA256()))),
        ids.ECDSA: (_spki(p256.public_key()), p256.sign(b"m", ec.ECDSA(hashes.SHA256()))),
    }
    for kind, (body, signature) in keys.items():
        public_key = mf.encode_fields([(1, kind), (2, body)])
        assert ids.verify_signature(public_key, signature, b"m")
        assert not ids.verify_signature(public_key, signature, b"other")
        assert ids.ed25519_public_key(ids.peer_id_of(public_key)) is None
    for kind, body in [
        (ids.RSA, keys[ids.ECDSA][0]),
        (ids.ECDSA, keys[ids.RSA][0]),
        (
            ids.ECDSA,
            identity("node")
            .key.public_key()
            .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        ),
        (ids.RSA, _spki(rsa.generate_private_key(65537, 1024).public_key())),
    ]:
        with pytest.raises(DecodeError):
            ids.verify_signature(mf.encode_fields([(1, kind), (2, body)]), b"s", b"m")


def test_public_keys_are_bounded() -> None:
    with pytest.raises(DecodeError, match="longer"):
        ids.verify_signature(bytes(ids.PUBLIC_KEY_BYTES_MAX + 1), b"", b"")
