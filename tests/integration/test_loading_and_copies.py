"""Models on their way: into memory (503 with progress, then an answer) and onto another device's disk."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnode.api.app import create_app
from p2pnode.errors import NoPlan, P2PNodeError
from p2pnode.node.faces import Faces
from tests.kit.mesh import MeshOfProcesses, mesh_of
from tests.kit.net import until
from tests.kit.node_here import node_here
from tests.unit.api.conftest import LoopbackClient

CHAT = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 4, "temperature": 0}


async def test_a_cold_model_is_said_to_load_and_loads_on(tmp_path: Path) -> None:
    """The first request hears 503 at once; the model comes although nobody waits, and the next request is answered."""
    async with node_here(tmp_path / "node") as node:
        app = create_app(Faces(node), loading_wait_s=0)
        app.test_client_class = LoopbackClient
        client = app.test_client()
        first = await client.post("/v1/chat/completions", json=CHAT)
        error = (await first.get_json())["error"]
        assert (first.status_code, error["code"]) == (503, "model_loading")
        assert error["details"]["loading"]["node"] == "alpha"
        assert int(first.headers["Retry-After"]) >= 1
        shown = (await (await client.get("/models")).get_json())["models"][0]["loading"]
        assert shown["state"] in ("preparing", "fetching", "loading")
        await until(lambda: node.loads.view("p2pnode-demo") is None)
        second = await client.post("/v1/chat/completions", json=CHAT)
        assert second.status_code == 200
        assert (await second.get_json())["choices"][0]["message"]["content"]


async def test_a_model_is_loaded_anyway(tmp_path: Path) -> None:
    """Short memory is refused with numbers; who knows better may say so, within what the operator allows."""
    async with node_here(tmp_path / "node") as node:
        faces = Faces(node)
        node.capability.measured.update(memory_free_bytes=1_000_000)
        wish = {"model": "p2pnode-demo", "mode": "local"}
        with pytest.raises(NoPlan) as refused:
            await faces.plan(wish)
        numbers = refused.value.details["rejections"][0]["numbers"]
        assert (numbers["free_bytes"], numbers["needed_bytes"] > 1_000_000) == (1_000_000, True)
        made = await faces.plan({**wish, "anyway": True})
        assert made["mode"] == "local"
        assert "not counted" in made["reasons"][-1]
        node.capability.measured.update(memory_total_bytes=1_000_000)
        with pytest.raises(NoPlan):
            await faces.plan({**wish, "anyway": True})


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    with mesh_of(tmp_path_factory.mktemp("copies"), "alpha", "beta") as mesh:
        mesh.join("gamma")
        mesh.nodes[2].online(3)
        yield mesh


def cli(mesh: MeshOfProcesses, number: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "p2pnode", *arguments, "--data", str(mesh.nodes[number].data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def here(mesh: MeshOfProcesses, number: int) -> str:
    models = mesh.nodes[number].api.get("/models")["models"]
    return next((m["here"] for m in models if m["name"] == "p2pnode-demo"), "no")


def test_copy_to_another_device(mesh: MeshOfProcesses) -> None:
    """The other device has every byte, verified and recorded; a second copy fetches nothing."""
    assert here(mesh, 1) != "complete"
    done = cli(mesh, 0, "models", "copy", "p2pnode-demo", "beta", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["bytes_fetched"] >= answer["size_bytes"] > 1_000_000
    assert here(mesh, 1) == "complete"
    assert [event["data"]["source"] for event in mesh.nodes[1].events("ModelAdded")] == ["peer"]
    again = cli(mesh, 0, "models", "copy", "p2pnode-demo", "beta")
    assert (again.returncode, again.stdout) == (0, "p2pnode-demo is on beta (0 B fetched)\n")


def test_copy_from_whoever_holds_it(mesh: MeshOfProcesses) -> None:
    """A device that holds nothing itself may ask, and sees how far it is."""
    events = list(
        mesh.nodes[2].api.stream(
            "/command/copy_model?stream=true", {"model": "p2pnode-demo", "device": "gamma"}
        )
    )
    assert events[-1]["type"] == "done"
    assert here(mesh, 2) == "complete"
    fractions = [event["progress"] for event in events if event["type"] == "transfer" and event["progress"]]
    assert fractions == sorted(fractions)


@pytest.mark.parametrize(
    ("model", "device", "code"),
    [("p2pnode-demo", "nobody", "not_found"), ("no-such-model", "beta", "model_not_found")],
)
def test_copies_that_cannot_be(mesh: MeshOfProcesses, model: str, device: str, code: str) -> None:
    done = cli(mesh, 0, "models", "copy", model, device, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == code


def test_a_client_may_not_fill_disks(mesh: MeshOfProcesses) -> None:
    """A device that joined to ask questions is refused by the device it wants to copy to."""
    from tests.kit.mesh import NodeProcess

    guest = NodeProcess(mesh.root, "guest", mesh.nodes[0].invite(role="client"))
    try:
        guest.online(4)
        with pytest.raises(P2PNodeError, match="client cannot copy"):
            guest.api.post("/command/copy_model", {"model": "p2pnode-demo", "device": "alpha"})
    finally:
        guest.stop()
