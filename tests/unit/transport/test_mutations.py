"""Mutated inputs to everything that reads bytes of a peer: a value or a condition, nothing else; a million tensor
frames, and another million over all the rest."""

from __future__ import annotations

import datetime
import random
import zlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import serialization

from p2pnode import frame, multiformats, peer_id
from p2pnode.errors import P2PNodeError
from p2pnode.multiformats import DecodeError
from p2pnode.transport import identify, invite, mdns, membership, messages, multiaddr, tls
from p2pnode.transport.multistream import HEADER, Responder, encode_message
from p2pnode.units import UnixMs
from tests.kit import certificates
from tests.kit.net import identity

NODE = identity("node")
ADDRESS = f"/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{NODE.peer_id}"
RAW_KEY = NODE.key.public_key().public_bytes_raw()


def read_frame(data: bytes) -> None:
    header = frame.decode_header(data[: frame.HEADER_BYTES])
    frame.decode(header, data[frame.HEADER_BYTES :])


def read_frame_with_right_checksum(data: bytes) -> None:
    """As a hostile peer would send it: whatever is inside, the checksums fit."""
    head, body = bytearray(data[: frame.HEADER_BYTES]), data[frame.HEADER_BYTES :]
    if len(head) == frame.HEADER_BYTES:
        head[-8:-4] = zlib.crc32(body).to_bytes(4, "little")
        head[-4:] = zlib.crc32(head[:-4]).to_bytes(4, "little")
    read_frame(bytes(head) + body)


def read_multistream(data: bytes) -> None:
    Responder(lambda protocol: len(protocol) % 2 == 0).feed(data)


def read_ticket(data: bytes) -> None:
    invite.decode_ticket(data.decode("latin-1"))


def sample_frame() -> bytes:
    made = frame.Frame(
        frame.Kind(1), frame.DType.F32, 2, 8, session=7, payload=bytes(64), meta={"reason": "test", "n": 5}
    )
    return b"".join(bytes(part) for part in frame.encode(made))


def sample_ticket() -> bytes:
    ticket = invite.Ticket(
        RAW_KEY,
        RAW_KEY,
        bytes(16),
        UnixMs(2_000_000_000_000),
        invite.ROLES[0],
        "home",
        (multiaddr.without_peer_id(ADDRESS),),
    )
    return invite.encode_ticket(ticket).encode()


NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)


def sample_certificate() -> bytes:
    made = certificates.make("plain", now=NOW)
    return made.certificate.public_bytes(serialization.Encoding.DER)


SAMPLES: dict[str, tuple[Callable[[bytes], object], Callable[[], bytes]]] = {
    "frame": (read_frame, sample_frame),
    "frame_checksummed": (read_frame_with_right_checksum, sample_frame),
    "message": (
        messages.decode_message,
        lambda: messages.encode_message(
            messages.Call(method="models.list", arguments={"a": [1, b"2", None]})
        )[4:],
    ),
    "identify": (
        lambda data: identify.decode(data, NODE.peer_id),
        lambda: identify.encode(
            identify.Identify(NODE.public_key, (ADDRESS,), ("/a/1", "/b/1"), ADDRESS, "v", "agent")
        ),
    ),
    "peer_record": (identify.open_peer_record, lambda: identify.seal_peer_record(NODE, 3, [ADDRESS])),
    "multiaddr": (multiaddr.from_bytes, lambda: multiaddr.to_bytes(ADDRESS)),
    "multiaddr_text": (lambda data: multiaddr.parse(data.decode("latin-1")), ADDRESS.encode),
    "signed_key": (tls.decode_signed_key, lambda: tls.encode_signed_key(NODE.public_key, bytes(64))),
    "certificate": (lambda data: tls.verify_certificates([data], NOW), sample_certificate),
    "protobuf": (multiformats.decode_fields, lambda: NODE.public_key * 3),
    "private_key": (peer_id.decode_private_key, lambda: peer_id.encode_private_key(NODE.key)),
    "peer_id_text": (lambda data: peer_id.peer_id_to_bytes(data.decode("latin-1")), NODE.peer_id.encode),
    "multistream": (
        read_multistream,
        lambda: encode_message(HEADER) + encode_message("/p2pnode/stage/1") * 3,
    ),
    "ticket": (read_ticket, sample_ticket),
    "grant": (
        membership.decode_grant,
        lambda: membership.make_grant(
            NODE.sign,
            mesh_key=RAW_KEY,
            subject_key=RAW_KEY,
            issuer_key=RAW_KEY,
            role="worker",
            name="n",
            now_ms=5,
        ).encode(),
    ),
    "mdns": (mdns.read_txt, lambda: mdns.txt_record([multiaddr.without_peer_id(ADDRESS)], NODE.peer_id)),
}


def mutate(rng: random.Random, sample: bytes) -> bytes:
    data = bytearray(sample)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        kind, at = rng.randrange(6), rng.randrange(len(data) + 1)
        if kind == 0:
            data[at:] = b""
        elif kind == 1:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 2:
            data[at:at] = data[:at][-rng.randrange(1, 40) :]
        elif at < len(data):
            data[at] = rng.choice((0, 0x7F, 0x80, 0xFF, data[at] ^ 1 << rng.randrange(8), rng.randrange(256)))
    return bytes(data)


def try_mutations(name: str, count: int) -> None:
    read, make = SAMPLES[name]
    sample = make()
    rng = random.Random(name)
    read(sample)
    for _ in range(count):
        data = mutate(rng, sample)
        try:
            read(data)
        except (P2PNodeError, DecodeError, tls.CertificateError):
            continue
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__} for {data.hex()}") from error


@pytest.mark.parametrize("name", SAMPLES)
def test_mutated_input_is_a_value_or_a_condition(name: str) -> None:
    try_mutations(name, 300)


FRAMES = ("frame", "frame_checksummed")


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMES)
def test_a_million_mutated_frames(name: str) -> None:
    try_mutations(name, 1_000_000 // len(FRAMES))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in FRAMES])
def test_a_million_mutations(name: str) -> None:
    try_mutations(name, 1_000_000 // (len(SAMPLES) - len(FRAMES)) + 1)
