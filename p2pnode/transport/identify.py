"""Identify, identify/push and signed peer records as messages.

Sources: libp2p/specs identify/README.md, RFC 0002 (envelopes), RFC 0003 (peer records).

Everything in a message is a claim; only the public key is checked, against the TLS identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from p2pnode.errors import RemoteProtocolError
from p2pnode.identity import Identity
from p2pnode.multiformats import (
    DecodeError,
    bytes_field,
    decode_fields,
    encode_fields,
    int_field,
    length_prefixed,
    repeated_bytes,
    text_field,
)
from p2pnode.peer_id import peer_id_from_bytes, peer_id_of, peer_id_to_bytes, verify_signature
from p2pnode.transport import multiaddr
from p2pnode.units import PeerId

PROTOCOL = "/ipfs/id/1.0.0"
PROTOCOL_PUSH = "/ipfs/id/push/1.0.0"
PROTOCOL_VERSION = "ipfs/0.1.0"

MESSAGE_BYTES_MAX = 8192
"""js-libp2p's limit for one message."""

ADDRESSES_MAX = 64
PROTOCOLS_MAX = 512
TEXT_CHARS_MAX = 256

_RECORD_DOMAIN = b"libp2p-peer-record"
_RECORD_TYPE = b"\x03\x01"


@dataclass(frozen=True, slots=True)
class Identify:
    """What a peer says about itself."""

    public_key: bytes | None = None
    listen_multiaddrs: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    observed_multiaddr: str | None = None
    """How the sender sees the receiver, without /p2p; None when absent or not understood."""
    protocol_version: str = ""
    agent: str = ""
    signed_peer_record: bytes | None = field(default=None, repr=False)


def encode(message: Identify) -> bytes:
    fields: list[tuple[int, int | bytes | str]] = []
    if message.public_key is not None:
        fields.append((1, message.public_key))
    fields += [(2, multiaddr.to_bytes(address)) for address in message.listen_multiaddrs]
    fields += [(3, protocol) for protocol in message.protocols]
    if message.observed_multiaddr is not None:
        fields.append((4, multiaddr.to_bytes(message.observed_multiaddr)))
    if message.protocol_version:
        fields.append((5, message.protocol_version))
    if message.agent:
        fields.append((6, message.agent))
    if message.signed_peer_record is not None:
        fields.append((8, message.signed_peer_record))
    return encode_fields(fields)


def encode_delimited(message: Identify) -> bytes:
    """As sent on a stream: varint length, message."""
    data = encode(message)
    assert len(data) <= MESSAGE_BYTES_MAX, "identify message is larger than peers accept"
    return length_prefixed(data)


def _address(raw: bytes | None) -> str | None:
    """None for an address this node cannot use: peers may listen on transports unknown here."""
    if raw is None:
        return None
    try:
        return multiaddr.without_peer_id(multiaddr.from_bytes(raw))
    except DecodeError:
        return None


def decode(data: bytes, peer_id: PeerId) -> Identify:
    """A message of the authenticated `peer_id`; RemoteProtocolError when malformed or of another key."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise RemoteProtocolError("an identify message is too large")
    try:
        fields = decode_fields(data)
        public_key = bytes_field(fields, 1)
        if public_key is not None and peer_id_of(public_key) != peer_id:
            raise RemoteProtocolError("identify names another key than the connection's")
        addresses = [_address(raw) for raw in repeated_bytes(fields, 2, count_max=ADDRESSES_MAX)]
        protocols = [
            raw.decode("utf-8")[:TEXT_CHARS_MAX] for raw in repeated_bytes(fields, 3, count_max=PROTOCOLS_MAX)
        ]
        return Identify(
            public_key=public_key,
            listen_multiaddrs=tuple(address for address in addresses if address is not None),
            protocols=tuple(protocols),
            observed_multiaddr=_address(bytes_field(fields, 4)),
            protocol_version=text_field(fields, 5)[:TEXT_CHARS_MAX],
            agent=text_field(fields, 6)[:TEXT_CHARS_MAX],
            signed_peer_record=bytes_field(fields, 8),
        )
    except (DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"an identify message is malformed: {error}") from error


def merge_push(known: Identify, pushed: Identify) -> Identify:
    """identify/push: a field that is missing is unchanged."""
    return Identify(
        public_key=pushed.public_key or known.public_key,
        listen_multiaddrs=pushed.listen_multiaddrs or known.listen_multiaddrs,
        protocols=pushed.protocols or known.protocols,
        observed_multiaddr=pushed.observed_multiaddr or known.observed_multiaddr,
        protocol_version=pushed.protocol_version or known.protocol_version,
        agent=pushed.agent or known.agent,
        signed_peer_record=pushed.signed_peer_record or known.signed_peer_record,
    )


def _envelope_message(payload_type: bytes, payload: bytes) -> bytes:
    return b"".join(length_prefixed(part) for part in (_RECORD_DOMAIN, payload_type, payload))


def seal_peer_record(identity: Identity, sequence: int, multiaddrs: Sequence[str]) -> bytes:
    """A signed peer record (RFC 0003) in its envelope (RFC 0002)."""
    record = encode_fields(
        [
            (1, peer_id_to_bytes(identity.peer_id)),
            (2, sequence),
            *[(3, encode_fields([(1, multiaddr.to_bytes(address))])) for address in multiaddrs],
        ]
    )
    signature = identity.sign(_envelope_message(_RECORD_TYPE, record))
    return encode_fields([(1, identity.public_key), (2, _RECORD_TYPE), (3, record), (5, signature)])


@dataclass(frozen=True, slots=True)
class PeerRecord:
    peer_id: PeerId
    sequence: int
    multiaddrs: tuple[str, ...]


def open_peer_record(data: bytes) -> PeerRecord:
    """Verify an envelope and read its record; RemoteProtocolError otherwise."""
    try:
        fields = decode_fields(data)
        public_key, kind = bytes_field(fields, 1), bytes_field(fields, 2)
        payload, signature = bytes_field(fields, 3), bytes_field(fields, 5)
        if public_key is None or payload is None or signature is None or kind != _RECORD_TYPE:
            raise RemoteProtocolError("not an envelope of a peer record")
        if not verify_signature(public_key, signature, _envelope_message(kind, payload)):
            raise RemoteProtocolError("a peer record's signature is wrong")
        record = decode_fields(payload)
        raw_id = bytes_field(record, 1)
        if raw_id is None or peer_id_from_bytes(raw_id) != peer_id_of(public_key):
            raise RemoteProtocolError("a peer record is about another peer than its signer")
        entries = repeated_bytes(record, 3, count_max=ADDRESSES_MAX)
        addresses = [_address(bytes_field(decode_fields(entry), 1)) for entry in entries]
        return PeerRecord(
            peer_id=peer_id_of(public_key),
            sequence=int_field(record, 2) or 0,
            multiaddrs=tuple(address for address in addresses if address is not None),
        )
    except DecodeError as error:
        raise RemoteProtocolError(f"a peer record is malformed: {error}") from error
