"""Two meshes of real processes: one is a guest of the other, which answers whole requests and gives nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from p2pnode.cli.main import run_command
from p2pnode.endpoint import NodeError
from p2pnode.events.verify import verify_folder
from tests.kit.mesh import NodeProcess

DEMO = "p2pnode-demo"
BEYOND = f"{DEMO}@studio"


@pytest.fixture
def meshes(tmp_path: Path) -> Iterator[tuple[NodeProcess, NodeProcess]]:
    """home founded one mesh, studio another; home holds a ticket of that one."""
    nodes: list[NodeProcess] = []
    try:
        home, studio = NodeProcess(tmp_path, "home"), NodeProcess(tmp_path, "studio")
        nodes += [home, studio]
        yield home, studio
    finally:
        for node in nodes:
            node.stop()


def federate(home: NodeProcess, studio: NodeProcess, role: str = "guest") -> dict[str, Any]:
    added: dict[str, Any] = home.cli("federation", "add", studio.invite(role=role), "--as", "studio")
    return added


def forget_the_model(home: NodeProcess) -> None:
    """The demo model is everybody's: home has to be without it."""
    home.cli("rm", DEMO)


@pytest.mark.parametrize("role", ["guest", "client", "worker"])
def test_a_ticket_of_any_role_makes_a_guest_that_gets_whole_answers_and_nothing_else(
    meshes: tuple[NodeProcess, NodeProcess], role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    home, studio = meshes
    added = federate(home, studio, role)
    assert (added["name"], added["mesh"], added["models"]) == ("studio", "studio-mesh", [DEMO])
    (guest,) = [peer for peer in studio.api.get("/peers")["peers"] if not peer["self"]]
    assert (guest["peer"], guest["role"], guest["state"]) == (home.peer_id, "guest", "online")
    assert studio.api.get("/status")["mesh"]["members"] == 1
    assert [peer["self"] for peer in home.api.get("/peers")["peers"]] == [True], "no device of this mesh"
    expected = studio.infer(DEMO, "What is a mesh?")
    answer = home.infer(BEYOND, "What is a mesh?")
    assert answer["text"] == expected["text"]
    (stage,) = answer["stages"]
    assert (stage["name"], stage["mesh"], stage["peer"]) == ("studio of studio", "studio", studio.peer_id)
    (forwarded,), (ended,) = home.events("RequestForwarded"), home.events("ForwardedRequestEnded")
    assert (forwarded["data"]["peer"], forwarded["data"]["model"]) == (studio.peer_id, BEYOND)
    assert forwarded["data"]["mesh"] == added["mesh_id"] == studio.peer_id
    accepted, finished = studio.events("RequestAccepted")[-1], studio.events("RequestFinished")[-1]
    assert accepted["data"]["caller"] == home.peer_id
    assert ended["data"]["served_as"] == accepted["data"]["request_id"]
    assert ended["data"]["completion_tokens"] == finished["data"]["completion_tokens"]
    assert ended["data"]["cost_microunits"] == 0, "free between neighbours"
    assert run_command(["ps", "--all", "--data", str(home.data)]) == 0
    assert "whole by the mesh studio" in capsys.readouterr().out
    assert run_command(["federation", "list", "--data", str(home.data)]) == 0
    shown = capsys.readouterr().out
    assert "can be asked" in shown
    assert DEMO in shown
    assert verify_folder(home.data).ok
    assert verify_folder(studio.data).ok


def test_models_are_listed_as_that_mesh_s_and_asked_for_by_their_own_name_when_nobody_here_has_them(
    meshes: tuple[NodeProcess, NodeProcess],
) -> None:
    home, studio = meshes
    federate(home, studio)
    forget_the_model(home)
    (row,) = home.api.get("/models")["models"]
    assert (row["name"], row["mesh"], row["here"], row["holders"]) == (
        BEYOND,
        "studio",
        "no",
        [studio.peer_id],
    )
    assert row["layers"] == 8
    expected = studio.infer(DEMO, "What is a mesh?")["text"]
    assert home.infer(DEMO, "What is a mesh?")["text"] == expected
    home.cli("set", "serve.meshes", "never")
    with pytest.raises(NodeError, match="no device of this mesh has a model named"):
        home.infer(DEMO, "What is a mesh?")
    assert home.infer(BEYOND, "What is a mesh?")["text"] == expected, "asked for by name"
    with pytest.raises(NodeError, match="answers whole requests for p2pnode-demo and nothing else"):
        home.api.post("/v1/embeddings", {"model": BEYOND, "input": "a"})
    with pytest.raises(NodeError, match="the mesh studio has no model named 'nothing'") as caught:
        home.infer("nothing@studio", "What is a mesh?")
    assert DEMO in str(caught.value.hint)


def test_what_this_mesh_cannot_load_is_answered_there(tmp_path: Path) -> None:
    """No room for the model here, and no other device: the other mesh has the very same one."""
    studio = NodeProcess(tmp_path, "studio")
    home = NodeProcess(tmp_path, "home", "--memory-max", "1M")
    try:
        before = [e["type"] for e in home.events()]
        federate(home, studio)
        answer = home.api.post(
            "/infer", {"model": DEMO, "messages": [{"role": "user", "content": "Hello"}], "mode": "pipeline"}
        )
        assert answer["stages"][0]["mesh"] == "studio"
        assert "RequestForwarded" not in before
    finally:
        home.stop()
        studio.stop()


def test_a_caller_that_goes_away_ends_the_work_there(meshes: tuple[NodeProcess, NodeProcess]) -> None:
    home, studio = meshes
    federate(home, studio)
    asked = {"model": BEYOND, "prompt": "Once upon a time", "max_tokens": 400, "temperature": 0}
    with closing(home.api.stream("/infer/stream", asked)) as events:
        next(event for event in events if event["type"] == "text")
    studio.until(
        "the end there",
        "/log/entries?limit=1000",
        lambda v: any(
            e["type"] == "RequestFinished" and e["data"]["reason"] == "cancelled" for e in v["entries"]
        ),
    )
    home.until(
        "the end here",
        "/log/entries?limit=1000",
        lambda v: any(e["type"] == "ForwardedRequestEnded" for e in v["entries"]),
    )
    assert home.events("ForwardedRequestEnded")[-1]["data"]["reason"] == "cancelled"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_answer_goes_on_here_when_the_other_mesh_dies_over_it(
    meshes: tuple[NodeProcess, NodeProcess], how: signal.Signals
) -> None:
    """The same stream, no word twice and none missing: this mesh has the very same model."""
    home, studio = meshes
    federate(home, studio)
    asked = {"model": BEYOND, "prompt": "Once upon a time", "max_tokens": 100, "temperature": 0}
    pieces: list[str] = []
    try:
        with closing(home.api.stream("/infer/stream", asked)) as events:
            for event in events:
                if event["type"] == "text":
                    pieces.append(event["text"])
                    if len(pieces) == 5:
                        os.kill(studio.process.pid, how)
                last = event
    finally:
        os.kill(studio.process.pid, signal.SIGKILL)
    whole = home.infer(DEMO, "Once upon a time", raw=True, max_tokens=100)
    assert "".join(pieces) == whole["text"]
    assert last["stages"][0]["name"] == "home", "who computed it is said"
    assert verify_folder(home.data).ok


def test_a_mesh_that_is_gone_or_sent_this_one_away_says_so(meshes: tuple[NodeProcess, NodeProcess]) -> None:
    home, studio = meshes
    federate(home, studio)
    forget_the_model(home)
    studio.cli("revoke", "home")
    with pytest.raises(NodeError, match="the mesh studio does not let this device in any more"):
        home.infer(BEYOND, "What is a mesh?")
    studio.stop()
    with pytest.raises(NodeError, match="studio"):
        home.infer(BEYOND, "What is a mesh?")


def test_a_guest_is_one_again_after_a_restart_of_both(tmp_path: Path) -> None:
    home, studio = (
        NodeProcess(tmp_path, "home"),
        NodeProcess(tmp_path, "studio", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"),
    )
    try:
        federate(home, studio)
        home.stop()
        home = NodeProcess(tmp_path, "home")
        home.until("the models", "/models", lambda v: any(m["name"] == BEYOND for m in v["models"]))
        assert home.infer(BEYOND, "What is a mesh?")["stages"][0]["mesh"] == "studio"
        assert home.cli("federation", "remove", "studio")["name"] == "studio"
        assert home.cli("federation", "list") == {"meshes": []}
        with pytest.raises(NodeError, match="no device of this mesh has a model named"):
            home.infer(BEYOND, "What is a mesh?")
    finally:
        home.stop()
        studio.stop()
