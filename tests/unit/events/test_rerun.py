"""Asking a recorded request again: from its commitments, never from guesses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pnode.cli.main import run_command
from p2pnode.errors import NotFound, P2PNodeError, RequestError
from p2pnode.events.reader import LogReader
from p2pnode.events.rerun import rerun_of
from p2pnode.events.store import SqliteLog
from p2pnode.events.types import RequestFinished
from tests.kit.log_events import ManualClock, accepted, node_identity

GREEDY = {"temperature": 0, "max_tokens": 9}


async def record(
    folder: Path, *, keep: bool = True, parameters: dict[str, Any] | None = None, prompt: str = "Once"
) -> LogReader:
    """A finished request r1 with the answer `upon a time`."""
    log: SqliteLog[Any] = SqliteLog.open(folder, node_identity(), now_ms=ManualClock())
    prompt_commitment = log.commit_secret("r1", prompt.encode(), keep_text=keep)
    chosen = json.dumps(GREEDY if parameters is None else parameters).encode()
    parameters_commitment = log.commit_secret("r1", chosen, keep_text=True)
    answer_commitment = log.commit_secret("r1", b"upon a time", keep_text=keep)
    first = replace(
        accepted("r1"), prompt_commitment=prompt_commitment, parameters_commitment=parameters_commitment
    )
    last = RequestFinished(
        request_id="r1",
        reason="stop",
        prompt_tokens=1,
        completion_tokens=3,
        cached_tokens=0,
        answer_commitment=answer_commitment,
        prefill_ms=1,
        decode_ms=1,
    )
    await log.append([first, last], correlation="r1")
    bare = replace(accepted("r2"), prompt_commitment=prompt_commitment)
    await log.append([bare, replace(last, request_id="r2")], correlation="r2")
    await log.append([accepted("r3")], correlation="r3")
    await log.close()
    return LogReader.of_folder(folder)


async def test_same_or_where_it_diverged(tmp_path: Path) -> None:
    """By the commitment; the place only when the old answer was kept."""
    again = rerun_of(await record(tmp_path), "r1")
    assert (again.prompt, again.parameters, again.model) == ("Once", GREEDY, "bafkr4iabc")
    assert again.compare("upon a time")["same"]
    assert again.compare("upon my time") | {"text": ""} == {
        "request_id": "r1",
        "same": False,
        "diverged_at": 5,
        "text": "",
    }
    assert again.compare("upon")["diverged_at"] == 4


async def test_without_kept_texts_the_prompt_must_be_given(tmp_path: Path) -> None:
    """And must be the one that was committed to."""
    reader = await record(tmp_path, keep=False)
    with pytest.raises(NotFound, match="not kept"):
        rerun_of(reader, "r1")
    with pytest.raises(RequestError, match="not the prompt"):
        rerun_of(reader, "r1", "Twice")
    again = rerun_of(reader, "r1", "Once")
    assert again.compare("upon a time")["same"]
    assert again.compare("else")["diverged_at"] is None


@pytest.mark.parametrize(("prompt", "expected"), [("[1, 2]", [1, 2]), ('["a"]', '["a"]'), ("7", "7")])
async def test_token_prompts_stay_tokens(tmp_path: Path, prompt: str, expected: Any) -> None:
    """They were committed to as a JSON list."""
    assert rerun_of(await record(tmp_path, prompt=prompt), "r1").prompt == expected


async def test_what_can_not_be_repeated_is_said(tmp_path: Path) -> None:
    """Chance, unfinished, unrecorded and forgotten requests."""
    reader = await record(tmp_path / "a", parameters={"temperature": 0.8})
    with pytest.raises(RequestError, match="chance"):
        rerun_of(reader, "r1")
    for request, message in (("r2", "not recorded"), ("r3", "no finished"), ("r4", "r4")):
        with pytest.raises(NotFound, match=message):
            rerun_of(reader, request)
    assert rerun_of(await record(tmp_path / "b", parameters={"temperature": 1, "seed": 5}), "r1")
    log: SqliteLog[Any] = SqliteLog.open(tmp_path / "b", node_identity())
    await log.forget("r1")
    await log.close()
    with pytest.raises(NotFound, match="forgotten"):
        rerun_of(LogReader.of_folder(tmp_path / "b"), "r1")


async def test_the_command_asks_the_running_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1 when the answer differs."""
    (await record(tmp_path)).close()
    prompt_file = tmp_path / "prompt"
    prompt_file.write_text("Once")
    asked: list[Any] = []
    text = "upon a time"

    class Node:
        def post(self, path: str, document: Any) -> Any:
            asked.append((path, document))
            return {"choices": [{"text": text}]}

    monkeypatch.setattr("p2pnode.cli.output.connect", lambda data, api: Node())
    command = ["log", "replay", "r1", "--data", str(tmp_path)]
    assert run_command([*command, "--prompt-file", str(prompt_file)]) == 0
    assert capsys.readouterr().out.startswith("same")
    text = "upon a dime"
    assert run_command(command) == 1
    assert "at character 7" in capsys.readouterr().out
    assert run_command([*command, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["diverged_at"] == 7
    assert asked[0] == (
        "/v1/completions",
        {"model": "bafkr4iabc", "prompt": "Once", **GREEDY, "cache_prompt": False},
    )
    assert issubclass(NotFound, P2PNodeError)
