"""Newer code folds the record beside the old state and takes its place: shown meanwhile, never decided by."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode import commands as c
from p2pnode import decide as deciding
from p2pnode.errors import InsufficientCredit, LogFailed, StateRebuilding
from p2pnode.events import committer as committer_module
from p2pnode.events import opening
from p2pnode.events import rebuild as rebuild_module
from p2pnode.events.database import connect_reader, connect_writer
from p2pnode.events.folder import DATABASE, LOG_DIR, database_path
from p2pnode.events.log import NewEvent
from p2pnode.events.replay import check_snapshot, replay
from p2pnode.events.store import SqliteLog
from p2pnode.events.tables import Tables
from p2pnode.events.verify import verify_folder
from p2pnode.node.ledger import Ledger
from p2pnode.projections import MeshFold, MeshState, snapshot
from p2pnode.projections.mesh_fold import SHOWN_ONLY
from p2pnode.projections.views import PARTS_SHOWN, VIEWS
from tests.kit.log_events import ManualClock, node_identity, started
from tests.kit.old_code import WRONG_REQUESTS, OldFold, billing_events, life, write_log
from tests.kit.story import NOW_MS, serve

ALL = tuple(sorted(MeshFold.parts))
SLICE_EVENTS = 7


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every log is long enough, and a slice is short."""
    monkeypatch.setattr(opening, "LOG_REBUILD_EVENTS_MIN", 1)
    monkeypatch.setattr(rebuild_module, "LOG_REBUILD_SLICE_EVENTS", SLICE_EVENTS)


def opened(folder: Path) -> SqliteLog[MeshState]:
    fold = MeshFold()
    return SqliteLog.open(folder, node_identity(), fold=fold, beside=fold, now_ms=ManualClock(NOW_MS * 2))


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """How many events one has from now on; with none a rebuild does not get on."""
    return lambda count: monkeypatch.setattr(rebuild_module, "LOG_REBUILD_SLICE_EVENTS", count)


async def through(log: SqliteLog[MeshState]) -> MeshState:
    """The copy that readers get when it is done."""
    taken: asyncio.Future[MeshState] = asyncio.get_running_loop().create_future()
    log.on_rebuilt(taken.set_result)
    await log.tick()
    return await taken


def replayed_hash(folder: Path) -> bytes:
    return replay(Tables(connect_reader(database_path(folder))), MeshFold()).state_hash


async def test_a_changed_ledger_waits_and_everything_else_is_shown_as_it_was(
    tmp_path: Path, slices: Callable[[int], None]
) -> None:
    """No credit moves on what old code folded: the reservation comes after the swap, the record grows meanwhile."""
    size = write_log(tmp_path, OldFold(["billing"]), billing_events(300))
    log = opened(tmp_path)
    assert log.rebuild is not None
    assert log.rebuild.parts == {"billing"}
    assert not log.rebuild.may_decide
    assert log.rebuild.unreadable == frozenset()
    assert log.rebuild.shown.billing.balances["key1"] == 400_000
    slices(0)
    copy = asyncio.ensure_future(through(log))
    reserve = asyncio.ensure_future(
        log.submit(lambda state: deciding.decide(state, serve("late", "key1", max_tokens=9_000), NOW_MS))
    )
    facts = [await log.append([started(str(n))]) for n in range(20)]
    assert [indexes[0] for indexes in facts] == list(range(size, size + 20)), "facts are not kept waiting"
    assert not reserve.done(), "nothing is reserved by what old code left"
    slices(SLICE_EVENTS)
    state = await copy
    assert state.size == size + 20
    assert sha256(snapshot(state)).digest() == replayed_hash(tmp_path)
    with pytest.raises(
        InsufficientCredit
    ):  # decided by the whole state: 9 units are more than 0.4 and a welcome
        await reserve
    await log.close()
    assert check_current(tmp_path) == replayed_hash(tmp_path)
    assert verify_folder(tmp_path).ok


def check_current(folder: Path) -> bytes:
    """The hash of the kept snapshot, which must be this code's and right."""
    check = check_snapshot(Tables(connect_reader(database_path(folder))), MeshFold())
    assert check is not None
    assert check.is_current
    assert check.ok
    return check.kept_hash


async def test_a_part_that_is_only_shown_stops_nobody(tmp_path: Path) -> None:
    write_log(tmp_path, OldFold(["usage"]), life(3))
    ledger = Ledger(opened(tmp_path), now_ms=ManualClock(NOW_MS * 2))
    assert ledger.is_exact.is_set()
    done = asyncio.Event()
    ledger.log.on_rebuilt(lambda _: done.set())
    await ledger.do(
        c.TopUp(account="key1", amount_microunits=5, note="", idempotency_key="k"), idempotency_key="k"
    )
    await done.wait()
    assert ledger.rebuilding() is None
    assert "rebuilding" not in ledger.view("usage")
    assert ledger.view("usage")["total"]["requests"] < WRONG_REQUESTS
    assert sha256(snapshot(ledger.state)).digest() == replayed_hash(tmp_path)
    await ledger.close()


async def test_what_is_old_says_how_old_and_what_can_not_be_read_says_how_far(tmp_path: Path) -> None:
    size = write_log(tmp_path, OldFold(["usage"], unreadable=["plans"]), life(4))
    log = opened(tmp_path)
    ledger = Ledger(log, now_ms=ManualClock(NOW_MS * 2))
    view = ledger.view("usage")
    assert view["total"]["requests"] == WRONG_REQUESTS
    assert view["rebuilding"] == {
        "folded": 0,
        "size": size,
        "as_of": size,
        "parts": ["plans", "usage"],
        "unreadable": ["plans"],
        "decides": False,
    }
    assert "rebuilding" not in ledger.view("peers")
    with pytest.raises(StateRebuilding, match=f"0 of {size} events") as refused:
        ledger.view("plans")
    assert refused.value.details == {"folded": 0, "size": size}
    await log.tick()
    await ledger.is_exact.wait()
    assert "rebuilding" not in ledger.view("usage")
    assert ledger.view("plans")["plans"]
    await ledger.close()


async def test_a_decision_that_looks_at_what_is_rebuilt_does_not_happen(
    tmp_path: Path, slices: Callable[[int], None]
) -> None:
    """Beside the rule that decisions wait stands a wall: the old part is not there to be looked at."""
    write_log(tmp_path, OldFold(["usage"]), life(5))
    log = opened(tmp_path)
    slices(0)
    with pytest.raises(StateRebuilding, match="usage is being rebuilt"):
        await log.submit(lambda state: [NewEvent(started(str(state.usage.total)))])
    slices(SLICE_EVENTS)
    await log.close()


def test_nothing_decides_by_a_part_that_is_only_shown() -> None:
    folder = Path(deciding.__file__).parent
    looked_at = {
        node.attr
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    assert looked_at & MeshFold.deciding
    assert not looked_at & SHOWN_ONLY


def test_every_view_says_what_it_looks_at() -> None:
    """Each view over a state in which all but those parts can not be looked at."""
    fold = MeshFold()
    for name, show in VIEWS.items():
        state = fold.initial()
        fold.hide(state, fold.parts - PARTS_SHOWN[name])
        assert show(state, NOW_MS)


async def test_a_stop_in_the_middle_starts_over(tmp_path: Path, slices: Callable[[int], None]) -> None:
    """The old snapshot stays until the new state is whole; who waited is told."""
    size = write_log(tmp_path, OldFold(["billing"]), billing_events(200))
    log = opened(tmp_path)
    assert log.rebuild is not None
    assert not log.rebuild.step(Tables(connect_reader(database_path(tmp_path))), size)
    assert log.rebuild.folded == SLICE_EVENTS
    slices(0)
    waiting = asyncio.ensure_future(log.submit(lambda _: [NewEvent(started())]))
    await log.append([started()])
    await log.close()
    with pytest.raises(LogFailed, match="closed"):
        await waiting
    kept = Tables(connect_reader(database_path(tmp_path))).snapshot()
    assert kept is not None
    assert kept.version == OldFold(["billing"]).version
    slices(SLICE_EVENTS)
    again = opened(tmp_path)
    assert again.rebuild is not None
    await through(again)
    await again.close()
    assert check_current(tmp_path) == replayed_hash(tmp_path)


async def test_nothing_is_sealed_because_something_was_folded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a start a witness is asked before anything is signed: no rebuild and no long replay hastens a seal."""
    monkeypatch.setattr(committer_module, "LOG_SNAPSHOT_EVENTS", 100)
    write_log(tmp_path, OldFold(["billing"]), billing_events(300), tail=6)
    for beside in (True, False):
        if not beside:
            writer = connect_writer(tmp_path / LOG_DIR / DATABASE)
            writer.execute("DELETE FROM snapshots")
            writer.close()
            monkeypatch.setattr(opening, "LOG_REBUILD_EVENTS_MIN", 10_000)
        log = opened(tmp_path)
        sealed = log.block_count
        if beside:
            await through(log)
        await log.submit(lambda _: [NewEvent(started())])
        assert log.block_count == sealed
        assert stored_version(tmp_path) != MeshFold.version
        await log.seal()
        await log.tick()
        assert log.block_count == sealed + 1
        assert stored_version(tmp_path) == MeshFold.version
        await log.append([started()])
        await log.close()


def stored_version(folder: Path) -> str:
    row = Tables(connect_reader(database_path(folder))).snapshot()
    return "" if row is None else row.version


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            "UPDATE events SET body = (SELECT body FROM events WHERE seq = 60) WHERE seq = 61",
            "event 61 is not what was written",
        ),
        ("DELETE FROM events WHERE seq BETWEEN 56 AND 62", "event 56 is missing"),
    ],
)
async def test_a_record_that_is_not_what_was_written_ends_it(tmp_path: Path, damage: str, said: str) -> None:
    write_log(tmp_path, OldFold(["billing"]), billing_events(600))
    writer = connect_writer(tmp_path / LOG_DIR / DATABASE)
    for verb in ("update", "delete"):
        writer.execute(f"DROP TRIGGER events_no_{verb}")
    writer.execute(damage)
    writer.close()
    log = opened(tmp_path)
    failed: asyncio.Future[LogFailed] = asyncio.get_running_loop().create_future()
    log.on_failure(failed.set_result)
    waiting = asyncio.ensure_future(log.submit(lambda _: [NewEvent(started())]))
    assert said in (await failed).message
    with pytest.raises(LogFailed):
        await waiting
    await log.close()


async def test_without_a_snapshot_all_is_rebuilt(tmp_path: Path) -> None:
    write_log(tmp_path, MeshFold(), life(6))
    writer = connect_writer(tmp_path / LOG_DIR / DATABASE)
    writer.execute("DELETE FROM snapshots")
    writer.close()
    log = opened(tmp_path)
    assert log.rebuild is not None
    assert log.rebuild.parts == log.rebuild.unreadable == MeshFold.parts
    assert sha256(snapshot(await through(log))).digest() == replayed_hash(tmp_path)
    await log.close()


def test_short_logs_are_folded_before_they_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "LOG_REBUILD_EVENTS_MIN", 10_000)
    write_log(tmp_path, OldFold(ALL), life(7))
    log = opened(tmp_path)
    assert log.rebuild is None
    assert sha256(snapshot(log.state)).digest() == replayed_hash(tmp_path)
    log.close_blocking()


def test_nonsense_in_a_snapshot_revives_nothing() -> None:
    state, unreadable = MeshFold().revive(b"\xc1")
    assert unreadable == MeshFold.parts
    assert state == MeshFold().initial()


@given(
    seed=st.integers(0, 10_000),
    parts=st.sets(st.sampled_from(ALL), min_size=1),
    unreadable=st.sets(st.sampled_from(ALL)),
    kept=st.integers(1, 200),
    arriving=st.integers(0, 30),
)
@settings(max_examples=30, deadline=None)
def test_after_the_swap_the_state_is_that_of_a_full_replay(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    parts: set[str],
    unreadable: set[str],
    kept: int,
    arriving: int,
) -> None:
    """Whatever changed, wherever the snapshot was taken, whatever comes meanwhile: byte for byte the same."""
    folder = tmp_path_factory.mktemp("rebuild")
    records = life(seed, 120)
    write_log(folder, OldFold(parts, unreadable), records[:kept])

    async def run() -> tuple[MeshState, bytes]:
        log = opened(folder)
        copy = asyncio.ensure_future(through(log))
        for record in records[kept : kept + arriving]:
            await log.append([record.event], actor=record.actor, correlation=record.correlation)
        ledger_state: Any = await copy
        await log.close()
        return ledger_state, replayed_hash(folder)

    state, wanted = asyncio.run(run())
    if state.size == replay(Tables(connect_reader(database_path(folder))), MeshFold()).size:
        assert sha256(snapshot(state)).digest() == wanted
    assert check_current(folder) == wanted
