"""The lane's datagrams: sealed, numbered, lock-step (specs/16-lane.md). No sockets, no clock.

Two ranks of a tensor group exchange equal-numbered messages; receiving message k+1 of the other side says
that it has our message k. Keys come fresh with every plan over the authenticated connection, one per
direction, so a counter as nonce never repeats and nothing old can be played again.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from p2pnode.errors import RemoteProtocolError, RequestError
from p2pnode.limits import LANE_DATAGRAM_BYTES_MAX, LANE_DATAGRAM_BYTES_MIN, LANE_MESSAGE_BYTES_MAX

VERSION = 1
MARK = 0x4C
_HEADER = struct.Struct("<BBBBIHHIQ")
HEADER_BYTES = _HEADER.size
TAG_BYTES = 16
OVERHEAD_BYTES = HEADER_BYTES + TAG_BYTES
SECRET_BYTES = 32
_LABEL = b"p2pnode lane 1"
COUNTER_END = 2**64 - 1


class Type(IntEnum):
    """What a datagram is for."""

    DATA = 1
    MISSING = 2
    """Asks for pieces again: a bitmap of those that did not arrive."""
    HELLO = 3
    """Before the first message: payload 0, or 1 once the other side was heard."""
    COMPLETE = 4
    """On a lane for frames: a message that was sent again had arrived whole."""


@dataclass(frozen=True, slots=True)
class Datagram:
    """An opened datagram."""

    type: Type
    exchange: int
    index: int
    count: int
    size: int
    """Bytes of the whole message."""
    payload: bytes


def direction_key(secret: bytes, sender: int, receiver: int) -> tuple[bytes, bytes]:
    """Key and nonce salt of one direction: HKDF-SHA256 (RFC 5869) of the pair's secret."""
    if len(secret) != SECRET_BYTES:
        raise RequestError(f"a lane secret has {SECRET_BYTES} bytes")
    extracted = hmac.digest(bytes(32), secret, "sha256")
    info = _LABEL + struct.pack("<HH", sender, receiver)
    first = hmac.digest(extracted, info + b"\x01", "sha256")
    second = hmac.digest(extracted, first + info + b"\x02", "sha256")
    return first, second[:4]


def piece_count(size: int, datagram_bytes: int) -> int:
    """Datagrams of a message; at least one, so that an empty message is a message too."""
    return max(1, -(-size // (datagram_bytes - OVERHEAD_BYTES)))


def piece_bounds(size: int, count: int, index: int) -> tuple[int, int]:
    """All pieces are of one size but the last, so that the kernel can cut a batch into datagrams."""
    step = -(-size // count)
    return min(size, step * index), min(size, step * (index + 1))


def check_datagram_bytes(value: int) -> int:
    if not LANE_DATAGRAM_BYTES_MIN <= value <= LANE_DATAGRAM_BYTES_MAX:
        raise RequestError(
            f"lane datagrams of {value} bytes, must be from {LANE_DATAGRAM_BYTES_MIN} to {LANE_DATAGRAM_BYTES_MAX}"
        )
    return value


class Sealer:
    """Makes the datagrams of one direction."""

    def __init__(self, secret: bytes, sender: int, receiver: int) -> None:
        key, self._salt = direction_key(secret, sender, receiver)
        self._aead = AESGCM(key)
        self._counter = 0

    def seal(
        self, kind: Type, exchange: int, index: int, count: int, size: int, payload: bytes | memoryview
    ) -> bytes:
        """One datagram; every call uses a new counter, so a piece sent again is a new datagram."""
        self._counter += 1
        assert self._counter < COUNTER_END
        header = _HEADER.pack(MARK, VERSION, kind, 0, exchange, index, count, size, self._counter)
        return header + self._aead.encrypt(self._salt + header[-8:], payload, header)


class Opener:
    """Opens the datagrams of one direction; anything wrong with one raises RemoteProtocolError."""

    def __init__(self, secret: bytes, sender: int, receiver: int) -> None:
        key, self._salt = direction_key(secret, sender, receiver)
        self._aead = AESGCM(key)

    def open(self, data: bytes | memoryview) -> Datagram:
        """Bounds first, then the seal, then the payload against the header."""
        if not OVERHEAD_BYTES <= len(data) <= LANE_DATAGRAM_BYTES_MAX:
            raise RemoteProtocolError(f"a lane datagram of {len(data)} bytes")
        mark, version, kind, zero, exchange, index, count, size, _ = _HEADER.unpack_from(data)
        if mark != MARK or version != VERSION or zero or kind not in Type._value2member_map_:
            raise RemoteProtocolError("not a lane datagram of this version")
        if index >= count or size > LANE_MESSAGE_BYTES_MAX:
            raise RemoteProtocolError(f"piece {index} of {count} of {size} bytes")
        header = bytes(data[:HEADER_BYTES])
        try:
            payload = self._aead.decrypt(self._salt + header[-8:], data[HEADER_BYTES:], header)
        except InvalidTag:
            raise RemoteProtocolError("a lane datagram that was not sealed with this key") from None
        if kind == Type.DATA:
            first, end = piece_bounds(size, count, index)
            if len(payload) != end - first:
                raise RemoteProtocolError(f"a piece of {len(payload)} bytes, not {end - first}")
        return Datagram(Type(kind), exchange, index, count, size, payload)


def missing_bitmap(have: Sequence[bool]) -> bytes:
    """Bit i set: piece i did not arrive."""
    out = bytearray(-(-len(have) // 8))
    for index, arrived in enumerate(have):
        if not arrived:
            out[index // 8] |= 1 << index % 8
    return bytes(out)


def missing_pieces(bitmap: bytes, count: int) -> Iterator[int]:
    """Indexes named by a bitmap, never past `count`."""
    for index in range(min(count, len(bitmap) * 8)):
        if bitmap[index // 8] >> index % 8 & 1:
            yield index


class Incoming:
    """The pieces of one message on their way in, written where they belong."""

    def __init__(self, size: int, count: int) -> None:
        self.size = size
        self.count = count
        self.data = bytearray(size)
        self.have = [False] * count
        self.left = count

    def add(self, piece: Datagram) -> bool:
        """Whether the piece was new; one that disagrees about the message raises RemoteProtocolError."""
        if piece.size != self.size or piece.count != self.count:
            raise RemoteProtocolError(
                f"ranks out of step: {piece.size} bytes in {piece.count} pieces where {self.size} are due"
            )
        if self.have[piece.index]:
            return False
        first, end = piece_bounds(self.size, self.count, piece.index)
        self.data[first:end] = piece.payload
        self.have[piece.index] = True
        self.left -= 1
        return True
