"""Two models on a device that may hold one: the idle one goes for the other and comes back; one at work stays."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from p2pnode.endpoint import NodeError
from tests.kit.mesh import MeshOfProcesses, NodeProcess, mesh_of

DEMO, OTHER = "p2pnode-demo", "other"


@pytest.fixture(scope="module")
def alpha(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    root = tmp_path_factory.mktemp("several")
    data = bytearray((Path(__file__).parents[2] / "models" / f"{DEMO}.gguf").read_bytes())
    data[-100] ^= 1  # another model to whoever counts
    other = root / f"{OTHER}.gguf"
    other.write_bytes(data)
    arguments = ("--model", str(other), "--memory-max", "150M")
    with mesh_of(root, "alpha", first_arguments=arguments) as made:
        yield _only(made)


def _only(mesh: MeshOfProcesses) -> NodeProcess:
    (node,) = mesh.nodes
    return node


def loaded(node: NodeProcess) -> set[str]:
    return {model["name"] for model in node.api.get("/models")["models"] if model["loaded"]}


def test_the_idle_one_makes_room_and_comes_back(alpha: NodeProcess) -> None:
    first = alpha.infer(DEMO, "What is a peer?", mode="local")["text"]
    assert loaded(alpha) == {DEMO}
    alpha.infer(OTHER, "hello", raw=True, mode="local")
    assert loaded(alpha) == {OTHER}
    assert alpha.infer(DEMO, "What is a peer?", mode="local")["text"] == first
    assert loaded(alpha) == {DEMO}


def test_one_at_work_stays(alpha: NodeProcess) -> None:
    """While an answer that cannot end by itself runs, nothing else is loaded in its place."""
    asked = {"model": DEMO, "prompt": "one two three", "max_tokens": 3000, "grammar": "root ::= [a-z ] root"}
    events = alpha.api.stream("/infer/stream", {**asked, "mode": "local"})
    assert isinstance(events, Generator)
    with closing(events):
        next(events)
        with pytest.raises(NodeError, match="at work") as refused:
            alpha.infer(OTHER, "hello", raw=True, mode="local")
        assert refused.value.status == 503
        assert loaded(alpha) == {DEMO}
        assert next(events), "and it goes on"
    alpha.until("idle", "/sessions", lambda view: not [s for s in view["sessions"] if "age_s" in s])
    alpha.infer(OTHER, "hello", raw=True, mode="local")
    assert loaded(alpha) == {OTHER}
