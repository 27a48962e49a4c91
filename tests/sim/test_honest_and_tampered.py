"""Random lives of logs: an honest one is never doubted, a tampered one never passes.

Doubted by whom: `verify` with every checkpoint anybody saw, and a witness at each contact.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import BadCheckpoint, CorruptRecord, RollbackRefused
from p2pnode.events.codec import Record, decode, encode
from p2pnode.events.database import connect_writer
from p2pnode.events.folder import CHECKPOINT, DATABASE, LOG_DIR
from p2pnode.events.keys import encode_binding
from p2pnode.events.log import NoFold
from p2pnode.events.memory import MemoryLog
from p2pnode.events.merkle import leaf_hash
from p2pnode.events.store import SqliteLog
from p2pnode.events.types import PeerEquivocated
from p2pnode.events.verify import verify_folder
from p2pnode.events.witnessing import gather_cosignature
from tests.kit.faulty_disk import fast_folder
from tests.kit.log_events import ManualClock, held, node_identity, seeded_bytes

PEER = node_identity(1).peer_id


@pytest.fixture
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        yield Path(folder)


class Life:
    """A log that grows by chance beside a witness; `seen` are the checkpoints that left the node."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.clock = folder, random.Random(seed), ManualClock()
        self.witness: MemoryLog[Any] = MemoryLog(node_identity(2), now_ms=self.clock, rng=seeded_bytes(seed))
        self.known = 0
        self.seen: list[str] = []
        self.log = self.open()

    def open(self) -> SqliteLog[Any]:
        fold: Any = NoFold()
        return SqliteLog.open(
            self.folder, node_identity(1), fold=fold, now_ms=self.clock, rng=self.rng.randbytes
        )

    async def step(self) -> None:
        self.clock.advance(self.rng.choice((0, 1, 500, 40_000, 4_000_000, -5_000)))
        match self.rng.randrange(10):
            case 0 | 1 | 2 | 3:
                count = self.rng.choice((1, 1, 2, 5, 30, 130))
                await self.log.append([held(self.rng.randrange(10**6)) for _ in range(count)])
            case 4:
                await self.log.seal()
            case 5 | 6:
                await self.be_witnessed()
            case 7:
                await self.log.close()
                self.log = self.open()
            case 8:
                await self.die()
            case _:
                await self.log.rotate_keys()

    async def be_witnessed(self) -> None:
        async def ask(body: str) -> tuple[int, str]:
            binding = encode_binding(self.log.reader.record(self.log.reader.bindings()[-1]).event)  # type: ignore[arg-type]
            answer = await self.witness.witness(PEER, body, binding)
            return answer.status, answer.body

        known = self.rng.choice((0, self.known))
        self.known = await gather_cosignature(self.log, self.witness.keys.bound(), ask, known)
        self.seen.append(self.log.checkpoint() or "")

    async def die(self) -> None:
        """What was committed when the power went is what is found again."""
        await self.log.tick()
        copy = self.folder.with_name(f"{self.folder.name}-died")
        shutil.copytree(self.folder, copy)
        await self.log.close()
        shutil.rmtree(self.folder)
        copy.rename(self.folder)
        self.log = self.open()


async def live(folder: Path, seed: int, steps: int) -> Life:
    life = Life(folder, seed)
    for _ in range(steps):
        await life.step()
    return life


async def honest_runs(scratch: Path, count: int) -> int:
    """How many random lives raised an alarm anywhere."""
    alarms = 0
    for seed in range(count):
        life = await live(scratch / str(seed), seed, 8)
        await life.log.close()
        report = verify_folder(life.folder, peer=PEER, checkpoints=life.seen)
        told = [r for r in life.witness.read(0, 999) if isinstance(r.event, PeerEquivocated)]
        alarms += not report.ok or bool(told)
        await life.witness.close()
        shutil.rmtree(life.folder)
    return alarms


async def test_honest_logs_raise_no_alarm(scratch: Path) -> None:
    """They grow, are sealed, witnessed, restarted, killed, given new keys, under a clock that jumps."""
    assert await honest_runs(scratch, 60) == 0


@pytest.mark.slow
async def test_ten_thousand_honest_logs_raise_no_alarm(scratch: Path) -> None:
    """The same, at length."""
    assert await honest_runs(scratch, 10_000) == 0


# --- tampering --------------------------------------------------------------------------------------
def rows(c: Any, *indexes: int) -> list[Any]:
    marks = ",".join("?" * len(indexes))
    found = c.execute(f"SELECT seq, id, body, leaf FROM events WHERE seq IN ({marks}) ORDER BY seq", indexes)
    return list(found.fetchall())


def edited(body: bytes) -> bytes:
    """The same envelope, another amount."""
    record = decode(body)
    return encode(Record(*(getattr(record, f) for f in record.__struct_fields__[:-1]), held(7, 9_999_999)))


def edit(c: Any, size: int, rng: random.Random) -> None:
    index = rng.randrange(1, size)
    c.execute("UPDATE events SET body = ? WHERE seq = ?", (edited(rows(c, index)[0][2]), index))


def edit_and_repair(c: Any, size: int, rng: random.Random) -> None:
    index = rng.randrange(1, size)
    body = edited(rows(c, index)[0][2])
    c.execute("UPDATE events SET body = ?, leaf = ? WHERE seq = ?", (body, leaf_hash(body), index))


def swap(c: Any, size: int, rng: random.Random) -> None:
    first = rng.randrange(1, size - 1)
    one, two = rows(c, first, first + 1)
    c.execute("DELETE FROM events WHERE seq IN (?, ?)", (first, first + 1))
    for seq, (_, event_id, body, leaf) in ((first, two), (first + 1, one)):
        c.execute("INSERT INTO events VALUES (?, ?, NULL, ?, ?)", (seq, event_id, body, leaf))


def delete_and_renumber(c: Any, size: int, rng: random.Random) -> None:
    index = rng.randrange(1, size - 1)
    c.execute("DELETE FROM events WHERE seq = ?", (index,))
    for seq in range(index + 1, size):
        c.execute("UPDATE events SET seq = ? WHERE seq = ?", (seq - 1, seq))


def cut_tail(c: Any, size: int, rng: random.Random) -> None:
    """With all that would tell: blocks, tiles, and (by the caller) the published checkpoint.

    `size` is what was witnessed: what nobody saw can be taken back unseen.
    """
    keep = rng.choice([end for (end,) in c.execute("SELECT end FROM blocks").fetchall() if end < size])
    for table, column in (("events", "seq"), ("blocks", "end - 1"), ("bindings", "seq"), ("frauds", "seq")):
        c.execute(f"DELETE FROM {table} WHERE {column} >= ?", (keep,))
    c.execute("DELETE FROM cosignatures WHERE size > ?", (keep,))
    c.execute("DELETE FROM snapshots")
    for (place,) in c.execute("SELECT place FROM tiles").fetchall():
        level, index = place >> 56, place & ((1 << 56) - 1)
        if (index + 1) << (8 * (level + 1)) > keep:
            c.execute("DELETE FROM tiles WHERE place = ?", (place,))


TABLES: dict[str, Callable[[Any, int, random.Random], None]] = {
    "edit": edit,
    "edit with leaf repaired": edit_and_repair,
    "swap": swap,
    "delete and renumber": delete_and_renumber,
    "cut tail": cut_tail,
}
FOLDERS = ("replaced key", "stale checkpoint", "restored backup")


async def tampered(scratch: Path, kind: str, seed: int) -> str:
    """Who notices: `verify`, the start of the node, the witness, or nobody."""
    life = await live(scratch / f"{seed}", seed, 6)
    await life.log.append([held(number) for number in range(5)])
    await life.be_witnessed()
    folder, backup = life.folder, scratch / f"{seed}-backup"
    await life.log.close()
    shutil.copytree(folder, backup)
    stale = (folder / LOG_DIR / CHECKPOINT).read_text()
    life.log = life.open()
    await life.log.append([held(number) for number in range(20)])
    await life.log.seal()
    await life.be_witnessed()
    size = life.log.size
    await life.log.close()
    if kind in TABLES:
        connection = connect_writer(folder / LOG_DIR / DATABASE)
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        TABLES[kind](connection, life.known if kind == "cut tail" else size, life.rng)
        connection.close()
        if kind == "cut tail":
            (folder / LOG_DIR / CHECKPOINT).unlink()
    elif kind == "replaced key":
        shutil.rmtree(folder)
        log: SqliteLog[Any] = SqliteLog.open(folder, node_identity(3), now_ms=life.clock)
        await log.append([held(number) for number in range(size)])
        await log.close()
    elif kind == "stale checkpoint":
        (folder / LOG_DIR / CHECKPOINT).write_text(stale)
    else:
        shutil.rmtree(folder)
        backup.rename(folder)
    report = verify_folder(folder, peer=PEER)
    try:
        return "verify" if not report.ok or report.warnings else await _noticed_later(life)
    finally:
        await life.witness.close()
        shutil.rmtree(folder)
        shutil.rmtree(backup, ignore_errors=True)


async def _noticed_later(life: Life) -> str:
    try:
        life.log = life.open()
    except (CorruptRecord, RollbackRefused):
        return "start"
    try:
        await life.be_witnessed()
    except (RollbackRefused, BadCheckpoint):
        return "witness"
    finally:
        await life.log.close()
    return "nobody"


async def campaign(scratch: Path, count: int) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for number in range(count):
        for kind in (*TABLES, *FOLDERS):
            found.setdefault(kind, Counter())[await tampered(scratch, kind, number)] += 1
    return found


def check(found: dict[str, Counter[str]], count: int) -> None:
    for kind, by in found.items():
        assert by["nobody"] == 0, (kind, by)
        assert by.total() == count
    by_witness = {kind for kind, by in found.items() if by["witness"]}
    assert by_witness == {"cut tail", "restored backup"}, "the others are seen without one"


async def test_no_tamper_passes(scratch: Path) -> None:
    """Eight ways, each on random logs."""
    check(await campaign(scratch, 8), 8)


@pytest.mark.slow
async def test_sixteen_hundred_tampers_do_not_pass(scratch: Path) -> None:
    """The same, at length."""
    found = await campaign(scratch, 200)
    print({kind: dict(by) for kind, by in found.items()})
    check(found, 200)


def test_the_campaigns_are_not_blind(scratch: Path) -> None:
    """Without tampering nobody notices anything: what is counted above is the tampering."""

    async def run() -> str:
        life = await live(scratch / "plain", 3, 6)
        await life.be_witnessed()
        await life.log.close()
        report = verify_folder(life.folder, peer=PEER)
        assert report.ok
        assert not report.warnings
        return await _noticed_later(life)

    assert asyncio.run(run()) == "nobody"
