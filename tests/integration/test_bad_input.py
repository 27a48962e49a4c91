"""What a person can get wrong at the command line: one clear line with a hint, nothing left behind."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pnode.identity import Identity
from p2pnode.node.core import demo_model_path
from p2pnode.transport.invite import Ticket, encode_ticket
from p2pnode.units import UnixMs

LISTEN = ["--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--no-mdns"]


def p2pnode(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "p2pnode", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def refused(found: subprocess.CompletedProcess[str], *words: str) -> None:
    assert found.returncode not in (0, -9), found.stdout
    assert "Traceback" not in found.stderr
    lines = found.stderr.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) == 2, found.stderr
    assert lines[1].startswith("hint:")
    for word in words:
        assert word in found.stderr


def demo_bytes() -> bytes:
    path = demo_model_path()
    assert path is not None
    return path.read_bytes()


MODELS: dict[str, tuple[Callable[[], bytes | None], str]] = {
    "truncated": (lambda: demo_bytes()[:100_000], "truncated"),
    "corrupted": (lambda: demo_bytes()[:8] + b"\xff" * 8 + demo_bytes()[16:], "corrupted"),
    "text": (lambda: b"hello, I am no model\n" * 100, "not a GGUF"),
    "empty": (lambda: b"", "not a GGUF"),
    "architecture": (lambda: demo_bytes().replace(b"llama", b"zzama"), "zzama"),
    "missing": (lambda: None, "no file"),
}


@pytest.mark.parametrize("name", MODELS)
def test_model_files(tmp_path: Path, name: str) -> None:
    make, word = MODELS[name]
    path = tmp_path / f"{name}.gguf"
    if (data := make()) is not None:
        path.write_bytes(data)
    found = p2pnode(
        "join", "--data", str(tmp_path / "d"), "--api", "127.0.0.1:0", "--model", str(path), *LISTEN
    )
    refused(found, word, path.name)
    assert not (tmp_path / "d").exists()


def ticket(expires_ms: int) -> str:
    from p2pnode.node.mesh import key_of

    key = key_of(Identity.from_seed(b"x" * 32).peer_id)
    made = Ticket(key, key, b"s" * 16, UnixMs(expires_ms), "worker", "m", ("/ip4/127.0.0.1/udp/9/quic-v1",))
    return encode_ticket(made)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("hello", "p2p1-"),
        ("p2p1-AAAA", "checksum"),
        (ticket(1000), "expired"),
        (ticket(2**38 * 1000)[:-3], "checksum"),
    ],
    ids=["no ticket", "too short", "expired", "cut"],
)
def test_tickets(tmp_path: Path, text: str, word: str) -> None:
    found = p2pnode("join", text, "--data", str(tmp_path / "d"), "--api", "127.0.0.1:0", *LISTEN)
    refused(found, word)
    assert not (tmp_path / "d").exists()


def test_a_taken_api_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(p2pnode("join", "--data", str(tmp_path / "d"), "--api", address, *LISTEN), "--api")


def test_a_taken_quic_port(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/udp/{taken.getsockname()[1]}/quic-v1"
        found = p2pnode(
            "join", "--data", str(tmp_path / "d"), "--api", "127.0.0.1:0", "--listen", address, "--no-mdns"
        )
        refused(found, "--listen")


def test_a_folder_that_cannot_be_written() -> None:
    refused(p2pnode("join", "--data", "/proc/p2pnode", "--api", "127.0.0.1:0", *LISTEN), "--data")


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("not a folder")
    found = p2pnode("join", "--data", str(path), "--api", "127.0.0.1:0", *LISTEN)
    assert found.returncode != 0
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    "command", [["run", "m", "hi"], ["peers"], ["models"], ["ps"], ["invite"], ["plan", "m"]]
)
def test_no_node_runs(tmp_path: Path, command: list[str]) -> None:
    refused(p2pnode(*command, "--data", str(tmp_path / "d")), "p2pnode join")
    found = p2pnode(*command, "--data", str(tmp_path / "d"), "--json")
    assert json.loads(found.stdout)["error"]["code"] == "node_not_running"
