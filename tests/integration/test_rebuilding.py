"""A device that starts with newer code than folded its record: read-only until it has folded it anew."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from p2pnode.bootstrap import RunningNode
from p2pnode.config import JoinOptions
from p2pnode.endpoint import NodeError, find_node
from p2pnode.events import opening
from p2pnode.events.database import connect_reader
from p2pnode.events.folder import database_path
from p2pnode.events.rebuild import Rebuild
from p2pnode.events.replay import check_snapshot, replay
from p2pnode.events.tables import Tables
from p2pnode.identity import load_or_create
from p2pnode.projections import MeshFold, snapshot
from tests.kit.mesh import NodeProcess
from tests.kit.net import LOOPBACK
from tests.kit.old_code import WRONG_REQUESTS, OldFold, billing_events, write_log


def options(folder: Path) -> JoinOptions:
    return JoinOptions(data=folder, name="desk", listen=LOOPBACK, api="127.0.0.1:0", mdns=False, threads=1)


async def test_until_the_record_is_folded_anew_it_is_shown_and_nothing_is_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The faces of a real node over HTTP, before and after the swap; the last slice comes when the test says so."""
    monkeypatch.setattr(opening, "LOG_REBUILD_EVENTS_MIN", 100)
    size = write_log(
        tmp_path,
        OldFold(["billing", "usage"], unreadable=["plans"]),
        billing_events(300),
        load_or_create(tmp_path),
    )
    gate, step = threading.Event(), Rebuild.step

    def one_slice(self: Rebuild[Any], tables: Tables, size: int) -> bool:
        return gate.wait(0.001) and step(self, tables, size)

    monkeypatch.setattr(Rebuild, "step", one_slice)
    told: list[str] = []
    told_one = asyncio.Event()

    def tell(text: str) -> None:
        told.append(text)
        told_one.set()

    starting = asyncio.ensure_future(RunningNode.start(options(tmp_path), tell))
    await told_one.wait()
    assert f"record of {size} events" in told[0]
    node = find_node(tmp_path)
    progress = {
        "folded": 0,
        "size": size,
        "as_of": size,
        "parts": ["billing", "plans", "usage"],
        "unreadable": ["plans"],
        "decides": False,
    }
    status = await asyncio.to_thread(node.get, "/status")
    assert (status["state"], status["ready"]) == ("rebuilding", False)
    assert status["log"]["rebuilding"] == progress
    assert (await asyncio.to_thread(node.get, "/billing"))["rebuilding"] == progress
    assert (await asyncio.to_thread(node.get, "/log/usage"))["total"]["requests"] == WRONG_REQUESTS
    assert "rebuilding" not in await asyncio.to_thread(node.get, "/peers")
    assert (await asyncio.to_thread(node.get, "/log/rebuild"))["rebuilding"] == progress
    assert "p2pnode/" in (await asyncio.to_thread(node.get, "/log/witnesses"))["origin"]
    for path, body in (
        ("/command/topup", {"account": "key1", "amount_microunits": 5, "idempotency_key": "k"}),
        ("/infer", {"model": "m", "prompt": "hello"}),
        ("/invites", {"uses": 1, "expires_s": 60}),
    ):
        with pytest.raises(NodeError) as refused:
            await asyncio.to_thread(node.post, path, body)
        assert refused.value.node_code == "rebuilding", path
    with pytest.raises(NodeError) as refused:
        await asyncio.to_thread(node.get, "/plans")
    assert refused.value.node_code == "rebuilding"
    shown = await asyncio.to_thread(command, tmp_path, "status")
    assert "rebuilding" in shown.stdout, shown
    assert shown.returncode == 0
    progress_shown = await asyncio.to_thread(command, tmp_path, "log", "rebuild")
    assert f"0 of {size} events" in progress_shown.stdout, progress_shown
    assert not starting.done()
    gate.set()
    running = await starting
    try:
        status = await asyncio.to_thread(node.get, "/status")
        assert (status["state"], status["ready"]) == ("active", True)
        assert status["log"]["rebuilding"] is None
        assert (await asyncio.to_thread(node.get, "/log/usage"))["total"]["requests"] < WRONG_REQUESTS
        await asyncio.to_thread(node.get, "/plans")
        state = running.node.ledger.state
        tables = Tables(connect_reader(database_path(tmp_path)))
        assert sha256(snapshot(state)).digest() == replay(tables, MeshFold(), state.size).state_hash
    finally:
        await running.stop("the test is over")


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "p2pnode", *words, "--data", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_device_killed_while_it_folds_100_000_events_starts_over(tmp_path: Path) -> None:
    """kill -9 in the middle of the rebuild, three times; then it comes through, and the state is a full replay's."""
    folder = tmp_path / "desk"
    folder.mkdir()
    size = write_log(folder, OldFold(MeshFold.parts), billing_events(100_000), load_or_create(folder))
    for _ in range(3):
        with subprocess.Popen(
            [
                *[sys.executable, "-m", "p2pnode", "join", "--data", str(folder), "--name", "desk"],
                *["--listen", *LOOPBACK, "--api", "127.0.0.1:0", "--threads", "1", "--no-mdns"],
            ],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert f"record of {size} events" in process.stdout.readline()
            process.kill()
    kept = Tables(connect_reader(database_path(folder))).snapshot()
    assert kept is not None
    assert kept.version == OldFold(MeshFold.parts).version, "nothing is kept before it is whole"
    node = NodeProcess(tmp_path, "desk")
    try:
        assert node.api.get("/status")["log"]["rebuilding"] is None
        assert node.api.get("/billing")["totals"]["sum_microunits"] == 0
    finally:
        node.stop()
    check = check_snapshot(Tables(connect_reader(database_path(folder))), MeshFold())
    assert check is not None
    assert (check.is_current, check.ok) == (True, True)
    assert check.size > size
