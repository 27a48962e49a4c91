"""What the record and its tables say about witnesses, as a plain dict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from p2pnode.events.codec import Record
from p2pnode.events.keys import encode_binding, witness_name
from p2pnode.events.note import parse_checkpoint, parse_note, parse_signature_line
from p2pnode.events.policy import Policy, check_policy
from p2pnode.events.reader import LogReader
from p2pnode.events.types import KeysBound, PeerEquivocated


def witness_view(
    reader: LogReader,
    bindings: Iterable[KeysBound] = (),
    doubts: Sequence[Mapping[str, Any]] = (),
    policy: Policy | None = None,
) -> dict[str, Any]:
    """The newest cosignature of each witness, the newest checkpoint cosigned for each log, and every fraud.

    A running node adds the keys of its witnesses, so that a browser can check them, and what it doubts.
    """
    received: dict[str, dict[str, Any]] = {}
    keys = {witness_name(binding.peer): encode_binding(binding).hex() for binding in bindings}
    for size, text in reader.newest_cosignatures():
        line = parse_signature_line(text)
        time_s = int.from_bytes(line.signature[:8], "big")
        cosigned = {
            "witness": line.name,
            "peer": line.name.removeprefix("p2pnode/").removesuffix("/witness"),
            "size": size,
            "time_ms": time_s * 1000,
            "binding": keys.get(line.name),
        }
        received.setdefault(line.name, cosigned)
    newest = reader.checkpoint()
    own = reader.record(reader.bindings()[-1]).event
    return {
        "binding": encode_binding(own).hex() if isinstance(own, KeysBound) else None,
        "origin": "" if newest is None else parse_checkpoint(parse_note(newest).text).origin,
        "checkpoint": newest,
        "size": reader.size,
        "cosigned_by": list(received.values()),
        "cosigned": [
            {
                "origin": kept.origin,
                "peer": kept.signed.binding.peer,
                "size": kept.size,
                "root": kept.root.hex(),
                "note": kept.note,
            }
            for kept in reader.all_witnessed()
        ],
        "equivocations": [_equivocation(record) for record in reader.frauds()],
        "doubts": list(doubts),
        "policy": None if policy is None else policy_view(reader, policy),
    }


def policy_view(reader: LogReader, policy: Policy) -> dict[str, Any]:
    """The newest checkpoint that a policy accepts; when it accepts none, what the newest one lacks."""
    refused: dict[str, Any] | None = None
    for raw in reader.cosigned_checkpoints():
        note = parse_note(raw)
        verdict = check_policy(policy, note)
        size = parse_checkpoint(note.text).size
        found = {
            "ok": verdict.ok,
            "size": size,
            "cosigned": list(verdict.cosigned),
            "missing": list(verdict.missing),
        }
        if verdict.ok:
            return found
        refused = refused or found
    return refused or {"ok": False, "size": 0, "cosigned": [], "missing": []}


def _equivocation(record: Record) -> dict[str, Any]:
    event = record.event
    assert isinstance(event, PeerEquivocated), "the table of frauds names frauds"
    return {
        "peer": event.peer,
        "origin": event.origin,
        "sizes": [event.size_first, event.size_second],
        "proof": event.proof.hex(),
        "time_ms": record.wall_ms,
        "index": record.index,
    }
