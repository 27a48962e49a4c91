"""`p2pnode log ...` against running devices: keys rotated, records sealed, witnesses followed, policies kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnode.cli.main import run_command
from p2pnode.events.verify import verify_folder
from tests.kit.mesh import MeshOfProcesses, NodeProcess, mesh_of


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    with mesh_of(tmp_path_factory.mktemp("faces"), "alpha", "beta") as made:
        yield made


@pytest.fixture
def run(mesh: MeshOfProcesses, capsys: pytest.CaptureFixture[str]) -> Any:
    def command(*arguments: str, status: int = 0) -> Any:
        said = ["log", *arguments, "--data", str(mesh.nodes[0].data)]
        assert run_command(said) == status
        out = capsys.readouterr().out
        return json.loads(out) if "--json" in arguments else out

    return command


def cosigned(node: NodeProcess) -> dict[str, Any]:
    """The node's witnesses once the newest checkpoint is cosigned."""
    node.api.post("/command/witness", {})
    view: dict[str, Any] = node.api.get("/log/witnesses")
    (row,) = view["cosigned_by"]
    sealed = int(view["checkpoint"].split("\n")[1])
    assert row["size"] == sealed
    return view


def test_witnesses_follow_rotated_keys(mesh: MeshOfProcesses, run: Any) -> None:
    """Twice on a running node; old and new checkpoints verify, and the witness goes on cosigning."""
    alpha, beta = mesh.nodes
    before = cosigned(alpha)["checkpoint"]
    for generation in (1, 2):
        assert run("rotate-keys", "--json")["generation"] == generation
        cosigned(alpha)
    assert [event["data"]["generation"] for event in alpha.events("KeysBound")] == [0, 1, 2]
    assert run("verify").startswith("ok")
    assert verify_folder(alpha.data, peer=alpha.peer_id, checkpoints=[before]).ok
    assert not beta.api.get("/log/witnesses")["equivocations"]
    assert beta.api.post("/command/verify_peer_log", {"peer": alpha.peer_id})["ok"]


def test_sealing_on_demand(mesh: MeshOfProcesses, run: Any) -> None:
    alpha = mesh.nodes[0]
    alpha.api.post("/settings", {"key": "keep_texts", "value": "false"})
    index = alpha.events("SettingChanged")[-1]["index"]
    assert "events are sealed in" in run("seal")
    assert run("proof", str(index)).startswith("c2sp.org/tlog-proof")


def test_a_policy_is_written_met_and_kept(mesh: MeshOfProcesses, run: Any, tmp_path: Path) -> None:
    """By the members that cosign; as a file of the node its verdict is in the witnesses' view after a restart."""
    alpha, beta = mesh.nodes
    cosigned(alpha)
    path = tmp_path / "policy"
    run("policy", "--need", "1", "--output", str(path))
    assert f"p2pnode/{beta.peer_id}/witness+" in path.read_text()
    assert "policy: met by" in run("verify", "--policy", str(path))
    run("policy", "--need", "2", status=1)
    assert alpha.api.get("/log/witnesses")["policy"] is None
    assert beta.stop() == 0
    (beta.data / "log" / "policy").write_bytes(path.read_bytes().replace(b"log ", b"# log "))
    again = NodeProcess(mesh.root, "beta")
    mesh.nodes[1] = again
    verdict = again.api.get("/log/witnesses")["policy"]
    assert (verdict["ok"], verdict["missing"]) == (False, ["w1"]), "it can not cosign itself"
    assert again.stop() == 0
    (beta.data / "log" / "policy").write_text("quorum nobody\n")
    with pytest.raises(AssertionError, match="line 1 of the policy"):
        NodeProcess(mesh.root, "beta")
