"""What the shell completes: names that the running node knows, and nothing where none runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from p2pnode.cli.main import cli
from tests.kit.api_server import serving
from tests.kit.fake_node import MODEL, FakeNode


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    node = FakeNode()
    view = node.peers()
    view["peers"].append({**view["peers"][1], "name": "two words"})
    status = {**node.status(), "meshes": [{"name": "office"}]}
    monkeypatch.setattr(node, "peers", lambda: view)
    monkeypatch.setattr(node, "status", lambda: status)
    with serving(node) as url:
        (tmp_path / "node.json").write_text(json.dumps({"api": url, "pid": 1, "token": "t"}))
        monkeypatch.setenv("P2PNODE_DATA", str(tmp_path))
        yield tmp_path


def completed(*words: str) -> list[tuple[str, str]]:
    """(kind, text) of what is offered for the last word."""
    shell = ShellComplete(cli, {}, "p2pnode", "_P2PNODE_COMPLETE")
    return [(item.type, item.value) for item in shell.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["run", ""], [MODEL]),
        (["show", "p2"], [MODEL]),
        (["show", "other"], []),
        (["models", "copy", MODEL, ""], ["studio", "kitchen"]),
        (["forget", "k"], ["kitchen"]),
        (["plan", "--devices", ""], ["studio", "kitchen"]),
        (["plan", "--devices", "studio,"], ["studio,kitchen"]),
        (["plan", "--exclude", "studio,k"], ["studio,kitchen"]),
        (["quota", "l"], ["local"]),
        (["federation", "remove", ""], ["office"]),
        (["plan", "--mode", "tensor_"], ["tensor_rpc"]),
    ],
)
def test_names_that_the_node_knows_are_offered(words: list[str], offered: list[str]) -> None:
    assert completed(*words) == [("plain", text) for text in offered]


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("command", ["run", "chat", "pull"])
def test_where_a_file_may_stand_for_a_model_the_shell_offers_files(command: str) -> None:
    assert completed(command, "./mod") == [("file", "./mod")]


def test_without_a_node_nothing_is_offered_and_nothing_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PNODE_DATA", str(tmp_path))
    assert completed("forget", "") == []
    (tmp_path / "node.json").write_text(json.dumps({"api": "http://127.0.0.1:1", "pid": 1, "token": "t"}))
    assert completed("forget", "") == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("word", ["p2", ""])
def test_the_script_completes_in_bash(data: Path, word: str) -> None:
    script = (
        'eval "$(p2pnode completion bash)"; COMP_WORDS=(p2pnode show "$1"); COMP_CWORD=2; _p2pnode_completion p2pnode;'
        ' echo "${COMPREPLY[*]}"'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "--norc", "-c", script, "bash", word]
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{MODEL}\n", "")
