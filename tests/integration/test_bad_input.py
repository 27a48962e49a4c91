"""What a person can get wrong at the command line: one clear line with a hint, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from p2pnode.errors import InviteExpired
from p2pnode.events.folder import FolderLock
from p2pnode.identity import Identity
from p2pnode.node.life import demo_model_path
from p2pnode.transport.invite import Ticket, decode_ticket, encode_ticket
from p2pnode.units import UnixMs
from tests.kit.mesh import NodeProcess
from tests.kit.toy_models import Toy, write_model

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


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    node = NodeProcess(tmp_path_factory.mktemp("running"), "n")
    yield node
    assert node.stop() == 0


@pytest.mark.parametrize("command", [["pull"], ["run"], ["plan"]])
@pytest.mark.parametrize("name", MODELS)
def test_model_files_given_to_a_running_node(
    running: NodeProcess, tmp_path: Path, name: str, command: list[str]
) -> None:
    """Refused as at the start, whatever brings them; nothing of them is in the store."""
    make, word = MODELS[name]
    path = tmp_path / f"{name}.gguf"
    if (data := make()) is not None:
        path.write_bytes(data)
    wanted = [*command, str(path), *(["hello"] if command == ["run"] else [])]
    refused(p2pnode(*wanted, "--data", str(running.data)), word, path.name)
    assert [model["name"] for model in running.cli("models")["models"]] == ["p2pnode-demo"]


def test_a_ticket_of_a_second(running: NodeProcess, tmp_path: Path) -> None:
    made = running.cli("invite", "--expires", "1s")
    with pytest.raises(InviteExpired):
        decode_ticket(made["ticket"], now_ms=UnixMs(made["expires_ms"] + 1))
    too_long = p2pnode("invite", "--expires", "31d", "--data", str(running.data))
    refused(too_long, "at most 30d, not 31d")


def ticket(expires_ms: int, address: str = "/ip4/127.0.0.1/udp/9/quic-v1") -> str:
    from p2pnode.transport.membership import key_of

    key = key_of(Identity.from_seed(b"x" * 32).peer_id)
    made = Ticket(key, key, b"s" * 16, UnixMs(expires_ms), "worker", "m", (address,))
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


@pytest.fixture(params=["no folder", "an empty folder", "a folder in folders"])
def first_data(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder for a first start; whatever it was before the test, it is the same after a refused start."""
    data = tmp_path / ("a/b/c" if request.param == "a folder in folders" else "d")
    if request.param == "an empty folder":
        data.mkdir()
    before = sorted(tmp_path.rglob("*"))
    yield data
    assert sorted(tmp_path.rglob("*")) == before


def test_a_taken_api_port(first_data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(p2pnode("join", "--data", str(first_data), "--api", address, *LISTEN), "--api")


def test_a_taken_quic_port(first_data: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/udp/{taken.getsockname()[1]}/quic-v1"
        found = p2pnode(
            "join", "--data", str(first_data), "--api", "127.0.0.1:0", "--listen", address, "--no-mdns"
        )
        refused(found, "--listen")


def test_an_announced_address_that_is_none(first_data: Path) -> None:
    refused(p2pnode("join", "--data", str(first_data), "--announce", "my.example:9481", *LISTEN), "announce")


def test_a_ticket_of_a_device_that_is_off(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:  # taken, so that nobody else answers
        silent.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/udp/{silent.getsockname()[1]}/quic-v1"
        found = p2pnode(
            "join",
            ticket(2**38 * 1000, address),
            "--data",
            str(tmp_path / "d"),
            "--api",
            "127.0.0.1:0",
            *LISTEN,
        )
    refused(found, address)
    assert not (tmp_path / "d").exists()


def test_another_node_uses_the_folder(tmp_path: Path) -> None:
    """The loser of two starts leaves the other's folder as it is."""
    data = tmp_path / "d"
    lock = FolderLock(data / "log")
    lock.acquire()
    try:
        refused(p2pnode("join", "--data", str(data), "--api", "127.0.0.1:0", *LISTEN), "already uses")
    finally:
        lock.release()
    assert (data / "log" / "lock").exists()


def on_small_disk(
    folder: Path, options: str, *arguments: str
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run p2pnode with a disk of its own on `folder`, in a mount namespace; what is on the disk afterwards."""
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    folder.mkdir()
    script = (
        'mount -t tmpfs -o "$0" none "$1" || exit 99; list="$1"; shift; "$@"; rc=$?;'
        'find "$list" -mindepth 1 >"$list.after"; exit $rc'
    )
    command = [sys.executable, "-m", "p2pnode", *arguments]
    found = subprocess.run(
        ["unshare", *as_root, "--mount", "sh", "-c", script, options, str(folder), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return found, Path(f"{folder}.after").read_text()


@pytest.mark.parametrize("size", ["24k", "256k", "8m", "40m"])
def test_a_full_disk(tmp_path: Path, size: str) -> None:
    """Too small for the key, the log, the reserve of the log, the model: each is said, nothing stays."""
    data = tmp_path / "disk" / "d"
    found, left = on_small_disk(
        tmp_path / "disk", f"size={size}", "join", "--data", str(data), "--api", "127.0.0.1:0", *LISTEN
    )
    refused(found, "--data", str(data))
    assert left == ""


def test_a_read_only_folder(tmp_path: Path) -> None:
    data = tmp_path / "disk" / "d"
    found, left = on_small_disk(
        tmp_path / "disk", "ro", "join", "--data", str(data), "--api", "127.0.0.1:0", *LISTEN
    )
    refused(found, "Read-only", "--data")
    assert left == ""


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--listen", "nonsense"), ("--listen", "/dns4/example.org/udp/1/quic-v1"), ("--peer", "hello"),
        ("--memory-max", "lots"), ("--api", "no.such.host.invalid"), ("--threads", "0"), ("--invite-file", "/none"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(tmp_path: Path, option: str, value: str) -> None:
    """The option is named, and nothing was made before it was looked at."""
    given = {"--api": "127.0.0.1:0", "--listen": "/ip4/127.0.0.1/udp/0/quic-v1", option: value}
    words = [word for pair in given.items() for word in pair]
    found = p2pnode("join", "--data", str(tmp_path / "d"), "--no-mdns", *words)
    assert found.returncode == 1
    lines = found.stderr.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) <= 2
    assert value in found.stderr or "threads" in found.stderr
    assert not (tmp_path / "d").exists()


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


def test_a_member_starts_with_the_ticket_of_long_ago(tmp_path: Path) -> None:
    """A service is started with the same invite file every time; only the first start may need it."""
    node = NodeProcess(tmp_path, "alone")
    assert node.stop() == 0
    old = encode_ticket(replace(decode_ticket(node.hello["ticket"]), expires_ms=UnixMs(1000)))
    (tmp_path / "invite").write_text(old)
    again = NodeProcess(tmp_path, "alone", "--invite-file", str(tmp_path / "invite"))
    assert again.peer_id == node.peer_id
    assert again.stop() == 0
    elsewhere = p2pnode("join", old, "--data", str(tmp_path / "new"), "--api", "127.0.0.1:0", *LISTEN)
    refused(elsewhere, "expired")
    assert not (tmp_path / "new").exists()


def test_a_model_file_that_changes_or_goes(tmp_path: Path) -> None:
    """Nothing else than what was added is computed; the error names the file, and it can be added anew."""
    path, moved = tmp_path / "toy.gguf", tmp_path / "moved.gguf"
    write_model(path, Toy("llama", text=True, vocabulary=300))
    ask = ("run", "toy", "hello", "--max-tokens", "2", "--raw")
    node = NodeProcess(tmp_path, "n", "--model", str(path))
    node.cli(*ask)
    node.stop()
    path.rename(moved)
    node = NodeProcess(tmp_path, "n")
    refused(p2pnode(*ask, "--data", str(node.data)), f"{path} was changed or removed", "--model")
    shutil.copy(moved, path)
    with path.open("r+b") as file:
        file.seek(-64, 2)
        file.write(b"another!")
    refused(p2pnode(*ask, "--data", str(node.data)), f"{path} was changed or removed")
    assert node.errors().count("Traceback") == 0
    node.stop()
    node = NodeProcess(tmp_path, "n", "--model", str(moved))
    node.cli("run", "moved", *ask[2:])
    node.stop()
