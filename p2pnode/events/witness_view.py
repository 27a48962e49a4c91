"""What the record and its tables say about witnesses, as a plain dict."""

from __future__ import annotations

from typing import Any

from p2pnode.events.codec import Record
from p2pnode.events.note import parse_checkpoint, parse_note, parse_signature_line
from p2pnode.events.reader import LogReader
from p2pnode.events.types import PeerEquivocated


def witness_view(reader: LogReader) -> dict[str, Any]:
    """The newest cosignature of each witness, the newest checkpoint cosigned for each log, and every fraud."""
    received: dict[str, dict[str, Any]] = {}
    for size, text in reader.newest_cosignatures():
        line = parse_signature_line(text)
        time_s = int.from_bytes(line.signature[:8], "big")
        received.setdefault(line.name, {"witness": line.name, "size": size, "time_ms": time_s * 1000})
    newest = reader.checkpoint()
    return {
        "origin": "" if newest is None else parse_checkpoint(parse_note(newest).text).origin,
        "checkpoint": newest,
        "size": reader.size,
        "cosigned_by": list(received.values()),
        "cosigned": [
            {"origin": kept.origin, "size": kept.size, "root": kept.root.hex(), "note": kept.note}
            for kept in reader.all_witnessed()
        ],
        "equivocations": [_equivocation(record) for record in reader.frauds()],
    }


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
