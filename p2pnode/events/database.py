"""The log's SQLite file: its schema, the one connection that writes, and those that read without disturbing it.

WAL with synchronous=FULL; exactly one connection ever writes or checkpoints (SQLite before 3.51.3 can
corrupt a WAL that two connections reset together), all others are read-only. Source: specs/08-log.md#store
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from p2pnode.errors import CorruptRecord, DataDirError, DiskFull, P2PNodeError
from p2pnode.events.assembler import Draft
from p2pnode.events.folder import free_bytes
from p2pnode.events.tables import Connection, IdempotencyRow, SecretRow, place_of
from p2pnode.events.types import KeysBound, PeerEquivocated
from p2pnode.limits import LOG_DISK_FLOOR_BYTES, WITNESS_BLOCKS_KEPT

SCHEMA_VERSION: Final = 1

_APPEND_ONLY: Final = ("events", "bindings", "frauds", "idempotency", "tiles", "blocks")
_PLACES: Final = (
    ("INSERT INTO bindings VALUES (?)", KeysBound),
    ("INSERT INTO frauds VALUES (?)", PeerEquivocated),
)
"""Where the rare events are that are looked for by kind."""
_TABLES: Final = """
CREATE TABLE events (
  seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, correlation TEXT, body BLOB NOT NULL, leaf BLOB NOT NULL
) STRICT;
CREATE INDEX events_correlation ON events (correlation) WHERE correlation IS NOT NULL;
CREATE TABLE idempotency (
  actor TEXT NOT NULL, key TEXT NOT NULL, fingerprint BLOB NOT NULL, first INTEGER NOT NULL, end INTEGER NOT NULL,
  PRIMARY KEY (actor, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE bindings (seq INTEGER PRIMARY KEY) STRICT;
CREATE TABLE frauds (seq INTEGER PRIMARY KEY) STRICT;
CREATE TABLE tiles (place INTEGER PRIMARY KEY, hashes BLOB NOT NULL) STRICT;
CREATE TABLE blocks (
  number INTEGER PRIMARY KEY, first INTEGER NOT NULL, end INTEGER NOT NULL UNIQUE, header BLOB NOT NULL,
  signature BLOB NOT NULL, checkpoint TEXT NOT NULL
) STRICT;
CREATE TABLE cosignatures (
  size INTEGER NOT NULL, line TEXT NOT NULL, PRIMARY KEY (size, line)
) STRICT, WITHOUT ROWID;
CREATE TABLE snapshots (
  name TEXT PRIMARY KEY, size INTEGER NOT NULL, log_root BLOB NOT NULL, version TEXT NOT NULL,
  state_hash BLOB NOT NULL, state BLOB NOT NULL
) STRICT;
CREATE TABLE witnessed (
  origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, note TEXT NOT NULL, binding BLOB NOT NULL,
  recorded_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE secrets (
  commitment BLOB PRIMARY KEY, subject TEXT NOT NULL, owner TEXT NOT NULL, salt BLOB NOT NULL, text BLOB
) STRICT, WITHOUT ROWID;
CREATE INDEX secrets_subject ON secrets (subject);
CREATE INDEX secrets_owner ON secrets (owner) WHERE owner <> '';
"""


def connect_writer(path: Path) -> Connection:
    """The connection that writes; durable at every commit."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = 1")
    connection.execute("PRAGMA checkpoint_fullfsync = 1")
    connection.execute("PRAGMA secure_delete = ON")
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that can only read; of a folder that cannot be written, as it stands."""
    plain = f"{path.resolve().as_uri()}?mode=ro"
    for uri in (plain, f"{plain}&immutable=1"):
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5.0
        )
        try:
            connection.execute("PRAGMA query_only = 1")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
        except sqlite3.DatabaseError as error:
            connection.close()
            if uri is plain and not os.access(path.parent, os.W_OK):
                continue
            raise as_condition(error, path) from error
        return connection
    raise AssertionError("the second way answers or raises")


def create_schema(connection: Connection) -> None:
    """Make the tables of a new log, or check that an old one's are known."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == SCHEMA_VERSION:
        return
    if version != 0:
        raise DataDirError(
            f"the log has format {version}, and this version of p2pnode knows {SCHEMA_VERSION}",
            hint="use the version of p2pnode that wrote it",
        )
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";"):
        if statement.strip():
            connection.execute(statement)
    for table in _APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            connection.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def write_draft(
    connection: Connection,
    draft: Draft,
    keys: Sequence[IdempotencyRow] = (),
    secrets: Sequence[SecretRow] = (),
    also: Sequence[Callable[[Connection], None]] = (),
) -> None:
    """Everything of one batch in one transaction; after any error the caller must stop and replay."""
    connection.execute("BEGIN IMMEDIATE")
    if draft.entries:
        connection.executemany(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
            [(e.record.index, e.record.id, e.record.correlation, e.body, e.leaf) for e in draft.entries],
        )
        for statement, kind in _PLACES:
            places = [(e.record.index,) for e in draft.entries if type(e.record.event) is kind]
            if places:
                connection.executemany(statement, places)
    if draft.tiles:
        connection.executemany(
            "INSERT INTO tiles VALUES (?, ?)",
            [(place_of(level, index), h) for level, index, h in draft.tiles],
        )
    if draft.blocks:
        connection.executemany(
            "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?)",
            [
                (b.header.number, b.header.first, b.header.end, b.header_bytes, b.signature, b.checkpoint)
                for b in draft.blocks
            ],
        )
    if keys:
        connection.executemany(
            "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?)",
            [(k.actor, k.key, k.fingerprint, k.first, k.end) for k in keys],
        )
    if secrets:
        connection.executemany(
            "INSERT INTO secrets VALUES (?, ?, ?, ?, ?)",
            [(s.commitment, s.subject, s.owner, s.salt, s.text) for s in secrets],
        )
    for action in also:
        action(connection)
    connection.execute("COMMIT")


def write_cosignature(connection: Connection, size: int, line: str) -> None:
    """Keep a cosignature, and drop those that newer checkpoints made needless."""
    connection.execute("INSERT OR IGNORE INTO cosignatures VALUES (?, ?)", (size, line))
    connection.execute(
        "DELETE FROM cosignatures WHERE size < coalesce("
        "(SELECT end FROM blocks ORDER BY number DESC LIMIT 1 OFFSET ?), 0)",
        (WITNESS_BLOCKS_KEPT,),
    )


def as_condition(error: Exception, path: Path) -> P2PNodeError:
    """What a database error means to the operator, in a line."""
    text = str(error)
    if "full" in text or ("disk I/O" in text and _is_full(path.parent)):
        return DiskFull(f"the disk of {path.parent} is full: {text}")
    if "malformed" in text or "not a database" in text:
        return CorruptRecord(
            f"{path} is damaged: {text}",
            hint="restore the folder from a copy; p2pnode log compare tells which of two copies goes further",
        )
    if "unable to open" in text or "readonly" in text or "permission" in text.lower():
        return DataDirError(
            f"the log {path} cannot be opened: {text}", hint="check that the folder is there and is yours"
        )
    return DataDirError(
        f"the log {path} cannot be used: {text}", hint="look at the disk, or choose another with --data"
    )


def _is_full(folder: Path) -> bool:
    """SQLite calls some writes that found no room plain I/O errors."""
    try:
        return free_bytes(folder) < LOG_DISK_FLOOR_BYTES
    except OSError:
        return False
