"""The record beside the PyPI package `eventsourcing`: appends, replay, cold start, proofs, bytes.

    python -m bench.record [--events 1000000] [--quick] [--out bench/results/record.json]

Needs `pip install p2pnode[bench]`. Appends and replays of both are interleaved and medians reported, so that
ratios hold on a busy machine; the disk's own sync time stands beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from bench.record_baseline import append_theirs, append_theirs_concurrently, replay_theirs
except ImportError:
    print("the comparison needs the package eventsourcing: pip install -e .[bench]")
    sys.exit(0)

from p2pnode.events.committer import Committer
from p2pnode.events.database import connect_writer, create_schema
from p2pnode.events.folder import DATABASE, LOG_DIR
from p2pnode.events.log import NewEvent
from p2pnode.events.merkle import leaf_hash, root_of, verify_inclusion
from p2pnode.events.reader import LogReader
from p2pnode.events.replay import replay
from p2pnode.events.store import SqliteLog
from p2pnode.events.types import CreditHeld, CreditSettled, CreditToppedUp, Event
from p2pnode.identity import Identity
from p2pnode.projections import MeshFold

CALLERS = 64
ACCOUNTS = 50
Json = dict[str, Any]


def identity() -> Identity:
    return Identity.from_seed(bytes(31) + b"\x01")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    scale = 10 if arguments.quick else 1
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as raw:
        folder = Path(raw)
        results: Json = {"machine": machine()}
        results["append"] = appends(folder, 30_000 // scale, rounds=3)
        results["replay"] = replays(folder, 100_000 // scale, rounds=5)
        results["large"] = large_log(folder / "large", arguments.events // scale)
        results["size"] = bytes_per_event(folder / "size", 20_000 // scale)
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


def machine() -> Json:
    cpu = next(
        (li.split(":")[1].strip() for li in _lines("/proc/cpuinfo") if li.startswith("model name")), ""
    )
    return {
        "command": "python -m bench.record " + " ".join(sys.argv[1:]),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_1m": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "eventsourcing": version("eventsourcing"),
        "msgspec": version("msgspec"),
    }


def fsync_p50_us(folder: Path, count: int = 300) -> float:
    """What the disk takes to make 300 bytes durable."""
    times = []
    with (folder / "sync").open("wb") as file:
        for _ in range(count):
            file.write(bytes(300))
            file.flush()
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started)
    return round(statistics.median(times) * 1e6, 1)


# --- appends ----------------------------------------------------------------------------------------
def appends(folder: Path, count: int, rounds: int) -> Json:
    """Durable appends of both, in turn: 64 callers who each wait for their own event, and batches of 100."""
    runs = []
    for number in range(rounds):
        before_us = fsync_p50_us(folder)
        ours = asyncio.run(append_ours(folder / f"ours{number}", count, CALLERS))
        single = asyncio.run(append_ours(folder / f"single{number}", max(count // 30, 200), 1))
        batches = asyncio.run(append_ours_in_batches(folder / f"batches{number}", count))
        theirs = append_theirs_concurrently(folder / f"theirs{number}.db", max(count // 10, 640), CALLERS)
        their_batches = append_theirs(folder / f"their_batches{number}.db", count // 3, ACCOUNTS)
        runs.append(
            {
                "fsync_p50_us": statistics.median((before_us, fsync_p50_us(folder))),
                "callers_ours_per_s": ours["per_s"],
                "callers_ours_p50_ms": ours["p50_ms"],
                "callers_ours_p99_ms": ours["p99_ms"],
                "callers_theirs_per_s": theirs,
                "callers_ratio": round(ours["per_s"] / theirs, 2),
                "batches_ours_per_s": batches,
                "batches_theirs_per_s": their_batches,
                "batches_ratio": round(batches / their_batches, 2),
                "single_ours_per_s": single["per_s"],
                "single_ours_p99_ms": single["p99_ms"],
            }
        )
    return {"events": count, "callers": CALLERS, "median": medians(runs), "runs": runs}


async def append_ours_in_batches(folder: Path, count: int, batch: int = 100) -> int:
    """One caller, a hundred events at a time."""
    log: SqliteLog[Any] = SqliteLog.open(folder, identity(), fold=MeshFold())
    started = time.perf_counter()
    for first in range(0, count, batch):
        events = [NewEvent(held(n), correlation=f"req-{n}") for n in range(first, first + batch)]
        await log.submit(lambda _, events=events: events)  # type: ignore[misc]  # bound now
    elapsed = time.perf_counter() - started
    await log.close()
    return round(count / elapsed)


async def append_ours(folder: Path, count: int, callers: int) -> Json:
    """The whole path: decide against the folded state, encode, hash, index, tile, seal, sync, answer."""
    log: SqliteLog[Any] = SqliteLog.open(folder, identity(), fold=MeshFold())
    latencies: list[float] = []

    async def caller(number: int) -> None:
        for turn in range(count // callers):
            new = held(number * 1_000_000 + turn)
            started = time.perf_counter()
            await log.submit(lambda _, new=new: [NewEvent(new, correlation=new.request_id)])  # type: ignore[misc]  # bound now
            latencies.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    elapsed = time.perf_counter() - started
    await log.close()
    return {
        "per_s": round(len(latencies) / elapsed),
        "p50_ms": round(statistics.median(latencies) * 1e3, 2),
        "p99_ms": percentile_ms(latencies, 0.99),
    }


# --- replay -----------------------------------------------------------------------------------------
def replays(folder: Path, count: int, rounds: int) -> Json:
    """From the database to balances: every event read, decoded and folded; per second of processor time,
    since both are bound by it and the machine may be shared."""
    ours, theirs = folder / "replay", folder / "replay.db"
    write_fast(ours, count)
    append_theirs(theirs, count // 2, ACCOUNTS)
    runs = []
    for _ in range(rounds):
        reader = LogReader(ours / LOG_DIR / DATABASE)
        started = time.process_time()
        whole = replay(reader.tables, MeshFold())
        whole_s = time.process_time() - started
        started = time.process_time()
        balances_only(reader)
        balances_s = time.process_time() - started
        reader.close()
        theirs_per_s = replay_theirs(theirs)
        runs.append(
            {
                "whole_state_verified_per_s": round(whole.size / whole_s),
                "balances_per_s": round(whole.size / balances_s),
                "theirs_per_s": theirs_per_s,
                "ratio": round(whole.size / balances_s / theirs_per_s, 2),
            }
        )
    return {"events": count, "median": medians(runs), "runs": runs}


def balances_only(reader: LogReader) -> dict[str, int]:
    """The least that gives balances: decode everything, fold what moves money."""
    from p2pnode.events.codec import decode_trusted
    from p2pnode.units import EventIndex

    balances: dict[str, int] = {}
    for index, body in reader.tables.connection.execute("SELECT seq, body FROM events ORDER BY seq"):
        event_ = decode_trusted(body, EventIndex(index)).event
        if type(event_) is CreditToppedUp:
            balances[event_.account] = balances.get(event_.account, 0) + event_.amount_microunits
        elif type(event_) is CreditSettled:
            balances[event_.payer] = balances.get(event_.payer, 0) - event_.amount_microunits
            for account, amount in event_.shares:
                balances[account] = balances.get(account, 0) + amount
    return balances


# --- a large log ------------------------------------------------------------------------------------
def large_log(folder: Path, count: int) -> Json:
    """Cold start with and without a snapshot, proofs, sealing, memory."""
    write_s = write_fast(folder, count)
    before_mb = rss_mb()
    without = cold_start(folder)
    with_snapshot = [cold_start(folder) for _ in range(3)]
    rebuild = asyncio.run(rebuilt_beside(folder))
    reader = LogReader(folder / LOG_DIR / DATABASE)
    size, rng = reader.size, random.Random(1)
    root = reader.root(size)
    inclusion, consistency = [], []
    for _ in range(500):
        index, older = rng.randrange(size), rng.randrange(1, size)
        inclusion.append(timed_cpu(lambda index=index: reader.inclusion_proof(index, size)))
        consistency.append(timed_cpu(lambda older=older: reader.consistency_proof(older, size)))
    leaf = leaf_hash(reader.entries(5, 6)[0])
    proof = reader.inclusion_proof(5, size)
    verify_s, holds = timed(lambda: verify_inclusion(leaf, 5, size, proof, root))
    assert holds
    leaves = reader.tables.leaves(0, size)
    recompute_s, again = timed(lambda: root_of(leaves))
    assert again == root
    reader.close()
    return {
        "events": size,
        "write_per_s": round(count / write_s),
        "cold_start_without_snapshot_s": without,
        "cold_start_with_snapshot_s": statistics.median(with_snapshot),
        **rebuild,
        "memory_growth_mb": round(rss_mb() - before_mb),
        "inclusion_p50_ms": percentile_ms([wall for wall, _ in inclusion], 0.5),
        "inclusion_p99_ms": percentile_ms([wall for wall, _ in inclusion], 0.99),
        "inclusion_cpu_p99_ms": percentile_ms([cpu for _, cpu in inclusion], 0.99),
        "consistency_p50_ms": percentile_ms([wall for wall, _ in consistency], 0.5),
        "consistency_p99_ms": percentile_ms([wall for wall, _ in consistency], 0.99),
        "consistency_cpu_p99_ms": percentile_ms([cpu for _, cpu in consistency], 0.99),
        "verify_inclusion_ms": round(verify_s * 1e3, 3),
        "root_recomputed_ms": round(recompute_s * 1e3, 1),
    }


def cold_start(folder: Path) -> float:
    """Open for writing; closing leaves a snapshot behind."""
    elapsed, log = timed(lambda: SqliteLog.open(folder, identity(), fold=MeshFold()))
    log.close_blocking()
    return round(elapsed, 3)


async def rebuilt_beside(folder: Path) -> Json:
    """After an update of every projection: until old answers are there, until all is folded anew, and how long
    facts that one caller records all the time wait meanwhile."""
    connection = connect_writer(folder / LOG_DIR / DATABASE)
    connection.execute("UPDATE snapshots SET version = 'other code'")
    connection.close()
    fold = MeshFold()
    opened_s, log = timed(lambda: SqliteLog.open(folder, identity(), fold=fold, beside=fold))
    assert log.rebuild is not None
    done = asyncio.Event()
    log.on_rebuilt(lambda _: done.set())
    started, waits = time.perf_counter(), []
    while not done.is_set():
        before = time.perf_counter()
        await log.append([held(len(waits))])
        waits.append(time.perf_counter() - before)
    rebuilt_s = time.perf_counter() - started
    await log.close()
    return {
        "rebuild_old_answers_s": round(opened_s, 3),
        "rebuild_s": round(rebuilt_s, 3),
        "rebuild_facts_recorded_meanwhile": len(waits),
        "rebuild_append_p50_ms": percentile_ms(waits, 0.5),
        "rebuild_append_p99_ms": percentile_ms(waits, 0.99),
    }


def write_fast(folder: Path, count: int) -> float:
    """A log of `count` billing events, committed in large batches, without a snapshot."""
    (folder / LOG_DIR).mkdir(parents=True, exist_ok=True)
    connection = connect_writer(folder / LOG_DIR / DATABASE)
    create_schema(connection)
    committer: Committer[Any] = Committer(connection, identity(), MeshFold(), _now_ms, os.urandom)
    started = time.perf_counter()
    number = 0
    while number < count:
        for _ in range(min(1000, count - number)):
            committer.assembler.add(
                [NewEvent(billing_event(number), correlation=f"req-{number // 3}")], "local", None, _now_ms()
            )
            number += 1
        committer.flush()
    committer.seal()
    committer.flush()
    connection.close()
    return time.perf_counter() - started


def billing_event(number: int) -> Event:
    """Top up, hold, settle, in turn, over fifty accounts."""
    account, request = f"key/{number // 3 % ACCOUNTS}", f"req-{number // 3}"
    if number % 3 == 0:
        return CreditToppedUp(account=account, amount_microunits=1_000_000)
    if number % 3 == 1:
        return CreditHeld(
            hold_id=request,
            payer=account,
            request_id=request,
            amount_microunits=900_000,
            expires_ms=_now_ms() + 60_000,
        )
    shares = (("peer/a", 500_000), ("peer/b", 400_000))
    return CreditSettled(
        hold_id=request, payer=account, request_id=request, amount_microunits=900_000, shares=shares
    )


def bytes_per_event(folder: Path, count: int) -> Json:
    """Everything in the folder, proofs included, divided by the events."""
    write_fast(folder, count)
    size = sum(path.stat().st_size for path in (folder / LOG_DIR).iterdir())
    return {"events": count, "bytes_per_event": round(size / count, 1)}


def held(number: int) -> CreditHeld:
    return CreditHeld(
        hold_id=f"hold-{number}",
        payer=f"key/{number % ACCOUNTS}",
        request_id=f"req-{number}",
        amount_microunits=0,
        expires_ms=_now_ms() + 60_000,
        free=True,
    )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    answer = work()
    return time.perf_counter() - started, answer


def timed_cpu(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds: on a busy machine the second is ours alone."""
    wall, cpu = time.perf_counter(), time.thread_time()
    work()
    return time.perf_counter() - wall, time.thread_time() - cpu


def percentile_ms(values: Sequence[float], part: float) -> float:
    return round(sorted(values)[int(len(values) * part)] * 1e3, 2)


def medians(runs: Sequence[Json]) -> Json:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    main()
