"""Content ids: CIDv1, raw codec, BLAKE3-256, base32 text (`bafkr4i...`).

Source: multiformats CID and multihash specifications; codec 0x55 is `raw`, hash 0x1e is `blake3`.
"""

from __future__ import annotations

import base64
import binascii

from blake3 import blake3

from p2pnode.errors import BadModelFile
from p2pnode.units import ContentId

DIGEST_BYTES = 32
_PREFIX = bytes((0x01, 0x55, 0x1E, DIGEST_BYTES))
_TEXT_LENGTH = 1 + 58
"""Multibase letter and the unpadded base32 of 36 bytes."""

Buffer = bytes | bytearray | memoryview


def digest(*parts: Buffer) -> bytes:
    """BLAKE3-256 of the parts, one after the other."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return bytes(hasher.digest())


def from_digest(value: bytes) -> ContentId:
    """Text form of a digest."""
    assert len(value) == DIGEST_BYTES, "a BLAKE3-256 digest has 32 bytes"
    text = base64.b32encode(_PREFIX + value).decode("ascii").rstrip("=").lower()
    return ContentId("b" + text)


def of(*parts: Buffer) -> ContentId:
    """Content id of bytes."""
    return from_digest(digest(*parts))


def to_digest(text: str) -> bytes:
    """Digest inside a content id; BadModelFile when it is not exactly the canonical form we write."""
    if len(text) != _TEXT_LENGTH or text[0] != "b" or text != text.lower():
        raise BadModelFile(
            f"not a content id of this project: {text[:80]!r}", hint="expected CIDv1 base32, bafkr4i..."
        )
    try:
        raw = base64.b32decode(text[1:].upper() + "=" * (-(_TEXT_LENGTH - 1) % 8))
    except (binascii.Error, ValueError) as error:
        raise BadModelFile(f"not base32: {text!r}", hint="expected CIDv1 base32, bafkr4i...") from error
    if raw[:4] != _PREFIX or from_digest(raw[4:]) != text:
        raise BadModelFile(
            f"not a raw BLAKE3-256 content id: {text!r}", hint="expected CIDv1 base32, bafkr4i..."
        )
    return raw[4:]
