"""What the record says about witnesses, as a plain dict."""

from __future__ import annotations

from typing import Any

from p2pnode.events.note import parse_checkpoint, parse_note
from p2pnode.events.reader import LogReader
from p2pnode.events.types import CheckpointWitnessed, PeerEquivocated, WitnessReceived
from p2pnode.limits import LOG_READ_EVENTS_MAX


def witness_view(reader: LogReader) -> dict[str, Any]:
    """The newest cosignature of each witness, the newest checkpoint cosigned for each log, and every fraud."""
    received: dict[str, dict[str, Any]] = {}
    given: dict[str, dict[str, Any]] = {}
    caught: list[dict[str, Any]] = []
    for first in range(0, reader.size, LOG_READ_EVENTS_MAX):
        for record in reader.read(first, first + LOG_READ_EVENTS_MAX):
            event, at = record.event, {"time_ms": record.wall_ms, "index": record.index}
            if isinstance(event, WitnessReceived):
                received[event.peer] = {
                    "peer": event.peer,
                    "size": event.size,
                    "root": event.root.hex(),
                    **at,
                }
            elif isinstance(event, CheckpointWitnessed):
                given[event.origin] = {
                    "origin": event.origin,
                    "peer": event.peer,
                    "size": event.size,
                    "root": event.root.hex(),
                    **at,
                }
            elif isinstance(event, PeerEquivocated):
                caught.append({"peer": event.peer, "origin": event.origin, "proof": event.proof.hex(), **at})
    newest = reader.checkpoint()
    return {
        "origin": "" if newest is None else parse_checkpoint(parse_note(newest).text).origin,
        "checkpoint": newest,
        "size": reader.size,
        "cosigned_by": list(received.values()),
        "cosigned": list(given.values()),
        "equivocations": caught,
    }
