"""Read-only questions to the record, by name, for the HTTP API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from p2pnode import limits
from p2pnode.errors import NotFound, RequestError, StateRebuilding
from p2pnode.events.codec import Record
from p2pnode.node.ledger import Ledger
from p2pnode.projections import state_hash
from p2pnode.projections.billing_view import earnings, statement

Query = Callable[[Mapping[str, Any]], Any]


class LogQueries:
    def __init__(self, ledger: Ledger, witnesses: Callable[[], Any]) -> None:
        self._ledger = ledger
        self._queries: dict[str, Query] = {
            "size": lambda _: {"size": self._log.size, "blocks": self._log.block_count},
            "checkpoint": self._checkpoint,
            "entries": self._entries,
            "find": self._find,
            "event": self._event,
            "blocks": self._blocks,
            "tile": self._tile,
            "bundle": self._bundle,
            "witnesses": lambda _: witnesses(),
            "bindings": lambda _: {"indexes": self._log.reader.bindings()},
            "proof/inclusion": self._inclusion,
            "proof/consistency": self._consistency,
            "replay": self._replay,
            "rebuild": lambda _: {"size": self._log.size, "rebuilding": self._ledger.rebuilding()},
            "audit": lambda _: self._ledger.view("audit"),
            "usage": lambda _: self._ledger.view("usage"),
            "invites": lambda _: self._ledger.view("invites"),
            "statement": self._statement,
            "earnings": self._earnings,
        }

    @property
    def _log(self) -> Any:
        return self._ledger.log

    def ask(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Raises NotFound for an unknown question, RequestError for arguments that cannot be."""
        query = self._queries.get(name.strip("/"))
        if query is None:
            raise NotFound(f"the record has no {name!r}", hint=f"known: {', '.join(sorted(self._queries))}")
        return query(arguments)

    def record_view(self, record: Record) -> dict[str, Any]:
        """One event as JSON: bytes in hex."""
        data = msgspec.to_builtins(record.event, builtin_types=(bytes,))
        return {
            "kind": "event",
            "index": int(record.index),
            "type": type(record.event).__name__,
            "time_ms": int(record.wall_ms),
            "actor": record.actor,
            "request_id": record.correlation,
            "data": _hexed(data),
        }

    def _checkpoint(self, _: Mapping[str, Any]) -> Any:
        note = self._log.checkpoint()
        if note is None:
            raise NotFound(
                "nothing was sealed yet", hint="it happens within 30 seconds, or with: p2pnode log blocks"
            )
        return {"checkpoint": note}

    def _replay(self, _: Mapping[str, Any]) -> Any:
        progress = self._ledger.rebuilding()
        if progress is not None:
            raise StateRebuilding(
                f"{progress['folded']} of {progress['size']} events are folded by this version of p2pnode"
            )
        return {"size": self._log.size, "state_hash": state_hash(self._ledger.state).hex()}

    def _entries(self, a: Mapping[str, Any]) -> Any:
        size = int(self._log.size)
        limit = _number(a, "limit", 100, 1, limits.LOG_READ_EVENTS_MAX)
        first = _number(a, "first", max(0, size - limit), 0, size)
        records = self._log.read(first, min(size, first + limit))
        return {"size": size, "first": first, "entries": [self.record_view(r) for r in records]}

    def _find(self, a: Mapping[str, Any]) -> Any:
        """The newest entries below `before` of a `type` and with `words`; the `before` of the answer goes on."""
        size = int(self._log.size)
        before = _number(a, "before", size, 0, size)
        limit = _number(a, "limit", 50, 1, limits.LOG_READ_EVENTS_MAX)
        wanted, words = str(a.get("type", "")), str(a.get("words", ""))
        found: list[dict[str, Any]] = []
        floor = max(0, before - limits.LOG_FIND_EVENTS_MAX)
        while before > floor and len(found) < limit:
            first = max(floor, before - limits.LOG_READ_EVENTS_MAX)
            for record in reversed(self._log.read(first, before)):
                before = int(record.index)
                if wanted and type(record.event).__name__ != wanted:
                    continue
                view = self.record_view(record)
                if not words or words in msgspec.json.encode(view).decode():
                    found.append(view)
                    if len(found) == limit:
                        break
        return {"size": size, "before": before, "entries": found}

    def _event(self, a: Mapping[str, Any]) -> Any:
        index = _number(a, "index", None, 0, int(self._log.size) - 1)
        record, raw = self._log.read(index, index + 1)[0], self._log.entries(index, index + 1)[0]
        return {**self.record_view(record), "entry": raw.hex()}

    def _blocks(self, a: Mapping[str, Any]) -> Any:
        count = int(self._log.block_count)
        limit = _number(a, "limit", 50, 1, 1000)
        first = _number(a, "first", max(0, count - limit), 0, count)
        blocks = self._log.blocks(first, min(count, first + limit))
        return {"count": count, "blocks": [_hexed(_plain(block)) for block in blocks]}

    def _tile(self, a: Mapping[str, Any]) -> Any:
        level, index = _number(a, "level", None, 0, 8), _number(a, "index", None, 0, 2**40)
        return {"level": level, "index": index, "hashes": self._log.tile(level, index).hex()}

    def _bundle(self, a: Mapping[str, Any]) -> Any:
        first = _number(a, "index", None, 0, 2**40) * 256
        end = min(int(self._log.size), first + _number(a, "width", 256, 1, 256))
        return {"entries": [raw.hex() for raw in self._log.entries(first, end)] if first < end else []}

    def _inclusion(self, a: Mapping[str, Any]) -> Any:
        size = _number(a, "size", int(self._log.size), 1, int(self._log.size))
        index = _number(a, "index", None, 0, size - 1)
        proof = self._log.inclusion_proof(index, size)
        return {
            "index": index,
            "size": size,
            "root": self._log.root(size).hex(),
            "entry": self._log.entries(index, index + 1)[0].hex(),
            "proof": [h.hex() for h in proof],
        }

    def _consistency(self, a: Mapping[str, Any]) -> Any:
        second = _number(a, "second", int(self._log.size), 1, int(self._log.size))
        first = _number(a, "first", None, 1, second)
        proof = self._log.consistency_proof(first, second)
        roots = {"first_root": self._log.root(first).hex(), "second_root": self._log.root(second).hex()}
        return {"first": first, "second": second, **roots, "proof": [h.hex() for h in proof]}

    def _statement(self, a: Mapping[str, Any]) -> Any:
        size, limit = int(self._log.size), _number(a, "limit", 1000, 1, limits.STATEMENT_ROWS_MAX)
        account = str(a["account"]) if a.get("account") else None
        rows = [_hexed(_plain(row)) for row in statement(self._all_records(size), account)]
        return {"account": account, "lines": rows[-limit:]}

    def _earnings(self, _: Mapping[str, Any]) -> Any:
        return {"earnings": earnings(self._all_records(int(self._log.size)))}

    def _all_records(self, size: int) -> Any:
        for first in range(0, size, limits.LOG_READ_EVENTS_MAX):
            yield from self._log.read(first, min(size, first + limits.LOG_READ_EVENTS_MAX))


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value, builtin_types=(bytes,))


def _hexed(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {k: _hexed(v) for k, v in value.items()}
        case list() | tuple():
            return [_hexed(v) for v in value]
    return value


def _number(a: Mapping[str, Any], name: str, otherwise: int | None, least: int, most: int) -> int:
    value = a.get(name, otherwise)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise RequestError(f"{name} must be a number from {least} to {most}", param=name)
    return value
