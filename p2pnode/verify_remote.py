"""Check a node's record from outside, over its API: nothing it says is believed without a proof."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2pnode.errors import BadCheckpoint, CorruptRecord
from p2pnode.events.codec import decode
from p2pnode.events.keys import is_binding_valid, verifiers_of
from p2pnode.events.merkle import leaf_hash, verify_inclusion
from p2pnode.events.note import Checkpoint, open_checkpoint
from p2pnode.events.types import KeysBound

Ask = Callable[..., Any]


def verify_entry(ask: Ask, index: int | None = None) -> bool:
    """Whether the entry at `index` (None: the newest sealed one) is under the signed root; raises what is wrong.

    The chain: peer id → identity key → log key (first entry) → signature → root → inclusion → entry.
    """
    note = ask("checkpoint")["checkpoint"]
    first = ask("event", index=0)["entry"]
    try:
        binding = decode(bytes.fromhex(first)).event
    except (ValueError, TypeError) as error:
        raise BadCheckpoint("the log's first entry cannot be read") from error
    if not isinstance(binding, KeysBound) or not is_binding_valid(binding):
        raise BadCheckpoint("the log does not begin with keys that its identity signed")
    log_verifier, _ = verifiers_of(binding)
    checkpoint, _ = open_checkpoint(note, log_verifier, binding.origin)
    _check(ask, checkpoint, 0, bytes.fromhex(first))
    wanted = checkpoint.size - 1 if index is None else index
    if not 0 <= wanted < checkpoint.size:
        raise CorruptRecord(
            f"entry {wanted} is not under the checkpoint of size {checkpoint.size} yet", index=wanted
        )
    _check(ask, checkpoint, wanted, bytes.fromhex(ask("event", index=wanted)["entry"]))
    return True


def _check(ask: Ask, checkpoint: Checkpoint, index: int, entry: bytes) -> None:
    answer = ask("proof/inclusion", index=index, size=checkpoint.size)
    proof = [bytes.fromhex(part) for part in answer["proof"]]
    if not verify_inclusion(leaf_hash(entry), index, checkpoint.size, proof, checkpoint.root):
        raise CorruptRecord(f"entry {index} is not what was sealed", index=index)
