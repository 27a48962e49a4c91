"""Records, blocks and reports as plain JSON-able dicts, the same on every face. Bytes are hexadecimal."""

from __future__ import annotations

import dataclasses
from typing import Any

from p2pnode.events.block import Block
from p2pnode.events.codec import Record
from p2pnode.events.types import Event, UnknownEvent
from p2pnode.events.verify import Report

JsonObject = dict[str, Any]


def event_view(event: Event) -> JsonObject:
    """An event's fields."""
    return {field.name: plain(getattr(event, field.name)) for field in dataclasses.fields(event)}


def record_view(record: Record) -> JsonObject:
    """An event with its envelope."""
    event = record.event
    raw = record.id.hex()
    return {
        "index": record.index,
        "id": f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}",
        "type": event.type_name if isinstance(event, UnknownEvent) else type(event).__name__,
        "actor": record.actor,
        "time_ms": record.wall_ms,
        "lamport": record.lamport,
        "correlation": record.correlation,
        "causation": plain(record.causation),
        "idempotency_key": record.idempotency_key,
        "data": event_view(event),
    }


def block_view(block: Block) -> JsonObject:
    """A block's header, its hash and what signs it."""
    header = block.header
    return {
        "number": header.number,
        "first": header.first,
        "end": header.end,
        "events": header.end - header.first,
        "block_root": header.block_root.hex(),
        "log_root": header.log_root.hex(),
        "previous_hash": header.previous_hash.hex(),
        "hash": block.hash.hex(),
        "node": header.node,
        "sealed_ms": header.sealed_ms,
        "header": block.header_bytes.hex(),
        "signature": block.signature.hex(),
        "checkpoint": block.checkpoint,
    }


def report_view(report: Report) -> JsonObject:
    """What `verify` found."""
    first = report.first_bad
    return {
        "ok": report.ok,
        "size": report.size,
        "blocks": report.blocks,
        "sealed": report.sealed,
        "root": report.root.hex(),
        "peer": report.peer,
        "origin": report.origin,
        "unknown_events": report.unknown_events,
        "first_bad_index": None if first is None else first.index,
        "first_bad": None if first is None else first.what,
        "findings": [{"index": finding.index, "what": finding.what} for finding in report.findings],
        "warnings": list(report.warnings),
    }


def plain(value: Any) -> Any:
    """Bytes as hexadecimal, tuples as lists."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value
