"""The asking side of witnessing: get one peer's cosignature for the newest checkpoint.

The exchange itself is a function from request to (status, body), so that any transport can carry it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from p2pnode.errors import BadCheckpoint, RollbackRefused
from p2pnode.events.keys import verifiers_of
from p2pnode.events.log import EventLog
from p2pnode.events.note import parse_checkpoint, parse_note
from p2pnode.events.types import KeysBound
from p2pnode.events.witness import CONFLICT, OK, AddCheckpoint, read_conflict, read_cosignature

Ask = Callable[[str], Awaitable[tuple[int, str]]]
"""Carries an add-checkpoint request to a witness and brings back status and body."""


async def gather_cosignature(log: EventLog[Any], witness: KeysBound, ask: Ask, known_size: int = 0) -> int:
    """Have `witness` cosign the newest checkpoint; answers the size it knows now, for the next time.

    Raises: RollbackRefused when the witness shows that this key has signed a longer log of this name: then
    nothing may be signed under it any more; BadCheckpoint when the witness refuses or its answer is wrong.
    """
    raw = log.checkpoint()
    assert raw is not None, "a log is born with a checkpoint"
    note = parse_note(raw)
    own = str(note.with_only(log.keys.log_verifier))
    checkpoint = parse_checkpoint(note.text)
    if known_size > checkpoint.size:
        known_size = 0  # the log was put back since: the witness is to show what it has
    for _ in range(2):
        proof = log.consistency_proof(known_size, checkpoint.size) if known_size else []
        status, body = await ask(str(AddCheckpoint(known_size, proof, own)))
        if status == OK:
            line = read_cosignature(body, own, verifiers_of(witness)[1])
            await log.add_cosignature(checkpoint.size, line, peer=witness.peer)
            return checkpoint.size
        if status != CONFLICT:
            raise BadCheckpoint(f"{witness.peer} did not cosign ({status}): {body.strip()[:200]}")
        known_size = read_conflict(body, log.keys.log_verifier)
        # What was never sealed here was never signed here: events that wait for their seal do not count.
        if known_size > checkpoint.size:
            if "\n\n" not in body:
                raise BadCheckpoint(f"{witness.peer} claims {known_size} events and does not show it")
            raise RollbackRefused(
                f"{witness.peer} has cosigned {known_size} events of this log, which has sealed {checkpoint.size}",
                hint="this happens after restoring a backup; the node goes on under a new log name",
            )
    raise BadCheckpoint(f"{witness.peer} changes its mind about what it has cosigned")
