"""SqliteLog keeps the event log's contract, and what only a log on a disk can promise."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import CorruptRecord, DataDirError, LogFailed, RollbackRefused
from p2pnode.events.database import connect_reader, connect_writer
from p2pnode.events.folder import CHECKPOINT, DATABASE, LOG_DIR
from p2pnode.events.note import open_checkpoint
from p2pnode.events.store import SqliteLog
from p2pnode.events.verify import verify_folder
from tests.contract.event_log_contract import CountingFold, EventLogContract
from tests.kit.log_events import ManualClock, accepted, held, node_identity, seeded_bytes, started


class TestSqliteLog(EventLogContract):
    def make(self, folder: Path, fold: Any) -> Any:
        return SqliteLog.open(folder, node_identity(), fold=fold, now_ms=self.clock, rng=seeded_bytes(1))


def reopen(folder: Path, **options: Any) -> SqliteLog[Any]:
    return SqliteLog.open(folder, node_identity(), fold=CountingFold(), now_ms=ManualClock(), **options)


async def test_a_log_comes_back_as_it_was(tmp_path: Path) -> None:
    """Events, state, keys, ids, idempotency keys and the published checkpoint survive."""
    log = reopen(tmp_path)
    await log.append([held(n) for n in range(250)], idempotency_key="k")
    await log.rotate_keys()
    size, keys, entries = log.size, log.keys, log.entries(0, 999)
    await log.close()
    assert not (tmp_path / LOG_DIR / f"{DATABASE}-wal").exists()

    again = reopen(tmp_path)
    assert (again.size, again.entries(0, 999)) == (size, entries)
    assert again.keys.log_verifier == keys.log_verifier
    assert again.state == {"events": size, "held": 250_000_000}
    assert again.replayed_count == 0, "the snapshot taken at closing was used"
    assert await again.append([held(n) for n in range(250)], idempotency_key="k") == list(range(1, 251))
    checkpoint, _ = open_checkpoint((tmp_path / LOG_DIR / CHECKPOINT).read_text(), keys.log_verifier)
    assert checkpoint.size == size
    (index,) = await again.append([started()])
    assert index == size
    assert again.read(index, index + 1)[0].id > again.read(index - 1, index)[0].id
    await again.close()
    assert verify_folder(tmp_path, peer=node_identity().peer_id).ok


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A second node on the same folder is told so; readers and verifiers are welcome."""
    log = reopen(tmp_path)
    await log.append([started()])
    with pytest.raises(DataDirError, match="another p2pnode"):
        reopen(tmp_path)
    assert verify_folder(tmp_path).ok
    await log.close()
    await reopen(tmp_path).close()


async def test_the_tables_refuse_changes_and_readers_can_not_write(tmp_path: Path) -> None:
    """By triggers for whoever writes, by the connection for whoever reads."""
    log = reopen(tmp_path)
    await log.append([started()])
    await log.close()
    path = tmp_path / LOG_DIR / DATABASE
    writer = connect_writer(path)
    for table in ("events", "bindings", "frauds", "tiles", "blocks", "idempotency"):
        if table == "frauds":
            writer.execute("INSERT INTO frauds VALUES (1)")
        if table == "tiles":
            writer.execute("INSERT INTO tiles VALUES (1, x'00')")
        if table == "idempotency":
            writer.execute("INSERT INTO idempotency VALUES ('a', 'k', x'00', 0, 1)")
        column = {
            "events": "body",
            "bindings": "seq",
            "frauds": "seq",
            "tiles": "hashes",
            "blocks": "header",
        }.get(table, "key")
        for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET {column} = {column}"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                writer.execute(statement)
    writer.close()
    reader = connect_reader(path)
    with pytest.raises(sqlite3.OperationalError):
        reader.execute("DELETE FROM snapshots")
    reader.close()


async def test_a_failed_commit_is_final_and_opening_again_recovers(tmp_path: Path) -> None:
    """Callers learn that it is unknown; later ones are refused; the disk decides when it is opened again."""

    class Failing:
        def __init__(self, inner: Any) -> None:
            self.inner, self.is_failing = inner, False

        def execute(self, sql: str, *arguments: Any) -> Any:
            if self.is_failing and sql == "COMMIT":
                raise sqlite3.OperationalError("disk I/O error")
            return self.inner.execute(sql, *arguments)

        def executemany(self, sql: str, rows: Any) -> Any:
            return self.inner.executemany(sql, rows)

        def close(self) -> None:
            self.inner.close()

    made: list[Failing] = []

    def connect(path: Path) -> Any:
        made.append(Failing(connect_writer(path)))
        return made[0]

    log = reopen(tmp_path, connect=connect)
    failures: list[LogFailed] = []
    log.on_failure(failures.append)
    await log.append([started()])
    made[0].is_failing = True
    answers = await asyncio.gather(*(log.append([held(n)]) for n in range(5)), return_exceptions=True)
    assert all(isinstance(answer, LogFailed) for answer in answers)
    with pytest.raises(LogFailed):
        await log.append([started()])
    assert failures == [log.failure]
    await log.close()
    again = reopen(tmp_path)
    assert again.size == 2
    assert again.state["held"] == 0
    await again.close()


async def test_a_subscriber_that_fails_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The others hear the event and its caller is answered."""
    log = reopen(tmp_path)
    heard: list[int] = []

    def fail(record: Any) -> None:
        raise RuntimeError("a bug elsewhere")

    log.subscribe(fail)
    log.subscribe(lambda record: heard.append(record.index))
    await log.append([started()])
    assert heard == [1]
    assert "a subscriber failed at event 1" in caplog.text
    await log.close()


async def test_a_restored_backup_is_not_signed(tmp_path: Path) -> None:
    """A log shorter than the published checkpoint is refused, or goes on under a new name."""
    log = reopen(tmp_path)
    await log.append([started()])
    await log.close()
    path = tmp_path / LOG_DIR / DATABASE
    backup = path.read_bytes()
    log = reopen(tmp_path)
    await log.append([started(), started()])
    await log.close()
    path.write_bytes(backup)
    with pytest.raises(RollbackRefused):
        reopen(tmp_path)
    log = reopen(tmp_path, accept_rollback=True)
    assert log.keys.origin.endswith("/1")
    await log.append([accepted()])
    await log.close()
    await reopen(tmp_path).close()
    report = verify_folder(tmp_path)
    assert report.ok
    assert report.origin.endswith("/1")


async def test_a_log_of_another_node_is_refused(tmp_path: Path) -> None:
    """Key and log belong together."""
    await reopen(tmp_path).close()
    with pytest.raises(CorruptRecord, match="belongs to"):
        SqliteLog.open(tmp_path, node_identity(2))
    await reopen(tmp_path).close()


async def test_a_snapshot_is_only_believed_when_everything_agrees(tmp_path: Path) -> None:
    """Another code version or a changed state means folding from the beginning."""
    log = reopen(tmp_path)
    await log.append([held(n) for n in range(7)])
    await log.close()

    class Newer(CountingFold):
        version = "2"

    newer = SqliteLog.open(tmp_path, node_identity(), fold=Newer())
    assert newer.replayed_count == 8
    assert newer.state["held"] == 7_000_000
    await newer.append([held(8)])
    await newer.close()
    path = tmp_path / LOG_DIR / DATABASE
    writer = connect_writer(path)
    writer.execute("UPDATE snapshots SET state = x'00'")
    writer.close()
    newer = SqliteLog.open(tmp_path, node_identity(), fold=Newer())
    assert newer.replayed_count == 9
    await newer.close()

    class Unreadable(Newer):
        def load(self, raw: bytes) -> dict[str, int]:
            raise CorruptRecord("written by other code of the same version")

    log = SqliteLog.open(tmp_path, node_identity(), fold=Unreadable())
    assert log.replayed_count == log.size
    await log.close()


async def test_folders_that_can_not_be_used_are_named_in_one_line(tmp_path: Path) -> None:
    """A file in the way, a database that is none, a log of the future."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirError):
        reopen(tmp_path / "file")
    (tmp_path / "a" / LOG_DIR).mkdir(parents=True)
    (tmp_path / "a" / LOG_DIR / DATABASE).write_bytes(b"not a database, but long enough for one" * 99)
    with pytest.raises(CorruptRecord, match="damaged"):
        reopen(tmp_path / "a")
    await reopen(tmp_path / "b").close()
    writer = connect_writer(tmp_path / "b" / LOG_DIR / DATABASE)
    writer.execute("PRAGMA user_version = 9")
    writer.close()
    with pytest.raises(DataDirError, match="format 9"):
        reopen(tmp_path / "b")


async def test_a_read_only_folder_can_be_verified(tmp_path: Path) -> None:
    """Verification needs no right to write."""
    log = reopen(tmp_path)
    await log.append([started()])
    await log.close()
    folder = tmp_path / LOG_DIR
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert verify_folder(tmp_path).ok
    finally:
        folder.chmod(stat.S_IRWXU)
