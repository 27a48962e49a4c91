"""The rollback guard: a log shorter than what was published must not be signed, for that would be a fork.

Restoring a backup is the commonest way to fork a log. Source: specs/08-log.md#rollback
"""

from __future__ import annotations

from typing import Any

from p2pnode.errors import BadCheckpoint, RollbackRefused
from p2pnode.events.committer import Committer
from p2pnode.events.merkle import root_at
from p2pnode.events.note import parse_checkpoint, parse_note
from p2pnode.events.opening import StoredTree

_HINT = (
    "this happens after restoring a backup: put the newer log back, or run p2pnode log accept-rollback, "
    "which goes on under a new log name that peers can tell from the old one"
)


def check_published(published: str | None, committer: Committer[Any]) -> None:
    """Compare own log with the last checkpoint published from this folder; RollbackRefused if it is not in it."""
    if published is None:
        return
    try:
        checkpoint = parse_checkpoint(parse_note(published).text)
    except BadCheckpoint as error:
        raise BadCheckpoint(
            f"the published checkpoint is damaged: {error.message}",
            hint="move the file log/checkpoint away if you know why; peers still remember what was signed",
        ) from error
    if checkpoint.origin != committer.assembler.keys.origin:
        if checkpoint.origin == committer.previous_origin:
            return
        raise RollbackRefused(f"the published checkpoint is of {checkpoint.origin}", hint=_HINT)
    size = committer.assembler.size
    if checkpoint.size > size:
        raise RollbackRefused(f"the log has {size} events, but {checkpoint.size} were published", hint=_HINT)
    root = root_at(StoredTree(committer.tables, committer.assembler.edge), checkpoint.size)
    if root != checkpoint.root:
        raise RollbackRefused(
            f"the first {checkpoint.size} events are not those that were published", hint=_HINT
        )
