"""`p2pnode join` told to end at odd moments: it ends, cleanly, and no process it started is left.

The moments are seeded: before it is ready, while engines start, measure and load, while a device fetches its part.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from p2pnode.endpoint import NodeError
from tests.kit.children import MARK, describe, marked
from tests.kit.mesh import MeshOfProcesses, NodeProcess

SIGNALS = (signal.SIGTERM, signal.SIGINT)
END_S_MAX = 60.0
"""Against hanging only."""
START_S = 2.0
"""About as long as a start takes: the moments before a node is ready are drawn from it."""


@contextmanager
def a_mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """In the environment of whatever is started within."""
    mark = uuid.uuid4().hex
    with monkeypatch.context() as patch:
        patch.setenv(MARK, mark)
        yield mark


def none_left(mark: str) -> None:
    left = marked(mark)
    assert not left, [describe(pid) for pid in sorted(left)]


def pause(seconds: float) -> None:
    select.select([], [], [], seconds)


def end(node: NodeProcess, number: signal.Signals) -> None:
    node.process.send_signal(number)
    assert node.process.wait(END_S_MAX) == 0, node.errors()
    node._close()
    assert "Traceback" not in node.errors()


def until_it_has(mark: str, count: int) -> None:
    """That many processes besides the node."""
    waits = 0
    while len(marked(mark)) <= count:
        waits += 1
        assert waits < 6000, "it starts nothing"
        pause(0.01)


SEEDS = [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 30))]


@pytest.mark.parametrize("seed", SEEDS)
def test_before_it_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = Random(seed)
    command = [
        sys.executable, "-m", "p2pnode", "join", "--data", str(tmp_path / "n"), "--name", "n", "--json", "--no-mdns",
        "--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--api", "127.0.0.1:0", "--threads", "1",
    ]  # fmt: skip
    with a_mark(monkeypatch) as mark:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0)
        pause(rng.uniform(0, START_S))
        process.send_signal(number := rng.choice(SIGNALS))
        _, errors = process.communicate(timeout=END_S_MAX)
        # Python itself ends so before the node listens to signals.
        assert process.returncode in (0, -number, 128 + number), errors
        none_left(mark)


@pytest.mark.parametrize("seed", SEEDS)
def test_while_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A node that starts for the first time measures its machine, then its models."""
    rng = Random(seed)
    with a_mark(monkeypatch) as mark:
        node = NodeProcess(tmp_path, "alpha")
        until_it_has(mark, 1)
        pause(rng.uniform(0, 1.0))
        end(node, rng.choice(SIGNALS))
        none_left(mark)


@pytest.mark.parametrize("seed", SEEDS)
def test_while_a_plan_is_carried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """By two devices, one of which fetches its part; either of them is told to end, the other one later."""
    rng = Random(seed)
    with a_mark(monkeypatch) as mark, ThreadPoolExecutor(1) as pool:
        mesh = MeshOfProcesses(tmp_path)
        alpha, beta = mesh.first(), mesh.join("beta")
        alpha.online(2)

        def plan() -> None:
            wish = {"model": "p2pnode-demo", "blocks": [["alpha", 0, 3], ["beta", 3, 8]], "apply": True}
            with contextlib.suppress(NodeError, OSError):
                alpha.api.post("/plan", wish)

        asked = pool.submit(plan)
        pause(rng.uniform(0, 1.0))
        try:
            for node in rng.sample([alpha, beta], 2):
                end(node, rng.choice(SIGNALS))
        finally:  # a failure leaves no node to the next test
            for node in (alpha, beta):
                node.kill()
        asked.result()
        none_left(mark)


def test_killed_at_once_its_engines_go_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_mark(monkeypatch) as mark:
        node = NodeProcess(tmp_path, "alpha")
        node.infer("p2pnode-demo", "hello")
        assert marked(mark) - {node.process.pid}
        os.kill(node.process.pid, signal.SIGKILL)
        node.kill()
        waits = 0
        while marked(mark):
            waits += 1
            assert waits < 3000, [describe(pid) for pid in marked(mark)]
            pause(0.01)
