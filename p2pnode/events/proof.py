"""Offline proofs: one text file that shows an event is in a signed log.

Source: c2sp.org/tlog-proof
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from p2pnode.errors import BadCheckpoint, NotFound
from p2pnode.events.block import Block
from p2pnode.events.merkle import PROOF_HASHES_MAX, leaf_hash, verify_inclusion
from p2pnode.events.note import (
    Checkpoint,
    Verifier,
    open_checkpoint,
    parse_checkpoint,
    parse_hash,
    parse_note,
    parse_size,
)

HEADER: Final = "c2sp.org/tlog-proof@v1"


class Provable(Protocol):
    """What is needed of a log to prove something from it."""

    @property
    def block_count(self) -> int: ...
    def blocks(self, first: int, end: int) -> list[Block]: ...
    def inclusion_proof(self, index: int, size: int) -> list[bytes]: ...
    def checkpoint(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class TlogProof:
    """An index, the way to the root, and the signed root."""

    index: int
    hashes: Sequence[bytes]
    checkpoint: str

    @property
    def size(self) -> int:
        return parse_checkpoint(parse_note(self.checkpoint).text).size

    def __str__(self) -> str:
        hashes = "".join(f"{base64.b64encode(value).decode()}\n" for value in self.hashes)
        return f"{HEADER}\nindex {self.index}\n{hashes}\n{self.checkpoint}"


def prove(log: Provable, index: int, size: int | None = None) -> TlogProof:
    """Prove an event by the newest checkpoint, or by that of a sealed size."""
    checkpoint = log.checkpoint() if size is None else _sealed_at(log, size)
    if checkpoint is None:
        raise NotFound("no block ends at that size; p2pnode log blocks lists where they do")
    sealed = parse_checkpoint(parse_note(checkpoint).text).size
    if not 0 <= index < sealed:
        raise NotFound(
            f"event {index} is not sealed yet; {sealed} are",
            hint="it is within half a minute, or: p2pnode log seal",
        )
    return TlogProof(index, log.inclusion_proof(index, sealed), checkpoint)


def parse_proof(text: str) -> TlogProof:
    """Read a tlog-proof file; BadCheckpoint when it is not one."""
    head, separator, checkpoint = text.partition("\n\n")
    lines = head.split("\n")
    if not separator or lines[0] != HEADER:
        raise BadCheckpoint(f"a proof begins with {HEADER}")
    del lines[0]
    if lines and lines[0].startswith("extra "):
        del lines[0]
    if not lines or not lines[0].startswith("index "):
        raise BadCheckpoint("a proof has an index")
    index = parse_size(lines.pop(0).removeprefix("index "))
    if len(lines) > PROOF_HASHES_MAX:
        raise BadCheckpoint("a proof has at most 64 hashes")
    return TlogProof(index, [parse_hash(line) for line in lines], checkpoint)


def check_proof(proof: TlogProof, entry: bytes, log: Verifier) -> Checkpoint:
    """The checkpoint by which the entry is in that log; BadCheckpoint if it is not."""
    checkpoint, _ = open_checkpoint(proof.checkpoint, log)
    if not verify_inclusion(leaf_hash(entry), proof.index, checkpoint.size, proof.hashes, checkpoint.root):
        raise BadCheckpoint(f"the proof does not lead from the entry to the root of {checkpoint.origin}")
    return checkpoint


def _sealed_at(log: Provable, size: int) -> str | None:
    """The checkpoint of the block that ends at `size`, by bisection."""
    low, high = 0, log.block_count
    while low < high:
        middle = (low + high) // 2
        block = log.blocks(middle, middle + 1)[0]
        if block.header.end == size:
            return block.checkpoint
        if block.header.end < size:
            low = middle + 1
        else:
            high = middle
    return None
