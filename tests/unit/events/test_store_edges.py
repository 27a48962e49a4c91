"""Corners of the store: damage at opening, full disks, failing parts, readers, replays."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import (
    BadCheckpoint,
    CorruptRecord,
    DataDirError,
    DiskFull,
    LogBusy,
    LogFailed,
    NotFound,
    RequestError,
    RollbackRefused,
)
from p2pnode.events import committer as committing
from p2pnode.events import disk_room
from p2pnode.events import publisher as publishing
from p2pnode.events.codec import Record
from p2pnode.events.database import as_condition, connect_writer
from p2pnode.events.folder import (
    CHECKPOINT,
    DATABASE,
    LOG_DIR,
    folder_condition,
    publish_checkpoint,
    published_checkpoint,
)
from p2pnode.events.merkle import leaf_hash, verify_consistency, verify_inclusion
from p2pnode.events.note import open_checkpoint
from p2pnode.events.reader import LogReader
from p2pnode.events.replay import check_snapshot, replay
from p2pnode.events.store import SqliteLog
from p2pnode.events.types import NodeStarted
from p2pnode.events.verify import verify_folder
from p2pnode.limits import (
    LOG_BLOCK_EVENTS,
    LOG_BLOCK_MS,
    LOG_HELD_EVENTS_MAX,
    LOG_HOLD_MS,
    SECRET_TEXT_BYTES_MAX,
)
from p2pnode.machine import now_ms
from tests.contract.event_log_contract import CountingFold
from tests.kit.log_events import ManualClock, accepted, held, node_identity, seeded_bytes, started


def open_log(folder: Path, **options: Any) -> SqliteLog[Any]:
    chosen = {"fold": CountingFold(), "now_ms": ManualClock(), "rng": seeded_bytes(1), **options}
    return SqliteLog.open(folder, node_identity(), **chosen)


async def fill(folder: Path, count: int) -> None:
    log = open_log(folder)
    await log.append([held(number) for number in range(count)])
    await log.close()


async def test_checkpoints_are_published_by_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that replace the file at once would take the new one away from each other."""
    threads = []

    def publish(folder: Path, note: str) -> None:
        threads.append(threading.get_ident())
        publish_checkpoint(folder, note)

    monkeypatch.setattr(publishing, "publish_checkpoint", publish)
    await fill(tmp_path, 3)
    assert set(threads) == {threading.get_ident()}
    assert published_checkpoint(tmp_path / LOG_DIR) is not None


def change(folder: Path, *statements: str) -> None:
    """Change the tables behind the log's back, triggers and all."""
    connection = connect_writer(folder / LOG_DIR / DATABASE)
    for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    ("statements", "index"),
    [
        (["DELETE FROM events WHERE seq > 250"], 251),
        (["UPDATE events SET leaf = zeroblob(32) WHERE seq = 290"], 201),
        (["UPDATE tiles SET hashes = zeroblob(8192)"], 201),
        (["DELETE FROM snapshots", "UPDATE events SET body = zeroblob(9) WHERE seq = 7"], 7),
        (["DELETE FROM snapshots", "DELETE FROM events WHERE seq = 7"], 7),
        (["DELETE FROM bindings", "INSERT INTO bindings VALUES (5)"], 5),
        (
            ["DELETE FROM blocks WHERE number > 1", "UPDATE events SET body = zeroblob(9) WHERE seq = 280"],
            280,
        ),
    ],
)
async def test_a_damaged_log_is_not_opened(tmp_path: Path, statements: list[str], index: int) -> None:
    """Nothing is signed over it; the error says where."""
    await fill(tmp_path, 300)
    change(tmp_path, *statements)
    with pytest.raises(CorruptRecord) as caught:
        open_log(tmp_path)
    assert caught.value.details["index"] == index
    with pytest.raises(CorruptRecord):
        open_log(tmp_path)


async def test_damage_that_breaks_the_tree_is_not_opened(tmp_path: Path) -> None:
    """A leaf that is no hash, a tile that is gone."""
    await fill(tmp_path, 300)
    change(tmp_path, "UPDATE events SET leaf = x'00' WHERE seq = 290")
    with pytest.raises(CorruptRecord):
        open_log(tmp_path)
    change(tmp_path, "DELETE FROM tiles", "UPDATE events SET leaf = x'00' WHERE seq = 5")
    with pytest.raises(CorruptRecord):
        open_log(tmp_path)


async def test_little_free_disk_stops_paid_work_and_then_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left is for sealing and closing; when there is space again it goes on."""
    free = [10**12]
    monkeypatch.setattr(disk_room, "free_bytes", lambda folder: free[0])
    clock = ManualClock()
    log = open_log(tmp_path, now_ms=clock)
    assert log.has_reserve
    free[0] = 100 * 1024 * 1024
    clock.advance(1000)
    assert not log.has_reserve
    await log.append([started()])
    free[0] = 1024
    clock.advance(1000)
    with pytest.raises(DiskFull):
        await log.append([started()])
    free[0] = 10**12
    clock.advance(1000)
    assert await log.append([started()]) == [2]
    await log.close()


async def test_a_checkpoint_that_can_not_be_published_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Callers are answered all the same: the events are durable."""
    log = open_log(tmp_path)

    def fail(folder: Path, note: str) -> None:
        raise folder_condition(OSError(errno.ENOSPC, "no space"), folder)

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "publish_checkpoint", fail)
        await log.append([started()])
        await log.seal()
        assert "is full" in caplog.text
        assert (published_checkpoint(tmp_path / LOG_DIR) or "").splitlines()[1] == "1"
    await log.append([started()])
    await log.seal()
    assert published_checkpoint(tmp_path / LOG_DIR) == log.checkpoint()
    await log.close()


async def test_a_fold_that_breaks_stops_the_log(tmp_path: Path) -> None:
    """State and log would not belong together any more; what was acknowledged is there."""

    class Breaking(CountingFold):
        def apply(self, state: dict[str, int], record: Record) -> dict[str, int]:
            if isinstance(record.event, NodeStarted):
                raise ValueError("a bug in a projection")
            return super().apply(state, record)

    log = open_log(tmp_path, fold=Breaking())
    await log.append([accepted()])
    with pytest.raises(LogFailed, match="could not be folded"):
        await log.append([started()])
    with pytest.raises(LogFailed):
        await log.append([accepted()])
    await log.close()
    again = open_log(tmp_path)
    assert again.size == 2
    await again.close()


async def test_a_bug_in_the_writer_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers get an error, the lock is free again."""
    log = open_log(tmp_path)
    monkeypatch.setattr(committing.Committer, "_seal_if_due", lambda self: 1 // 0)
    answers = await asyncio.gather(*(log.append([started()]) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(answer, LogFailed) for answer in answers)
    await log.close()
    monkeypatch.undo()
    await open_log(tmp_path).close()


async def test_too_many_waiting_are_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an error that says: come again."""
    monkeypatch.setattr("p2pnode.events.writer.LOG_QUEUE_MAX", 3)
    log = open_log(tmp_path)
    answers = await asyncio.gather(*(log.append([started()]) for _ in range(50)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, LogBusy)]
    assert refused
    assert log.size == 1 + 50 - len(refused)
    await log.close()


async def test_a_cancelled_caller_harms_nobody(tmp_path: Path) -> None:
    """Its event may be recorded; the others are answered."""
    log = open_log(tmp_path)
    waiting = asyncio.ensure_future(log.append([started()]))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await log.append([started()]) == [2]
    await log.close()


async def test_the_clock_seals_without_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block is sealed in time though nothing else happens."""
    monkeypatch.setattr("p2pnode.events.assembler.LOG_BLOCK_MS", 20)
    sealed = asyncio.Event()
    log = open_log(tmp_path, now_ms=now_ms)
    await log.append([started()])
    monkeypatch.setattr(publishing, "publish_checkpoint", lambda folder, note: sealed.set())
    monkeypatch.setattr(publishing, "LOG_PUBLISH_MS_MIN", 0)
    async with asyncio.timeout(10):
        await sealed.wait()
    assert log.block_count == 2
    await log.close()


async def test_snapshots_are_taken_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a crash costs the folding of some events, not of all."""
    monkeypatch.setattr(committing, "LOG_SNAPSHOT_EVENTS", 50)
    log = open_log(tmp_path)
    for number in range(130):
        await log.append([held(number)])
    reader = LogReader(tmp_path / LOG_DIR / DATABASE)
    check = check_snapshot(reader.tables, CountingFold())
    assert check is not None
    assert check.ok
    assert 50 <= check.size <= 131
    reader.close()
    await log.close()
    assert verify_folder(tmp_path).ok


async def test_old_cosignatures_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the newest blocks are kept; a newer checkpoint vouches for the older ones."""
    monkeypatch.setattr("p2pnode.events.database.WITNESS_BLOCKS_KEPT", 3)
    log = open_log(tmp_path)
    for _ in range(6):
        await log.append([started()])
        await log.seal()
        await log.add_cosignature(log.size, "\u2014 x AAAAAAAA")
    assert [size for size, _ in log.reader.newest_cosignatures()] == [7, 6, 5, 4]
    await log.close()


async def test_a_repeated_key_within_one_commit(tmp_path: Path) -> None:
    """The second finds what the first did though neither is on the disk yet."""
    log = open_log(tmp_path)
    first, second = await asyncio.gather(
        log.append([held(1), held(2)], idempotency_key="k"),
        log.append([held(1), held(2)], idempotency_key="k"),
    )
    assert first == second == [1, 2]
    await log.close()


async def test_questions_about_the_state_are_answered_in_order(tmp_path: Path) -> None:
    """After everything that was submitted before; and clocks of peers are heeded."""
    log = open_log(tmp_path)
    waiting = asyncio.ensure_future(log.append([held(1)]))
    await asyncio.sleep(0)
    assert await log.query(lambda state: state["held"]) == 1_000_000
    await waiting
    assert log.state == {"events": 2, "held": 1_000_000}
    await log.witness_lamport(500)
    await log.append([started()])
    assert log.read(2, 3)[0].lamport == 501
    with pytest.raises(RequestError):
        log.commit_secret("r", b"x" * (SECRET_TEXT_BYTES_MAX + 1), keep_text=True)
    keys = await log.restart_origin()
    assert keys.origin.endswith("/1")
    assert log.keys == keys
    await log.close()
    assert verify_folder(tmp_path).origin == keys.origin


async def test_rollback_guard_corners(tmp_path: Path) -> None:
    """A damaged file, a fork of the same length, another origin; a crash before the new origin was published."""
    await fill(tmp_path, 5)
    path = tmp_path / LOG_DIR / CHECKPOINT
    good = path.read_text()
    path.write_text("nonsense")
    with pytest.raises(BadCheckpoint):
        open_log(tmp_path)
    lines = good.split("\n")
    path.write_text("\n".join([lines[0], lines[1], "A" * 43 + "=", *lines[3:]]))
    with pytest.raises(RollbackRefused, match="not those"):
        open_log(tmp_path)
    path.write_text(good.replace("p2pnode/", "q2pnode/"))
    with pytest.raises(RollbackRefused, match="is of q2pnode"):
        open_log(tmp_path)
    log = open_log(tmp_path, accept_rollback=True)
    await log.close()
    path.write_text(good)
    await open_log(tmp_path).close()
    path.write_bytes(b"\xff\xff")
    with pytest.raises(DataDirError):
        open_log(tmp_path)


async def test_a_reader_verifies_while_others_write(tmp_path: Path) -> None:
    """Every checkpoint it sees follows from the one before, and what it covers is there."""
    log = open_log(tmp_path, now_ms=now_ms)
    verifier, writing = log.keys.log_verifier, True

    def read() -> int:
        reader, seen, rounds = LogReader.of_folder(tmp_path), 1, 0
        root = reader.root(1)
        while writing or rounds < 5:
            checkpoint, _ = open_checkpoint(reader.checkpoint() or "", verifier)
            size = checkpoint.size
            assert verify_consistency(seen, size, reader.consistency_proof(seen, size), root, checkpoint.root)
            for index in (0, size // 2, size - 1):
                leaf = leaf_hash(reader.entries(index, index + 1)[0])
                assert verify_inclusion(
                    leaf, index, size, reader.inclusion_proof(index, size), checkpoint.root
                )
            seen, root, rounds = size, checkpoint.root, rounds + 1
        reader.close()
        return seen

    reading = asyncio.create_task(asyncio.to_thread(read))
    for _ in range(12):
        await asyncio.gather(*(log.append([held(number)]) for number in range(60)))
    await log.seal()
    writing = False
    assert await reading > 1
    await log.close()
    assert verify_folder(tmp_path).ok


async def test_readers_find_events_and_blocks(tmp_path: Path) -> None:
    """By index, id and request, and only what is there."""
    log = open_log(tmp_path)
    await log.append([accepted("r1")], correlation="r1")
    await log.append([held(n) for n in range(120)])
    await log.close()
    with pytest.raises(DataDirError):
        LogReader.of_folder(tmp_path / "none")
    reader = LogReader.of_folder(tmp_path)
    record = reader.record(1)
    assert reader.find("1") == reader.find(record.id.hex()) == reader.find("r1") == [record]
    for unknown in ("999", "f" * 32, "who"):
        with pytest.raises(NotFound):
            reader.find(unknown)
    with pytest.raises(NotFound):
        reader.record(-1)
    block = reader.block_of(105)
    assert block is not None
    assert block.header.first <= 105 < block.header.end
    assert reader.block_of(500) is None
    with pytest.raises(NotFound):
        reader.root(500)
    assert reader.bindings() == [0]
    reader.close()


async def test_replays_check_what_they_read(tmp_path: Path) -> None:
    """To any size; changed and missing events are named."""
    await fill(tmp_path, 50)
    reader = LogReader.of_folder(tmp_path)
    assert replay(reader.tables, CountingFold(), 11).state == {"events": 11, "held": 10_000_000}
    assert replay(reader.tables, CountingFold(), 0).size == 0
    with pytest.raises(NotFound):
        replay(reader.tables, CountingFold(), 99)
    reader.close()
    change(tmp_path, "DELETE FROM snapshots", "UPDATE events SET body = x'00' WHERE seq = 9")
    reader = LogReader.of_folder(tmp_path)
    assert check_snapshot(reader.tables, CountingFold()) is None
    with pytest.raises(CorruptRecord, match="event 9 "):
        replay(reader.tables, CountingFold())
    reader.close()
    change(tmp_path, "DELETE FROM events WHERE seq = 4")
    reader = LogReader.of_folder(tmp_path)
    with pytest.raises(CorruptRecord, match="event 4 "):
        replay(reader.tables, CountingFold())
    reader.close()
    change(tmp_path, "DELETE FROM events WHERE seq > 3 AND seq < 50")
    reader = LogReader.of_folder(tmp_path)
    with pytest.raises(CorruptRecord):
        replay(reader.tables, CountingFold(), 30)
    reader.close()


def test_errors_of_disks_are_said_in_a_line(tmp_path: Path) -> None:
    """Full, damaged, not openable, and the rest."""
    path = tmp_path / "log.db"
    assert isinstance(as_condition(sqlite3.OperationalError("database or disk is full"), path), DiskFull)
    assert isinstance(
        as_condition(sqlite3.DatabaseError("database disk image is malformed"), path), CorruptRecord
    )
    assert isinstance(
        as_condition(sqlite3.OperationalError("unable to open database file"), path), DataDirError
    )
    assert isinstance(as_condition(sqlite3.OperationalError("database is locked"), path), DataDirError)
    assert isinstance(folder_condition(OSError(errno.EACCES, "denied"), tmp_path), DataDirError)
    with pytest.raises(DataDirError):
        publish_checkpoint(tmp_path / "none", "x")
    with pytest.raises(DataDirError):
        verify_folder(tmp_path)


async def test_seals_can_be_held_back_for_a_while(tmp_path: Path) -> None:
    """Not for longer, not for more events than a tile, and not by a clock that goes back."""
    clock = ManualClock()
    log: SqliteLog[Any] = SqliteLog.open(tmp_path, node_identity(), now_ms=clock)
    await log.hold(LOG_HOLD_MS)
    await log.append([started() for _ in range(120)])
    clock.advance(LOG_BLOCK_MS + 1)
    await log.tick()
    assert log.block_count == 1
    clock.advance(LOG_HOLD_MS - LOG_BLOCK_MS)
    await log.tick()
    assert log.block_count == 2
    await log.hold(LOG_HOLD_MS)
    await log.append([started() for _ in range(LOG_HELD_EVENTS_MAX)])
    assert log.block_count == 3
    await log.append([started()])
    clock.advance(-LOG_HOLD_MS)
    await log.tick()
    assert log.block_count == 4
    clock.advance(2 * LOG_HOLD_MS)
    await log.hold(LOG_HOLD_MS)
    await log.append([started() for _ in range(LOG_BLOCK_EVENTS)])
    await log.hold(0)
    await log.append([started()])
    assert log.block_count == 5
    await log.close()
    assert verify_folder(tmp_path).ok
