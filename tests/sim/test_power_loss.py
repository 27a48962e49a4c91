"""Power cuts, failing disks and killed processes: nothing that was acknowledged is ever lost.

The real committer runs on a simulated disk. Not simulated: lost directory entries and faults of the file
system; shared memory (the WAL is in exclusive mode).
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from p2pnode.errors import CorruptRecord, LogFailed
from p2pnode.events.committer import Committer
from p2pnode.events.database import connect_writer, create_schema
from p2pnode.events.folder import DATABASE
from p2pnode.events.log import NewEvent, NoFold
from p2pnode.events.store import SqliteLog
from p2pnode.events.tables import Tables
from p2pnode.events.verify import verify_folder, verify_tables
from tests.kit.faulty_disk import (
    Operation,
    after_power_cut,
    exclusive,
    failing_disk,
    fast_folder,
    recording_disk,
)
from tests.kit.log_events import ManualClock, held, node_identity, seeded_bytes

SETUP = 10_000
"""Numbers for idempotency keys, apart from those of the events."""


@pytest.fixture
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        yield Path(folder)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def open_committer(connection: Any, clock: ManualClock) -> Committer[Any]:
    create_schema(connection)
    fold: Any = NoFold()
    return Committer(connection, node_identity(), fold, clock, seeded_bytes(3))


def work(committer: Committer[Any], clock: ManualClock, seed: int, commits: int) -> Iterator[int]:
    """Commits of one to six events, now and then a seal; yields the size that was acknowledged."""
    rng = random.Random(seed)
    for number in range(commits):
        clock.advance(rng.choice((1, 50, 20_000)))
        events = [NewEvent(held(number * 10 + i)) for i in range(rng.randrange(1, 7))]
        key = f"k{number}"
        results, _ = committer.run([lambda c, e=events, k=key: c.submit(lambda _: e, "local", k, b"")])
        assert not isinstance(results[0], Exception)
        yield committer.assembler.size


def record_workload(folder: Path, seed: int, *, drops_syncs: bool = False) -> list[Operation]:
    empty(folder)
    operations: list[Operation] = []
    clock = ManualClock()
    with recording_disk(operations, drops_syncs=drops_syncs) as vfs:
        checkpointing = random.Random(seed).choice((10, 50, 1000))
        connection = exclusive(folder / DATABASE, vfs, checkpointing)
        committer = open_committer(connection, clock)
        operations.append(("ack", "", committer.assembler.size, b""))
        operations.extend(("ack", "", size, b"") for size in work(committer, clock, seed, 40))
        connection.close()
    return operations


def recover(folder: Path, files: dict[str, bytes], acknowledged: int) -> str:
    """Open what the cut left, as a start of the node would, and recompute all of it."""
    empty(folder)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    connection = None
    try:
        connection = connect_writer(folder / DATABASE)
        committer = open_committer(connection, ManualClock())
        if committer.assembler.size < acknowledged:
            return "lost"
        report = verify_tables(Tables(connection))
        return "ok" if report.ok else "corrupt"
    except (CorruptRecord, LogFailed):
        return "corrupt"
    except Exception as error:
        if "malformed" in str(error) or "corrupt" in str(error) or "not a database" in str(error):
            return "corrupt"
        raise
    finally:
        if connection is not None:
            connection.close()


def campaign(folder: Path, cuts: int, seed: int, *, drops_syncs: bool = False) -> Counter[str]:
    found: Counter[str] = Counter()
    rng = random.Random(seed)
    while found.total() < cuts:
        operations = record_workload(folder, rng.randrange(1 << 30), drops_syncs=drops_syncs)
        first = next(i for i, operation in enumerate(operations) if operation[0] == "ack")
        for _ in range(min(100, cuts - found.total())):
            cut = rng.randrange(0 if not drops_syncs else first, len(operations)) + 1
            found[recover(folder, *after_power_cut(operations, cut, rng))] += 1
    return found


def test_power_cuts_lose_nothing(scratch: Path) -> None:
    """Unsynced writes dropped, reordered and torn at any moment: every acknowledged event is there."""
    assert campaign(scratch, 500, seed=1) == {"ok": 500}


def test_the_simulation_notices_a_disk_that_lies(scratch: Path) -> None:
    """With syncs dropped the same campaign must find losses, or it would prove nothing."""
    found = campaign(scratch, 60, seed=2, drops_syncs=True)
    assert found["lost"] + found["corrupt"] > 20


@pytest.mark.slow
def test_ten_thousand_power_cuts_lose_nothing(scratch: Path) -> None:
    """The same, at length."""
    assert campaign(scratch, 10_000, seed=3) == {"ok": 10_000}


def io_faults(folder: Path, step: int) -> Counter[str]:
    """Fail one write, truncate or sync, once or from then on, as an I/O error or a full disk."""

    def run(failing_at: int, persistent: bool, kind: str) -> tuple[int, str]:
        empty(folder)

        def should_fail(operation: str, count: int) -> Exception | None:
            if not armed or not (count == failing_at or (persistent and count >= failing_at)):
                return None
            full = kind == "full" and operation == "w"
            return apsw.FullError("disk is full") if full else apsw.IOError("injected")

        armed = False
        clock = ManualClock()
        with failing_disk(should_fail) as (vfs, count):
            connection = exclusive(folder / DATABASE, vfs, 10)
            committer = open_committer(connection, clock)
            acknowledged, surfaced = committer.assembler.size, False
            count[0], armed = 0, True
            try:
                for size in work(committer, clock, 5, 30):
                    acknowledged = size
            except LogFailed:
                surfaced = True
            operations, armed = count[0], False
            try:
                connection.close(True)
            except apsw.Error:
                surfaced = True
        again = connect_writer(folder / DATABASE)
        recovered = open_committer(again, ManualClock())
        size = recovered.assembler.size
        ok = verify_tables(Tables(again)).ok and size >= acknowledged
        again.close()
        if not ok:
            return operations, "lost or corrupt"
        return operations, "surfaced" if surfaced else "harmless"

    total, _ = run(-1, False, "io")
    found: Counter[str] = Counter()
    for kind in ("io", "full"):
        for persistent in (False, True):
            for at in range(1, total + 1, step):
                found[run(at, persistent, kind)[1]] += 1
    return found


def test_io_errors_are_final_and_lose_nothing(scratch: Path) -> None:
    """A sample of all operations in all four ways."""
    found = io_faults(scratch, step=9)
    assert found["lost or corrupt"] == 0
    assert found["surfaced"] > 40


@pytest.mark.slow
def test_every_io_error_is_final_and_loses_nothing(scratch: Path) -> None:
    """Each operation, each way."""
    found = io_faults(scratch, step=1)
    assert found["lost or corrupt"] == 0
    assert found.total() >= 620


WORKER = """
import asyncio, sys
from pathlib import Path
from p2pnode.events.store import SqliteLog
from tests.kit.log_events import held, node_identity

async def main():
    log = SqliteLog.open(Path(sys.argv[1]), node_identity())
    async def caller():
        while True:
            (index,) = await log.append([held(1)])
            sys.stdout.buffer.write(b"%d\\n" % index)
            sys.stdout.buffer.flush()
    await asyncio.gather(*(caller() for _ in range(16)))

asyncio.run(main())
"""


def kill_while_writing(folder: Path, acknowledgements: int) -> None:
    """Kill a writing process after it has acknowledged so many events; what it told must be there."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(acknowledgements)]
    process.send_signal(signal.SIGKILL)
    told += [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    process.stdout.close()
    process.wait()
    log: SqliteLog[Any] = SqliteLog.open(folder, node_identity())
    assert log.size > max(told)
    log.close_blocking()
    assert verify_folder(folder).ok


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    """Twice into the same folder."""
    for acknowledgements in (1, 700):
        kill_while_writing(tmp_path, acknowledgements)


@pytest.mark.slow
def test_a_hundred_and_fifty_killed_processes_lose_nothing(tmp_path: Path) -> None:
    """At as many different moments."""
    rng = random.Random(150)
    for _ in range(150):
        kill_while_writing(tmp_path, rng.randrange(1, 1500))
