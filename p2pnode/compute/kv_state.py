"""Key-value states between engines: llama.cpp's blob behind a header of our own.

llama.cpp does not check whose state it is given, so a fingerprint of model, layers and cache types goes
in front, with the size and a checksum, and nothing unchecked reaches it.
"""

from __future__ import annotations

import struct
import zlib

from p2pnode.errors import RemoteProtocolError, ShapeMismatch

MAGIC = b"P2PK"
VERSION = 1
_HEAD = struct.Struct("<4sBBHIIQ")
FINGERPRINT_BYTES_MAX = 1024


def pack(fingerprint: str, positions: int, blob: bytes | bytearray) -> bytearray:
    """Header, fingerprint and blob in one buffer."""
    name = fingerprint.encode()
    assert len(name) <= FINGERPRINT_BYTES_MAX
    out = bytearray(_HEAD.pack(MAGIC, VERSION, 0, len(name), positions, zlib.crc32(blob), len(blob)))
    out += name
    out += blob
    return out


def unpack(fingerprint: str, data: bytes | bytearray | memoryview) -> tuple[int, memoryview]:
    """Positions and blob of a state that belongs to `fingerprint`."""
    view = memoryview(data)
    if len(view) < _HEAD.size:
        raise RemoteProtocolError("a key-value state shorter than its header")
    magic, version, _, name_bytes, positions, crc, blob_bytes = _HEAD.unpack_from(view)
    if magic != MAGIC or version != VERSION:
        raise RemoteProtocolError("not a key-value state of a version we know")
    if name_bytes > FINGERPRINT_BYTES_MAX or len(view) != _HEAD.size + name_bytes + blob_bytes:
        raise RemoteProtocolError("a key-value state whose sizes do not add up")
    name = bytes(view[_HEAD.size : _HEAD.size + name_bytes])
    if name != fingerprint.encode():
        raise ShapeMismatch(
            "this key-value state belongs to another model, layer range or cache type",
            hint="prefill here instead",
        )
    blob = view[_HEAD.size + name_bytes :]
    if zlib.crc32(blob) != crc:
        raise RemoteProtocolError("the checksum of a key-value state does not match")
    return positions, blob
