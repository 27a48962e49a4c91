"""Blocks: sealed runs of the log, chained by their headers' hashes.

A header is canonical msgpack and signed by the log key; the checkpoint note sealed with it carries the
same size and root in the form other tools read. Source: specs/08-log.md#blocks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from p2pnode.errors import NonCanonical
from p2pnode.events.fields import Count, Hash, Label
from p2pnode.events.keys import LogKeys
from p2pnode.events.merkle import root_of
from p2pnode.events.note import Checkpoint, Note, sign_note

GENESIS: Final = bytes(32)
"""What the first block has in place of its predecessor's hash."""
_SIGNATURE_CONTEXT: Final = b"p2pnode block v1\n"


class BlockHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a block says of itself."""

    number: Count
    first: Count
    end: Count
    block_root: Hash
    log_root: Hash
    previous_hash: Hash
    node: Label
    sealed_ms: Count
    v: int = 1


@dataclass(frozen=True, slots=True)
class Block:
    """A sealed block: header, its exact bytes, the log key's signature, and the checkpoint note."""

    header: BlockHeader
    header_bytes: bytes
    signature: bytes
    checkpoint: str

    @property
    def hash(self) -> bytes:
        return sha256(self.header_bytes).digest()


_encode: Final = msgspec.msgpack.Encoder(order="sorted").encode
_decode: Final = msgspec.msgpack.Decoder(BlockHeader).decode


def seal_block(
    keys: Sequence[LogKeys],
    *,
    number: int,
    first: int,
    leaves: Sequence[bytes],
    log_root: bytes,
    previous_hash: bytes,
    now_ms: int,
) -> Block:
    """Sign the run of `leaves` that begins at `first`; during a rotation old and new keys sign the note."""
    assert leaves, "a block has events"
    end = first + len(leaves)
    newest = keys[-1]
    header = BlockHeader(
        number=number,
        first=first,
        end=end,
        block_root=root_of(leaves),
        log_root=log_root,
        previous_hash=previous_hash,
        node=newest.peer,
        sealed_ms=now_ms,
    )
    raw = _encode(header)
    text = Checkpoint(newest.origin, end, log_root).text()
    note = Note(text, tuple(sign_note(text, key.origin, key.log) for key in keys))
    return Block(header, raw, newest.log.sign(_SIGNATURE_CONTEXT + raw), str(note))


def parse_header(raw: bytes) -> BlockHeader:
    """Read a header; NonCanonical unless these are its one bytes."""
    try:
        header = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise NonCanonical(f"not a block header: {error}") from error
    if _encode(header) != raw or header.v != 1 or header.end <= header.first:
        raise NonCanonical("a block header that no node would write")
    return header


def is_block_signed(block: Block, log_key: bytes) -> bool:
    """Whether the log key signed the header."""
    try:
        Ed25519PublicKey.from_public_bytes(log_key).verify(
            block.signature, _SIGNATURE_CONTEXT + block.header_bytes
        )
    except (InvalidSignature, ValueError):
        return False
    return True
