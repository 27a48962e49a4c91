"""Whoever leaves in the middle of an answer, by Ctrl-C, by closing a pipe or a connection, ends the work everywhere."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit.api_server import serving
from tests.kit.fake_node import FakeNode
from tests.kit.mesh import mesh_of

ENOUGH_S = 30.0


@contextmanager
def asking(
    node: FakeNode, *arguments: str, stdin: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    with serving(node) as url:
        command = [sys.executable, "-m", "p2pnode", *arguments, "--api", url]
        pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, **pipes) as process:
            try:
                yield process
            finally:
                process.kill()


def wait_until_cancelled(node: FakeNode) -> None:
    assert node.was_cancelled.wait(ENOUGH_S), "the work goes on"


def held_node() -> FakeNode:
    """Writes one word and waits."""
    node = FakeNode()
    node.hold.clear()
    return node


@pytest.mark.parametrize("arguments", [("run", "p2pnode-demo", "hello"), ("chat", "p2pnode-demo")])
def test_ctrl_c(arguments: tuple[str, ...]) -> None:
    node = held_node()
    with asking(node, *arguments, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        if arguments[0] == "chat":
            process.stdin.write(b"hello\n")
        process.stdin.close()
        assert process.stdout.read(3) == b"The"
        process.send_signal(signal.SIGINT)
        assert process.wait(ENOUGH_S) == 130
        assert process.stderr.read().strip() == b""
        wait_until_cancelled(node)


def test_a_reader_that_has_seen_enough() -> None:
    """`p2pnode run ... | head -c 3`: quiet, and no failure."""
    node = FakeNode("word " * 100_000)
    with asking(node, "run", "p2pnode-demo", "hello", "--max-tokens", "100000") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(3) == b"wor"
        process.stdout.close()
        assert process.wait(ENOUGH_S) == 0
        assert b"Traceback" not in process.stderr.read()
        wait_until_cancelled(node)


def test_a_client_that_goes_away_frees_every_stage(tmp_path: Path) -> None:
    """An answer that cannot end by itself is at work on three devices, and on none soon after its reader left."""

    def sessions(view: dict[str, Any]) -> int:
        return sum(stage["sessions"] for stage in view["hosted_stages"])

    with mesh_of(tmp_path, "alpha", "beta", "gamma") as mesh:
        head, *others = mesh.nodes
        head.api.post("/plan", {"model": "p2pnode-demo", "mode": "pipeline", "stages": 3, "apply": True})
        asked = {"prompt": "one two three", "max_tokens": 3000, "grammar": "root ::= [a-z ] root"}
        stream = head.api.stream("/infer/stream", asked)
        with closing(stream):
            next(event for event in stream if event["type"] == "text")
            for node in others:
                node.until("work", "/status", lambda view: sessions(view) == 1)
        head.until("the end", "/status", lambda view: view["running"] == 0)
        for node in others:
            node.until("rest", "/status", lambda view: sessions(view) == 0)
        assert head.events("RequestFinished")[-1]["data"]["reason"] == "cancelled"
