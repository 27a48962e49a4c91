"""What the log's tables say: queries over one connection, and rows as the rest of the log knows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from p2pnode.errors import CorruptRecord
from p2pnode.events.block import Block, parse_header
from p2pnode.events.merkle import HASH_BYTES, TILE_WIDTH
from p2pnode.events.witness import Witnessed


class Connection(Protocol):
    """What is used of a database connection (sqlite3's; the power-cut tests bring apsw's)."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Any: ...
    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Any: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class IdempotencyRow:
    """Where the events recorded under a key are."""

    actor: str
    key: str
    fingerprint: bytes
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class SecretRow:
    """A salt behind a commitment, and the text when it is to be kept."""

    commitment: bytes
    subject: str
    owner: str
    salt: bytes
    text: bytes | None


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A folded state as kept."""

    size: int
    log_root: bytes
    version: str
    state_hash: bytes
    state: bytes


def place_of(level: int, index: int) -> int:
    """Key of a tile."""
    assert index < 1 << 56, "a tile index fits 56 bits"
    return level << 56 | index


class Tables:
    """Queries over one connection, the writer's or a reader's."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def size(self) -> int:
        return int(self._one("SELECT coalesce(max(seq) + 1, 0) FROM events")[0])

    def bodies(self, first: int, end: int) -> list[bytes]:
        rows = self.connection.execute(
            "SELECT body FROM events WHERE seq >= ? AND seq < ? ORDER BY seq", (first, end)
        )
        return [row[0] for row in rows]

    def events(self, first: int, end: int) -> Iterator[tuple[int, bytes, bytes]]:
        """(seq, body, leaf) in order, streamed."""
        yield from self.connection.execute(
            "SELECT seq, body, leaf FROM events WHERE seq >= ? AND seq < ? ORDER BY seq", (first, end)
        )

    def leaves(self, first: int, end: int) -> list[bytes]:
        rows = self.connection.execute(
            "SELECT leaf FROM events WHERE seq >= ? AND seq < ? ORDER BY seq", (first, end)
        )
        return [row[0] for row in rows]

    def last_event_id(self) -> bytes | None:
        row = self._one("SELECT id FROM events ORDER BY seq DESC LIMIT 1")
        return None if row is None else bytes(row[0])

    def find_event(self, event_id: bytes) -> int | None:
        row = self._one("SELECT seq FROM events WHERE id = ?", event_id)
        return None if row is None else int(row[0])

    def correlated(self, correlation: str, limit: int) -> list[int]:
        rows = self.connection.execute(
            "SELECT seq FROM events WHERE correlation = ? ORDER BY seq LIMIT ?", (correlation, limit)
        )
        return [row[0] for row in rows]

    def full_tile(self, level: int, index: int) -> bytes:
        row = self._one("SELECT hashes FROM tiles WHERE place = ?", place_of(level, index))
        return b"" if row is None else bytes(row[0])

    def tile(self, level: int, index: int) -> bytes:
        """A full tile; level 0's last one is made of the leaves."""
        stored = self.full_tile(level, index)
        if stored or level:
            return stored
        hashes = self.leaves(index * TILE_WIDTH, (index + 1) * TILE_WIDTH)
        if any(len(value) != HASH_BYTES for value in hashes):
            raise CorruptRecord("a leaf is not a hash")
        return b"".join(hashes)

    def bindings(self) -> list[int]:
        return [row[0] for row in self.connection.execute("SELECT seq FROM bindings ORDER BY seq")]

    def frauds(self) -> list[int]:
        return [row[0] for row in self.connection.execute("SELECT seq FROM frauds ORDER BY seq")]

    def block_count(self) -> int:
        return int(self._one("SELECT coalesce(max(number) + 1, 0) FROM blocks")[0])

    def blocks(self, first: int, end: int) -> list[Block]:
        rows = self.connection.execute(
            "SELECT header, signature, checkpoint FROM blocks WHERE number >= ? AND number < ? ORDER BY number",
            (first, end),
        )
        return [Block(parse_header(raw), raw, signature, text) for raw, signature, text in rows]

    def last_block(self) -> Block | None:
        count = self.block_count()
        found = self.blocks(count - 1, count)
        return found[0] if found else None

    def block_of(self, index: int) -> Block | None:
        """The block an event is sealed in."""
        row = self._one("SELECT number FROM blocks WHERE end > ? ORDER BY end LIMIT 1", index)
        return None if row is None else self.blocks(row[0], row[0] + 1)[0]

    def cosignatures(self, size: int) -> list[str]:
        rows = self.connection.execute("SELECT line FROM cosignatures WHERE size = ? ORDER BY line", (size,))
        return [row[0] for row in rows]

    def newest_cosignatures(self) -> list[tuple[int, str]]:
        """(size, line), newest first."""
        rows = self.connection.execute("SELECT size, line FROM cosignatures ORDER BY size DESC")
        return [(row[0], row[1]) for row in rows]

    def all_witnessed(self) -> list[Witnessed]:
        rows = self.connection.execute(
            "SELECT origin, size, root, note, binding, recorded_ms FROM witnessed ORDER BY origin"
        )
        return [Witnessed(*row) for row in rows]

    def idempotency(self, actor: str, key: str) -> IdempotencyRow | None:
        row = self._one(
            "SELECT fingerprint, first, end FROM idempotency WHERE actor = ? AND key = ?", actor, key
        )
        return None if row is None else IdempotencyRow(actor, key, *row)

    def witnessed(self, origin: str) -> Witnessed | None:
        row = self._one(
            "SELECT origin, size, root, note, binding, recorded_ms FROM witnessed WHERE origin = ?", origin
        )
        return None if row is None else Witnessed(*row)

    def witnessed_count(self) -> int:
        return int(self._one("SELECT count(*) FROM witnessed")[0])

    def secrets_of(self, subject: str) -> list[SecretRow]:
        """Those of a subject or an owner."""
        rows = self.connection.execute(
            "SELECT commitment, subject, owner, salt, text FROM secrets WHERE subject = ? OR owner = ?",
            (subject, subject),
        )
        return [SecretRow(*row) for row in rows]

    def secret(self, commitment: bytes) -> SecretRow | None:
        row = self._one(
            "SELECT commitment, subject, owner, salt, text FROM secrets WHERE commitment = ?", commitment
        )
        return None if row is None else SecretRow(*row)

    def snapshot(self) -> SnapshotRow | None:
        row = self._one(
            "SELECT size, log_root, version, state_hash, state FROM snapshots WHERE name = 'state'"
        )
        return None if row is None else SnapshotRow(*row)

    def _one(self, sql: str, *parameters: Any) -> Any:
        return self.connection.execute(sql, parameters).fetchone()
