"""The terminal chat: its commands, its files, its turns from a pipe, and stopping."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnode.cli.chat import Stoppable
from p2pnode.cli.chat_session import ChatSession
from p2pnode.cli.main import run_command
from p2pnode.endpoint import find_node
from p2pnode.errors import StageLost
from tests.kit.api_server import serving
from tests.kit.fake_node import MODEL, FakeNode


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def session(node: FakeNode) -> Iterator[ChatSession]:
    with serving(node) as url:
        yield ChatSession(find_node(api=url))


def test_turns(session: ChatSession, node: FakeNode) -> None:
    """Each turn carries the ones before, the instruction, the settings."""
    list(session.ask("hello"))
    for line in (
        "/system Be brief.",
        "/set temperature 0",
        "/set max_tokens 3",
        "/stop fox",
        "/mode local",
        f"/model {MODEL}",
    ):
        session.command(line)
    list(session.ask("again"))
    request = node.requests[-1]
    assert str(request.prompt).count("<|im_start|>") == 5
    assert "Be brief." in str(request.prompt)
    assert (request.sampling.temperature, request.max_tokens, request.stop, request.mode) == (
        0,
        3,
        ("fox",),
        "local",
    )
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 2
    assert "2 answers, 8 tokens" in session.command("/stats")
    assert "kitchen: layers 4-7" in session.command("/stats")


def test_commands(session: ChatSession) -> None:
    """Every command answers in words; mistakes too."""
    assert "/save FILE" in session.command("/help")
    assert "kitchen: online, 2.4 ms" in session.command("/peers")
    assert "there is no /nonsense" in session.command("/nonsense")
    assert "there is no model" in session.command("/model gpt-9")
    assert "modes are" in session.command("/mode fast")
    assert "settings are" in session.command("/set speed 9")
    assert "no value" in session.command("/set top_k many")
    assert "no node answers" in session.command("/connect 127.0.0.1:1")
    assert "connected to" in session.command(f"/connect {session.node.host}:{session.node.port}")
    assert session.command("/stop") == "no stop texts"
    assert session.command("/system") == "no instruction"
    assert not session.is_over
    assert session.command("/exit") == ""
    assert session.is_over


@pytest.mark.parametrize("name", ["chat.json", "chat.csv"])
def test_files(session: ChatSession, tmp_path: Path, name: str) -> None:
    """A conversation comes back from a file; what is none is refused and changes nothing."""
    list(session.ask("hello"))
    before = list(session.messages)
    path = tmp_path / name
    assert "2 messages saved" in session.command(f"/save {path}")
    session.command("/clear")
    assert session.messages == []
    assert "2 messages loaded" in session.command(f"/load {path}")
    assert [message["role"] for message in session.messages] == ["user", "assistant"]
    if path.suffix == ".json":
        assert session.messages == before
    kept = list(session.messages)
    path.write_text("robot,1,x" if path.suffix == ".csv" else '{"messages": [{"role": "robot"}]}')
    assert "no saved conversation" in session.command(f"/load {path}")
    assert session.messages == kept
    assert "cannot read" in session.command(f"/load {tmp_path / 'none.json'}")
    assert "cannot write" in session.command(f"/save {tmp_path / 'no' / 'where.json'}")
    assert "say a file" in session.command("/save")


def test_stop_keeps_the_session(session: ChatSession, node: FakeNode) -> None:
    """An answer that was stopped is kept as far as it came, and the work ends."""
    node.reply = "word " * 2000
    events = Stoppable(session.ask("hello"))
    for event in events.items():
        if event is not None and event.get("type") == "text":
            break
    events.stop()
    assert session.messages[-1]["content"].startswith("word")
    assert len(session.messages[-1]["content"]) < 9000
    node.reply = "fine"
    assert list(session.ask("and now?"))[-1]["type"] == "finished"


def test_error_reaches_the_reader(session: ChatSession, node: FakeNode) -> None:
    """A failure in the thread is raised where the answer is read."""
    node.fail_after = (1, StageLost("kitchen is gone"))
    with pytest.raises(Exception, match="kitchen is gone"):
        list(Stoppable(session.ask("hello")).items())


@pytest.mark.parametrize("as_json", [False, True])
def test_pipe(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    """From a pipe each line is a turn; with --json one document says it all."""
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\n/mode local\nagain\n/exit\nnever\n"))
    address = f"{session.node.host}:{session.node.port}"
    assert (
        run_command(["chat", "--api", address, "--temperature", "0", *(["--json"] if as_json else [])]) == 0
    )
    out = capsys.readouterr().out
    if as_json:
        assert len(json.loads(out)["messages"]) == 4
    else:
        assert out == "The quick brown fox jumps.\nmode: local\nThe quick brown fox jumps.\n"
