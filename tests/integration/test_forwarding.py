"""A request that another device serves whole is in both records, each naming the other's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from p2pnode.cli.main import run_command
from p2pnode.endpoint import NodeError
from p2pnode.events.verify import verify_folder
from tests.kit.mesh import MeshOfProcesses, mesh_of

DEMO = "p2pnode-demo"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    with mesh_of(tmp_path_factory.mktemp("forwarding"), "alpha", "beta") as made:
        made.nodes[1].until("the model", "/models", lambda v: any(m["holders"] for m in v["models"]))
        yield made


def test_both_records_tell_of_it(mesh: MeshOfProcesses, capsys: pytest.CaptureFixture[str]) -> None:
    alpha, beta = mesh.nodes
    answer = beta.infer(DEMO, "Once upon a time")
    (forwarded,), (ended,) = beta.events("RequestForwarded"), beta.events("ForwardedRequestEnded")
    accepted, finished = alpha.events("RequestAccepted")[-1], alpha.events("RequestFinished")[-1]
    request_id = forwarded["data"]["request_id"]
    assert (forwarded["data"]["peer"], forwarded["data"]["caller"]) == (alpha.peer_id, "local")
    assert forwarded["request_id"] == ended["request_id"] == request_id
    assert ended["data"]["served_as"] == accepted["data"]["request_id"] != request_id
    assert accepted["data"]["caller"] == beta.peer_id
    for field in ("reason", "prompt_tokens", "completion_tokens"):
        assert ended["data"][field] == finished["data"][field]
    assert ended["data"]["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert forwarded["data"]["prompt_commitment"] != accepted["data"]["prompt_commitment"], (
        "salts of their own"
    )
    session = beta.api.get("/sessions")["sessions"][0]
    assert (session["request_id"], session["mode"], session["state"]) == (request_id, "forwarded", "finished")
    assert (session["served_by"], session["served_by_name"]) == (alpha.peer_id, "alpha")
    assert run_command(["ps", "--all", "--data", str(beta.data)]) == 0
    assert "whole by alpha" in capsys.readouterr().out
    (row,) = beta.api.get("/log/usage")["usage"]
    assert (row["requests"], row["completion_tokens"]) == (1, ended["data"]["completion_tokens"])
    shown = beta.api.get("/log/entries", {"limit": 1000})["entries"]
    assert not any("Once upon" in str(entry) for entry in shown)


def test_a_caller_that_goes_away_is_recorded(mesh: MeshOfProcesses) -> None:
    beta = mesh.nodes[1]
    asked = {"model": DEMO, "prompt": "Once upon a time", "max_tokens": 200, "temperature": 0}
    with closing(beta.api.stream("/infer/stream", asked)) as stream:
        next(event for event in stream if event["type"] == "text")
    beta.until(
        "the end",
        "/log/entries?limit=1000",
        lambda v: sum(e["type"] == "ForwardedRequestEnded" for e in v["entries"]) == 2,
    )
    assert beta.events("ForwardedRequestEnded")[-1]["data"]["reason"] == "cancelled"


def test_a_device_that_dies_over_it_is_recorded(mesh: MeshOfProcesses) -> None:
    """The error is the caller's answer and in the record; the record still verifies."""
    alpha, beta = mesh.nodes
    asked = {"model": DEMO, "prompt": "Once upon a time", "max_tokens": 200, "temperature": 0}
    with closing(beta.api.stream("/infer/stream", asked)) as stream, suppress(NodeError):
        for event in stream:
            if event["type"] == "text" and alpha.process.poll() is None:
                alpha.kill()
    beta.until(
        "the failure",
        "/log/entries?limit=1000",
        lambda v: any(e["type"] == "RequestFailed" for e in v["entries"]),
    )
    failed = beta.events("RequestFailed")[-1]["data"]
    assert failed["request_id"] == beta.events("RequestForwarded")[-1]["data"]["request_id"]
    assert failed["code"] in ("peer_unreachable", "stream_reset", "peer_timeout", "connection_lost")
    assert verify_folder(beta.data).ok
