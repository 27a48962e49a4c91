"""Two histories of one log: documents that prove to anybody, without any node, that its owner signed both.

Two checkpoints of different sizes say nothing against each other by themselves. What does is in the trees under
them: the larger one has another beginning, or one place holds two events. Source: specs/08-log.md#two-histories
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from p2pnode.errors import BadCheckpoint
from p2pnode.events import receipt as receipts
from p2pnode.events.fields import Count, Hash
from p2pnode.events.keys import decode_binding, encode_binding, verifiers_of
from p2pnode.events.merkle import (
    HASH_BYTES,
    TileReader,
    consistency_proof,
    consistency_roots,
    first_difference,
    inclusion_proof,
    root_at,
    verify_consistency,
    verify_inclusion,
)
from p2pnode.events.note import Checkpoint, is_signed, parse_checkpoint, parse_note
from p2pnode.events.types import KeysBound, PeerEquivocated
from p2pnode.limits import WITNESS_PROOF_HASHES_MAX

FILE_FORMAT: Final = "p2pnode-fraud-1"
FILE_CHARACTERS_MAX: Final = 65_536
"""A document of 16 KiB in hexadecimal, with room for the words around it."""

_Note = Annotated[str, Meta(max_length=4096)]
_Binding = Annotated[bytes, Meta(max_length=2048)]
_Hashes = Annotated[tuple[bytes, ...], Meta(max_length=WITNESS_PROOF_HASHES_MAX)]


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint as its log signed it, and the identity's word for the key."""

    note: str
    binding: KeysBound

    @property
    def checkpoint(self) -> Checkpoint:
        return parse_checkpoint(parse_note(self.note).text)

    def bare(self) -> str:
        """Without the lines of witnesses: the log's own signature is what convicts it."""
        return str(parse_note(self.note).with_only(verifiers_of(self.binding)[0]))


class _Prefix(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="p2pnode log fraud v1"
):
    """The second tree begins otherwise than the first one; or both have one size, and two roots."""

    binding_first: _Binding
    first: _Note
    binding_second: _Binding
    second: _Note
    prefix_root: Annotated[bytes, Meta(max_length=HASH_BYTES)]
    """Root of the second tree at the first one's size; empty when both have one size."""
    proof: _Hashes


class _Leaves(
    msgspec.Struct,
    frozen=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag="p2pnode log fraud leaves v1",
):
    """Each tree has another event in one place."""

    binding_first: _Binding
    first: _Note
    binding_second: _Binding
    second: _Note
    index: Count
    leaf_first: Hash
    proof_first: _Hashes
    leaf_second: Hash
    proof_second: _Hashes


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Prefix | _Leaves).decode


@dataclass(frozen=True, slots=True)
class Fraud:
    """A checked proof that one log has two histories."""

    peer: str
    origin: str
    size_first: int
    size_second: int
    index: int | None
    """An event that is not the same in both, when the proof names one."""
    first: str
    second: str
    """The two notes."""


def fraud_proof(
    first: Signed, second: Signed, prefix_root: bytes = b"", proof: Sequence[bytes] = ()
) -> bytes:
    """Two checkpoints (smaller size first) that cannot both be true.

    For different sizes `proof` leads from `prefix_root`, which is not the first one's root, to the second's.
    """
    return _checked(_Prefix(*_signed_fields(first, second), prefix_root, tuple(proof)))


def fraud_of_leaves(
    first: Signed,
    second: Signed,
    index: int,
    one: tuple[bytes, Sequence[bytes]],
    other: tuple[bytes, Sequence[bytes]],
) -> bytes:
    """Two leaf hashes in one place, each with its way to a root that was signed."""
    return _checked(
        _Leaves(*_signed_fields(first, second), index, one[0], tuple(one[1]), other[0], tuple(other[1]))
    )


def fraud_from_consistency(first: Signed, second: Signed, proof: Sequence[bytes]) -> bytes | None:
    """What a log's own consistency proof shows when it leads to its new root, but not from the old one.

    None when it leads nowhere; and for an old tree of 2**k leaves, whose root such a proof leaves out.
    """
    old, new = first.checkpoint, second.checkpoint
    roots = consistency_roots(old.size, new.size, proof, old.root)
    if roots is None or roots[1] != new.root or roots[0] == old.root:
        return None
    return fraud_proof(first, second, roots[0], proof)


def fraud_from_tree(first: Signed, second: Signed, tree: TileReader) -> bytes:
    """Prove a fork by the second log's own tiles, when its root at the first one's size is another."""
    sizes = (first.checkpoint.size, second.checkpoint.size)
    if sizes[0] == sizes[1]:
        return fraud_proof(first, second)
    return fraud_proof(first, second, root_at(tree, sizes[0]), consistency_proof(tree, *sizes))


def fraud_from_trees(first: Signed, second: Signed, tree_first: TileReader, tree_second: TileReader) -> bytes:
    """Prove a fork by the tiles of both histories, and name the event where they part."""
    sizes = (first.checkpoint.size, second.checkpoint.size)
    index = first_difference(tree_first, tree_second, sizes[0])
    if index is None:
        raise BadCheckpoint(f"the first {sizes[0]} events are the same in both")
    sides = (
        (
            tree.tile(0, index >> 8)[(index & 255) * HASH_BYTES :][:HASH_BYTES],
            inclusion_proof(tree, index, size),
        )
        for tree, size in zip((tree_first, tree_second), sizes, strict=True)
    )
    return fraud_of_leaves(first, second, index, *sides)


def check_fraud(document: bytes) -> Fraud:
    """Who cheated; BadCheckpoint when the document proves nothing."""
    try:
        fraud = _decode(document)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadCheckpoint(f"not a fraud proof: {error}") from error
    if _encode(fraud) != document:
        raise BadCheckpoint("the fraud proof is not in its one encoding")
    peer, first = _signed_by(fraud.first, fraud.binding_first)
    other_peer, second = _signed_by(fraud.second, fraud.binding_second)
    if (peer, first.origin) != (other_peer, second.origin):
        raise BadCheckpoint("the two checkpoints are of different logs")
    if not _contradict(fraud, first, second):
        raise BadCheckpoint("the two checkpoints do not contradict each other")
    index = fraud.index if isinstance(fraud, _Leaves) else None
    return Fraud(peer, first.origin, first.size, second.size, index, fraud.first, fraud.second)


def equivocation(document: bytes) -> PeerEquivocated:
    """The fact to record of a proof, of a log or of receipts; BadCheckpoint or BadReceipt when it proves nothing."""
    if receipts.is_fraud(document):
        return receipts.equivocation(document)
    fraud = check_fraud(document)
    return PeerEquivocated(
        peer=fraud.peer,
        origin=fraud.origin,
        size_first=fraud.size_first,
        size_second=fraud.size_second,
        proof=document,
    )


def is_proof(document: bytes) -> bool:
    """Whether a document is of a form that convinces others; the first receipt proofs named no identity."""
    return receipts.is_fraud(document) or b"p2pnode log fraud" in document[:64]


def fraud_file(document: bytes) -> str:
    """A proof as a file to pass on."""
    return json.dumps({"format": FILE_FORMAT, "document": document.hex()}, indent=2) + "\n"


def parse_fraud_file(text: str) -> bytes:
    """The document in such a file, not yet checked."""
    try:
        made: Any = json.loads(text) if len(text) <= FILE_CHARACTERS_MAX else None
        if not isinstance(made, dict) or made.get("format") != FILE_FORMAT:
            raise BadCheckpoint(f"the file is not of the form {FILE_FORMAT}")
        return bytes.fromhex(made["document"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadCheckpoint(f"the fraud proof is damaged: {error}") from error


def _contradict(fraud: _Prefix | _Leaves, first: Checkpoint, second: Checkpoint) -> bool:
    if isinstance(fraud, _Leaves):
        index = fraud.index
        return (
            fraud.leaf_first != fraud.leaf_second
            and first.size <= second.size
            and verify_inclusion(fraud.leaf_first, index, first.size, fraud.proof_first, first.root)
            and verify_inclusion(fraud.leaf_second, index, second.size, fraud.proof_second, second.root)
        )
    if first.size == second.size:
        return first.root != second.root and not fraud.proof and not fraud.prefix_root
    return fraud.prefix_root != first.root and verify_consistency(
        first.size, second.size, fraud.proof, fraud.prefix_root, second.root
    )


def _checked(fraud: _Prefix | _Leaves) -> bytes:
    document = _encode(fraud)
    check_fraud(document)
    return document


def _signed_fields(first: Signed, second: Signed) -> tuple[bytes, str, bytes, str]:
    return encode_binding(first.binding), first.bare(), encode_binding(second.binding), second.bare()


def _signed_by(raw: str, binding_raw: bytes) -> tuple[str, Checkpoint]:
    binding = decode_binding(binding_raw)
    note = parse_note(raw)
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin != binding.origin or not is_signed(note, verifiers_of(binding)[0]):
        raise BadCheckpoint(f"a checkpoint is not signed by the key of {binding.origin}")
    return binding.peer, checkpoint
