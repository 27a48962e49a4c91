"""On a terminal of 80 columns: nothing cut off, colours only where they are wanted; in a pipe no escape codes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnode.cli.log_render import blocks_table
from tests.kit.api_server import serving
from tests.kit.fake_node import FakeNode

COLOURS = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture
def data(tmp_path: Path) -> Iterator[str]:
    with serving(FakeNode()) as url:
        (tmp_path / "node.json").write_text(json.dumps({"api": url, "pid": 1, "token": "t"}))
        yield str(tmp_path)


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a command writes to a terminal of 80 columns."""
    pid, terminal = pty.fork()
    if pid == 0:
        kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
        command = [sys.executable, "-m", "p2pnode", *arguments]
        os.execve(sys.executable, command, {**kept, "TERM": "xterm-256color", **environment})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    written = b""
    try:
        while piece := os.read(terminal, 65536):
            written += piece
    except OSError:
        pass  # how the end of a terminal reads on Linux
    os.waitpid(pid, 0)
    os.close(terminal)
    return written.decode()


def test_a_table_of_eight_columns_fits(data: str) -> None:
    lines = CODES.sub("", on_a_terminal("peers", "--data", data)).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    (row,) = [line for line in lines if "kitchen" in line]
    assert row.split()[:7] == ["kitchen", "…odeFake2", "online", "worker", "2.4", "ms", "lan"]
    assert row.rstrip().endswith("both ways")


def test_a_list_of_blocks_fits() -> None:
    block = {"number": 99_999, "first": 9_999_899, "end": 9_999_999, "sealed_ms": 1_764_000_000_123}
    text = blocks_table([{**block, "block_root": "a" * 64, "log_root": "b" * 64, "hash": "c" * 64}])
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.splitlines()[1].split() == [
        "99999", "9999899–9999998", "2025-11-24", "16:00:00Z", "a" * 8, "b" * 8, "c" * 8]  # fmt: skip


def test_ids_are_folded_and_never_cut_off(data: str) -> None:
    text = CODES.sub("", on_a_terminal("ps", "--all", "--data", data))
    assert "chatcmpl-1" in text
    assert "…" not in text


@pytest.mark.parametrize("command", [["doctor"], ["plan", "--stages", "0"], ["show", "nothing"]])
def test_colours_are_left_out_where_the_environment_says_so(data: str, command: list[str]) -> None:
    arguments = [*command, "--data", data]
    assert COLOURS.search(on_a_terminal(*arguments))
    assert not COLOURS.search(on_a_terminal(*arguments, NO_COLOR="1"))
