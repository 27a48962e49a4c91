"""Tampering with a stored log: every way of it is found, and the first bad event is named."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnode.errors import CorruptRecord
from p2pnode.events import verify as verifying
from p2pnode.events.block import Block, parse_header, seal_block
from p2pnode.events.codec import decode, encode
from p2pnode.events.committer import Committer
from p2pnode.events.database import connect_writer, create_schema
from p2pnode.events.folder import CHECKPOINT, DATABASE, LOG_DIR
from p2pnode.events.keys import LogKeys
from p2pnode.events.log import NewEvent, NoFold
from p2pnode.events.merkle import leaf_hash, verify_consistency, verify_inclusion
from p2pnode.events.note import parse_checkpoint, parse_note
from p2pnode.events.reader import LogReader
from p2pnode.events.store import SqliteLog
from p2pnode.events.tables import Tables
from p2pnode.events.types import UnknownEvent
from p2pnode.events.verify import Report, verify_folder
from tests.kit.log_events import ManualClock, held, node_identity, seeded_bytes, started

EVENTS = 640
"""Two full tiles, six sealed blocks and a tail."""


async def write_log(folder: Path, count: int = EVENTS, number: int = 1, first: int = 0) -> None:
    log: SqliteLog[Any] = SqliteLog.open(
        folder, node_identity(number), now_ms=ManualClock(), rng=seeded_bytes(number)
    )
    await log.append([held(n) for n in range(first, first + count)])
    await log.close()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    asyncio.run(write_log(folder))
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine / LOG_DIR, tmp_path / LOG_DIR)
    return tmp_path


def tamper(folder: Path, change: Callable[[Any], None]) -> Report:
    """Change the tables as somebody who owns the machine can."""
    connection = connect_writer(folder / LOG_DIR / DATABASE)
    for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    change(connection)
    connection.close()
    return verify_folder(folder, peer=node_identity().peer_id)


def edited(body: bytes) -> bytes:
    """The same record with a larger amount."""
    record = decode(body)
    return encode(
        type(record)(*(getattr(record, f) for f in record.__struct_fields__[:-1]), held(7, 9_999_999))
    )


def body_of(connection: Any, index: int) -> bytes:
    return bytes(connection.execute("SELECT body FROM events WHERE seq = ?", (index,)).fetchone()[0])


def test_an_untouched_log_is_fine(folder: Path) -> None:
    """And says what it is."""
    report = verify_folder(folder, peer=node_identity().peer_id)
    assert report.ok
    assert (report.size, report.sealed, report.first_bad) == (EVENTS + 1, EVENTS + 1, None)
    assert report.peer == node_identity().peer_id
    assert not report.warnings


@pytest.mark.parametrize("index", [1, 255, 256, 300, 511, 600, EVENTS])
def test_an_edited_event_is_named(folder: Path, index: int) -> None:
    """By its hash."""
    report = tamper(
        folder,
        lambda c: c.execute("UPDATE events SET body = ? WHERE seq = ?", (edited(body_of(c, index)), index)),
    )
    assert report.first_bad is not None
    assert report.first_bad.index == index
    assert "was changed" in report.first_bad.what


@pytest.mark.parametrize("index", [1, 255, 256, 300, 511])
def test_an_edit_with_its_leaf_repaired_is_named_by_the_tile(folder: Path, index: int) -> None:
    """The leaf is in the tree as well."""

    def change(c: Any) -> None:
        body = edited(body_of(c, index))
        c.execute("UPDATE events SET body = ?, leaf = ? WHERE seq = ?", (body, leaf_hash(body), index))

    report = tamper(folder, change)
    assert report.first_bad is not None
    assert report.first_bad.index in (index, (index - 1) // 100 * 100 + 1)
    assert any(finding.index == index for finding in report.findings)


def test_an_edit_with_leaf_and_tile_repaired_is_found_by_its_block(folder: Path) -> None:
    """The seal stands for its events."""

    def change(c: Any) -> None:
        body = edited(body_of(c, 130))
        leaf = leaf_hash(body)
        tile = bytearray(c.execute("SELECT hashes FROM tiles WHERE place = 0").fetchone()[0])
        tile[130 * 32 : 131 * 32] = leaf
        c.execute("UPDATE events SET body = ?, leaf = ? WHERE seq = 130", (body, leaf))
        c.execute("UPDATE tiles SET hashes = ? WHERE place = 0", (bytes(tile),))

    report = tamper(folder, change)
    assert report.first_bad is not None
    assert report.first_bad.index == 101
    assert "other events" in report.first_bad.what


def test_the_tail_without_a_full_tile_is_protected_too(folder: Path) -> None:
    """By block and published checkpoint."""

    def change(c: Any) -> None:
        body = edited(body_of(c, EVENTS))
        c.execute("UPDATE events SET body = ?, leaf = ? WHERE seq = ?", (body, leaf_hash(body), EVENTS))

    report = tamper(folder, change)
    assert report.first_bad is not None
    assert report.first_bad.index == 601


def test_swapped_events_are_named(folder: Path) -> None:
    """Leaves swapped along with them."""

    def change(c: Any) -> None:
        rows = c.execute("SELECT id, body, leaf FROM events WHERE seq IN (40, 41) ORDER BY seq").fetchall()
        c.execute("DELETE FROM events WHERE seq IN (40, 41)")
        for seq, row in zip((40, 41), reversed(rows), strict=True):
            c.execute("INSERT INTO events VALUES (?, ?, NULL, ?, ?)", (seq, *row))

    report = tamper(folder, change)
    assert report.first_bad is not None
    assert report.first_bad.index in (1, 40)
    assert any(finding.index == 40 for finding in report.findings)


def test_a_deleted_event_is_named(folder: Path) -> None:
    """As missing, or after renumbering as not being in the tree."""

    def change(c: Any) -> None:
        c.execute("DELETE FROM events WHERE seq = 50")

    report = tamper(folder, change)
    assert report.first_bad is not None
    assert (report.first_bad.index, "missing" in report.first_bad.what) == (50, True)

    def renumber(c: Any) -> None:
        for seq in range(51, EVENTS + 1):
            c.execute("UPDATE events SET seq = ? WHERE seq = ?", (seq - 1, seq))

    report = tamper(folder, renumber)
    assert any(finding.index == 50 for finding in report.findings)


@pytest.mark.parametrize("keep", [EVENTS, 601, 600, 256, 1, 0])
def test_a_cut_tail_is_noticed(folder: Path, keep: int) -> None:
    """By the blocks over it; without these by the published checkpoint."""
    report = tamper(folder, lambda c: c.execute("DELETE FROM events WHERE seq >= ?", (keep,)))
    assert not report.ok
    report = tamper(folder, lambda c: c.execute("DELETE FROM blocks WHERE end > ?", (keep,)))
    assert not report.ok
    report = tamper(
        folder, lambda c: c.execute("DELETE FROM tiles WHERE (place & 0xffffff) >= ?", (keep // 256,))
    )
    assert not report.ok
    assert any("its tail was cut" in finding.what or keep == 0 for finding in report.findings)


def test_a_log_made_anew_with_another_key_is_not_this_nodes(folder: Path, tmp_path: Path) -> None:
    """However well it is made: the peer id is the key's."""
    other = tmp_path / "other"
    asyncio.run(write_log(other, 20, number=2))
    assert verify_folder(other).ok
    assert not verify_folder(other, peer=node_identity().peer_id).ok
    shutil.copy(folder / LOG_DIR / CHECKPOINT, other / LOG_DIR / CHECKPOINT)
    assert not verify_folder(other).ok


def test_replaced_keys_are_not_vouched_for(folder: Path) -> None:
    """Event 0 with other keys lacks the identity's signature, and nothing is signed by them."""

    def change(c: Any) -> None:
        record = decode(body_of(c, 0))
        event = record.event
        other = LogKeys.derive(node_identity(2)).bound()
        fields = {name: getattr(event, name) for name in event.__slots__}  # type: ignore[attr-defined]
        forged = type(event)(**{**fields, "log_key": other.log_key})
        body = encode(type(record)(*(getattr(record, f) for f in record.__struct_fields__[:-1]), forged))
        c.execute("UPDATE events SET body = ?, leaf = ? WHERE seq = 0", (body, leaf_hash(body)))

    report = tamper(folder, change)
    assert report.first_bad is not None
    assert report.first_bad.index == 0
    assert any("not signed by the identity key" in finding.what for finding in report.findings)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE blocks SET signature = zeroblob(64) WHERE number = 3",
        "UPDATE blocks SET header = (SELECT header FROM blocks WHERE number = 2) WHERE number = 3",
        "UPDATE blocks SET header = x'80' WHERE number = 3",
        "UPDATE blocks SET checkpoint = (SELECT checkpoint FROM blocks WHERE number = 2) WHERE number = 3",
        "UPDATE blocks SET checkpoint = 'nonsense' WHERE number = 3",
        "UPDATE blocks SET checkpoint = replace(checkpoint, 'p2pnode/', 'q2pnode/') WHERE number = 3",
        "DELETE FROM blocks WHERE number = 3",
        "UPDATE tiles SET hashes = zeroblob(8192) WHERE place = 0",
        "DELETE FROM tiles WHERE place = 1",
        "UPDATE events SET leaf = zeroblob(32) WHERE seq = 300",
        "UPDATE events SET body = x'c0', leaf = x'00' WHERE seq = 300",
    ],
)
def test_blocks_tiles_and_leaves_are_checked(folder: Path, statement: str) -> None:
    """Each table alone gives a change away."""
    assert not tamper(folder, lambda c: c.execute(statement)).ok


def test_a_stale_published_checkpoint_is_mentioned(folder: Path) -> None:
    """It is true, but it is not the newest that was sealed."""
    connection = sqlite3.connect(folder / LOG_DIR / DATABASE)
    older = connection.execute("SELECT checkpoint FROM blocks WHERE number = 3").fetchone()[0]
    connection.close()
    (folder / LOG_DIR / CHECKPOINT).write_text(older)
    report = verify_folder(folder)
    assert report.ok
    assert "stale" in report.warnings[0]


def test_a_damaged_published_checkpoint_is_found(folder: Path) -> None:
    """Bytes, signature or root."""
    path = folder / LOG_DIR / CHECKPOINT
    good = path.read_text()
    for bad in ("nonsense", good.replace(f"\n{EVENTS + 1}\n", "\n600\n"), good[:-5] + "AAA=\n"):
        path.write_text(bad)
        assert not verify_folder(folder).ok


def test_a_checkpoint_seen_elsewhere_shows_a_restored_backup(folder: Path, tmp_path: Path) -> None:
    """A whole folder put back to an earlier state looks fine by itself; what a peer saw tells."""
    seen = (folder / LOG_DIR / CHECKPOINT).read_text()
    assert parse_checkpoint(parse_note(seen).text).size == EVENTS + 1
    earlier = tmp_path / "earlier"
    asyncio.run(write_log(earlier, 300))
    assert verify_folder(earlier).ok
    report = verify_folder(earlier, checkpoints=[seen])
    assert report.first_bad is not None
    assert "its tail was cut" in report.first_bad.what
    other = tmp_path / "fork"
    asyncio.run(write_log(other, EVENTS, first=5))
    report = verify_folder(other, checkpoints=[seen])
    assert not report.ok
    assert "another log" in report.findings[0].what


def test_an_unsealed_tail_is_no_fault(tmp_path: Path) -> None:
    """Events after the last block are durable, though not signed yet."""

    async def run() -> None:
        log: SqliteLog[Any] = SqliteLog.open(tmp_path, node_identity(), now_ms=ManualClock())
        await log.append([started()])
        report = verify_folder(tmp_path)
        assert report.ok
        assert (report.size, report.sealed) == (2, 1)
        await log.close()

    asyncio.run(run())


def test_rotated_keys_verify(tmp_path: Path) -> None:
    """Each block by the key that was in force."""

    async def run() -> None:
        log: SqliteLog[Any] = SqliteLog.open(tmp_path, node_identity(), now_ms=ManualClock())
        await log.append([held(n) for n in range(120)])
        await log.rotate_keys()
        await log.append([held(n) for n in range(120)])
        await log.rotate_keys()
        await log.close()

    asyncio.run(run())
    assert verify_folder(tmp_path).ok
    connection = connect_writer(tmp_path / LOG_DIR / DATABASE)
    connection.execute("DROP TRIGGER events_no_update")
    body = bytes(connection.execute("SELECT body FROM events WHERE seq = 121").fetchone()[0])
    record = decode(body)
    old = LogKeys.derive(node_identity(), 7).bound()
    forged = encode(type(record)(*(getattr(record, f) for f in record.__struct_fields__[:-1]), old))
    connection.execute("UPDATE events SET body = ?, leaf = ? WHERE seq = 121", (forged, leaf_hash(forged)))
    connection.close()
    report = verify_folder(tmp_path)
    assert any("do not follow" in finding.what for finding in report.findings)


def sealed_again(block: Block, **changes: Any) -> Block:
    """A block that this node signed, though it should not have."""
    keys = LogKeys.derive(node_identity())
    header = block.header
    made = seal_block(
        [keys],
        number=header.number,
        first=header.first,
        leaves=[bytes(32)] * (header.end - header.first),
        log_root=changes.get("log_root", header.log_root),
        previous_hash=header.previous_hash,
        now_ms=header.sealed_ms,
    )
    raw = msgspec.msgpack.encode(
        msgspec.structs.replace(made.header, block_root=header.block_root), order="sorted"
    )
    return Block(parse_header(raw), raw, keys.log.sign(b"p2pnode block v1\n" + raw), made.checkpoint)


@pytest.mark.parametrize("which", ["header", "checkpoint"])
def test_a_node_that_signs_a_wrong_root_is_found_out(folder: Path, which: str) -> None:
    """Its signature is good; its sum is not."""

    def change(c: Any) -> None:
        last = Tables(c).last_block()
        assert last is not None
        wrong = sealed_again(last, log_root=bytes(32))
        if which == "header":
            c.execute(
                "UPDATE blocks SET header = ?, signature = ? WHERE number = ?",
                (wrong.header_bytes, wrong.signature, last.header.number),
            )
        else:
            c.execute(
                "UPDATE blocks SET checkpoint = ? WHERE number = ?", (wrong.checkpoint, last.header.number)
            )

    report = tamper(folder, change)
    assert report.first_bad is not None
    assert ("another log" if which == "header" else "another root") in report.first_bad.what


def test_a_log_must_begin_with_its_keys_and_keep_its_name(folder: Path) -> None:
    """Event 0 of another kind; a change of name that does not say from what."""

    def replaced(c: Any, index: int, event: Any) -> None:
        record = decode(body_of(c, index))
        body = encode(type(record)(*(getattr(record, f) for f in record.__struct_fields__[:-1]), event))
        c.execute("UPDATE events SET body = ?, leaf = ? WHERE seq = ?", (body, leaf_hash(body), index))

    renamed = LogKeys.derive(node_identity(), 1, "p2pnode/elsewhere").bound()
    report = tamper(folder, lambda c: replaced(c, 9, renamed))
    assert any("another name" in finding.what for finding in report.findings)
    report = tamper(folder, lambda c: replaced(c, 0, started()))
    assert any("does not bind" in finding.what for finding in report.findings)


def test_long_gaps_and_broken_files_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap longer than what is read at once; a file that SQLite can not read."""
    monkeypatch.setattr(verifying, "_CHUNK", 10)
    report = tamper(folder, lambda c: c.execute("DELETE FROM events WHERE seq > 20 AND seq < 60"))
    assert report.first_bad is not None
    assert report.first_bad.index == 21
    path = folder / LOG_DIR / DATABASE
    raw = bytearray(path.read_bytes())
    raw[4096:] = bytes(len(raw) - 4096)
    path.write_bytes(raw)
    with pytest.raises(CorruptRecord, match="damaged"):
        verify_folder(folder)


def test_damage_beside_the_events_is_named(folder: Path) -> None:
    """An index that no proof reads: the next write or search would stumble over it."""
    path = folder / LOG_DIR / DATABASE
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (root_page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_events_1'"
        ).fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    assert verify_folder(folder).ok
    raw = bytearray(path.read_bytes())
    raw[root_page * page_bytes - 3] ^= 0x41
    path.write_bytes(raw)
    report = verify_folder(folder)
    assert not report.ok
    assert all(finding.what.startswith("the file of the log is damaged: ") for finding in report.findings)


def test_unknown_facts_are_proved_and_counted(tmp_path: Path) -> None:
    """And progress is told on the way."""

    async def run() -> None:
        log: SqliteLog[Any] = SqliteLog.open(tmp_path, node_identity(), now_ms=ManualClock())
        await log.append([UnknownEvent(type_name="FromTheFuture", schema_version=2, data=b"\x80")])
        await log.close()

    asyncio.run(run())
    seen: list[int] = []
    report = verify_folder(tmp_path, progress=seen.append)
    assert report.ok
    assert (report.unknown_events, seen) == (1, [2])


def test_a_log_with_tiles_of_three_levels(tmp_path: Path) -> None:
    """More than 65,536 events: written, opened again, proved and verified."""
    (tmp_path / LOG_DIR).mkdir()
    clock, fold = ManualClock(), NoFold()
    connection = connect_writer(tmp_path / LOG_DIR / DATABASE)
    create_schema(connection)
    committer: Committer[Any] = Committer(connection, node_identity(), fold, clock, seeded_bytes(1))
    count = 65_536 + 300
    for first in range(0, count, 5000):
        events = [NewEvent(started(str(n))) for n in range(first, min(first + 5000, count))]
        committer.assembler.add(events, "local", None, clock())
        committer.flush()
    committer.seal()
    committer.flush()
    connection.close()
    log: SqliteLog[Any] = SqliteLog.open(tmp_path, node_identity(), now_ms=clock)
    size = log.size
    assert len(log.tile(1, 0)) == 8192
    assert len(log.tile(1, 1)) == len(log.tile(2, 0)) == 32
    for index in (0, 65_535, 65_536, size - 1):
        leaf = leaf_hash(log.entries(index, index + 1)[0])
        assert verify_inclusion(leaf, index, size, log.inclusion_proof(index, size), log.root(size))
    log.close_blocking()
    fresh = LogReader.of_folder(tmp_path)
    assert len(fresh.tile(2, 0)) == 32
    assert verify_consistency(70, size, fresh.consistency_proof(70, size), fresh.root(70), fresh.root(size))
    fresh.close()
    report = verify_folder(tmp_path)
    assert report.ok
    assert report.size == size
