"""Tickets: one line of text that names a mesh, a member to ask, its addresses and a secret.

Pure. Source: specs/02-invites.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import re
from dataclasses import dataclass

import msgpack

from p2pnode import limits
from p2pnode.errors import InviteExpired, TicketInvalid
from p2pnode.units import UnixMs

PREFIX = "p2p1-"
ROLES = ("worker", "client", "guest")
CHECKSUM_BYTES = 4
_QUIC = re.compile(r"^/(ip4|ip6)/([^/]+)/udp/(\d{1,5})/quic-v1$")


@dataclass(frozen=True, slots=True)
class Ticket:
    mesh_key: bytes
    """32-byte Ed25519 key of the mesh's founder: the mesh id."""
    inviter_key: bytes
    """32-byte Ed25519 key of the member to ask; the joiner accepts no other identity there."""
    secret: bytes
    """16 random bytes; whoever shows them in time is admitted."""
    expires_ms: UnixMs
    role: str
    mesh_name: str
    addresses: tuple[str, ...]


def secret_hash(secret: bytes) -> bytes:
    """What the record keeps of an invite's secret."""
    return hashlib.sha256(b"p2pnode-invite-v1:" + secret).digest()


def encode_ticket(ticket: Ticket) -> str:
    """Text form: prefix, base32 of MessagePack body and checksum."""
    body = msgpack.packb(
        [
            ticket.mesh_key,
            b"" if ticket.inviter_key == ticket.mesh_key else ticket.inviter_key,
            ticket.secret,
            ticket.expires_ms // 1000,
            ROLES.index(ticket.role),
            ticket.mesh_name,
            [_pack_address(address) for address in ticket.addresses[: limits.TICKET_ADDRESSES_MAX]],
        ]
    )
    text = base64.b32encode(body + _checksum(body)).decode().rstrip("=")
    return PREFIX + text


def decode_ticket(text: str, *, now_ms: UnixMs | None = None) -> Ticket:
    """Parse and check a ticket; with `now_ms` an expired one is refused.

    Raises: TicketInvalid, InviteExpired
    """
    compact = "".join(text.split()).removeprefix(PREFIX.upper()).removeprefix(PREFIX).replace("-", "").upper()
    if len(compact) > limits.TICKET_CHARACTERS_MAX:
        raise TicketInvalid("this ticket is too long to be one")
    if not text.strip().lower().startswith(PREFIX):
        raise TicketInvalid(f"a ticket starts with {PREFIX}")
    try:
        raw = base64.b32decode(compact + "=" * (-len(compact) % 8))
    except (binascii.Error, ValueError):
        raise TicketInvalid("the ticket has characters that do not belong there") from None
    body, checksum = raw[:-CHECKSUM_BYTES], raw[-CHECKSUM_BYTES:]
    if len(raw) <= CHECKSUM_BYTES or _checksum(body) != checksum:
        raise TicketInvalid("the ticket's checksum does not match: a part is missing or mistyped")
    ticket = _from_body(body)
    if now_ms is not None and now_ms > ticket.expires_ms:
        late_s = max(1, (now_ms - ticket.expires_ms) // 1000)
        raise InviteExpired(
            f"this ticket expired {f'{late_s} s' if late_s < 120 else f'{late_s // 60} min'} ago"
        )
    return ticket


def _from_body(body: bytes) -> Ticket:
    try:
        fields = msgpack.unpackb(body, strict_map_key=True)
        mesh_key, inviter_key, secret, expires_s, role, name, addresses = fields
        ticket = Ticket(
            mesh_key=_exactly(mesh_key, 32),
            inviter_key=_exactly(inviter_key or mesh_key, 32),
            secret=_exactly(secret, 16),
            expires_ms=UnixMs(_natural(expires_s) * 1000),
            role=ROLES[_natural(role)],
            mesh_name=_short_text(name),
            addresses=tuple(_unpack_address(address) for address in _bounded_list(addresses)),
        )
    except (ValueError, TypeError, IndexError, msgpack.UnpackException):
        raise TicketInvalid("the ticket's content is not one this version understands") from None
    return ticket


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + body).digest()[:CHECKSUM_BYTES]


def _pack_address(address: str) -> bytes | str:
    match = _QUIC.match(address)
    if match is None:
        return address
    return ipaddress.ip_address(match[2]).packed + int(match[3]).to_bytes(2, "big")


def _unpack_address(packed: bytes | str) -> str:
    if isinstance(packed, str):
        if not packed.startswith("/") or len(packed) > limits.MULTIADDR_CHARACTERS_MAX:
            raise ValueError(packed)
        return packed
    if not isinstance(packed, bytes) or len(packed) not in (6, 18):
        raise ValueError(packed)
    ip = ipaddress.ip_address(packed[:-2])
    return f"/ip{ip.version}/{ip}/udp/{int.from_bytes(packed[-2:], 'big')}/quic-v1"


def _exactly(value: object, size: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != size:
        raise ValueError(size)
    return value


def _natural(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**40:
        raise ValueError(value)
    return value


def _short_text(value: object) -> str:
    if not isinstance(value, str) or len(value) > limits.NAME_CHARACTERS_MAX:
        raise ValueError(value)
    return value


def _bounded_list(value: object) -> list[bytes | str]:
    if not isinstance(value, list) or len(value) > limits.TICKET_ADDRESSES_MAX:
        raise ValueError(value)
    return value
