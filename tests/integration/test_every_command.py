"""Every command of the command line against real nodes: with --json, one JSON document on stdout and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from p2pnode.cli.main import every_command, run_command
from tests.kit.mesh import MeshOfProcesses, NodeProcess, mesh_of

DEMO = "p2pnode-demo"

DONE: dict[str, tuple[str, ...]] = {
    "invite": ("--uses", "2", "--expires", "15m"),
    "invites": (),
    "peers": (),
    "federation list": (),
    "plan": (DEMO, "--mode", "pipeline", "--devices", "alpha,beta", "--why", "--apply"),
    "run": (DEMO, "What is a mesh?", "--max-tokens", "4", "--temperature", "0"),
    "ps": ("--all",),
    "top": ("--once",),
    "models": (),
    "show": (DEMO,),
    "pull": ("{file}",),
    "rm": ("small",),
    "balance": (),
    "topup": ("1.5",),
    "statement": (),
    "status": (),
    "pause": ("--reason", "a test"),
    "resume": (),
    "schedule set": ("daily all",),
    "schedule show": (),
    "schedule clear": (),
    "set": ("model.default", DEMO),
    "log blocks": (),
    "log export": (),
    "log proof": ("0",),
    "log replay": (),
    "log show": ("0",),
    "log tail": ("-n", "3"),
    "log verify": (),
    "log verify-peer": ("beta",),
    "log witnesses": (),
    "keys create": ("--label", "a program"),
    "keys list": (),
    "adapters list": (),
    "config show": ("--origin",),
    "doctor": (),
    "completion": ("bash",),
    "version": (),
}
"""Commands that end well here, in an order that makes sense; every other is asked about something that is not there."""

SHOWN_ELSEWHERE = ("join", "demo", "chat")
"""`join` below; `demo` in test_demo.py; `chat` reads a conversation from stdin: tests/unit/cli/test_chat.py."""
AFTER_ALL = ("drain",)
"""A drained node takes no more work."""


def leaves(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield name, command
    if isinstance(command, click.Group):
        for inner, leaf in sorted(command.commands.items()):
            yield from leaves(f"{name} {inner}", leaf)


def all_commands() -> dict[str, click.Command]:
    return dict(leaf for name, command in every_command().items() for leaf in leaves(name, command))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    with mesh_of(tmp_path_factory.mktemp("mesh"), "alpha", "beta") as made:
        yield made


def one_document(capsys: pytest.CaptureFixture[str], name: str, *arguments: str) -> tuple[int, Any]:
    code = run_command([*name.split(), *arguments, "--json"])
    out = capsys.readouterr().out
    try:
        return code, json.loads(out)
    except ValueError:
        raise AssertionError(f"p2pnode {name} printed {out!r}") from None


def place(node: NodeProcess, command: click.Command) -> list[str]:
    options = {option.name for option in command.params}
    return ["--data", str(node.data)] if "data" in options else []


def test_every_command_prints_one_json_document(
    mesh: MeshOfProcesses, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    alpha = mesh.nodes[0]
    demo_file = Path(__file__).parents[2] / "models/p2pnode-demo.gguf"
    (tmp_path / "small.gguf").write_bytes(demo_file.read_bytes())
    commands = all_commands()
    assert set(DONE) | set(SHOWN_ELSEWHERE) | set(AFTER_ALL) <= set(commands)
    others = [name for name in commands if name not in (*DONE, *SHOWN_ELSEWHERE, *AFTER_ALL)]
    alpha.api.post("/command/seal", {})
    for name in (*DONE, *others, *AFTER_ALL):
        command = commands[name]
        needed = [p for p in command.params if isinstance(p, click.Argument) and p.required]
        given = DONE.get(name, ("0",) * len(needed) if name not in AFTER_ALL else ())
        arguments = [word.format(file=tmp_path / "small.gguf") for word in given]
        code, document = one_document(capsys, name, *arguments, *place(alpha, command))
        if name in DONE or name in AFTER_ALL:
            assert code == 0 or name == "doctor", (name, document)
        assert code in (0, 1, 2), (name, document)
        assert ("error" in document) == (code != 0) or name == "doctor", (name, document)


def test_join_prints_one_json_document_until_it_ends(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, "alone")
    assert {"peer_id", "name", "api", "ticket"} <= set(node.hello)
    node.process.terminate()
    assert node.process.stdout is not None
    assert node.process.stdout.read() == b""
    assert node.process.wait(30) == 0
    assert node.stop() == 0
