"""The Python client against a served node with a true record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import p2pnode
from p2pnode.endpoint import NodeError
from p2pnode.errors import BadCheckpoint, CorruptRecord, NodeNotRunning, NonCanonical, StageLost
from tests.kit.api_server import serving
from tests.kit.fake_node import MODEL
from tests.kit.recorded_node import RecordedNode


@pytest.fixture
def node() -> RecordedNode:
    return RecordedNode()


@pytest.fixture
def url(node: RecordedNode, tmp_path: Path) -> Iterator[str]:
    with serving(node, inside=node.recording(tmp_path)) as url:
        yield url


def test_answers(url: str, node: RecordedNode) -> None:
    """generate sends the prompt as it is, chat through the template; both say who computed."""
    with p2pnode.connect(url) as mesh:
        answer = mesh.generate("Once", max_tokens=2, temperature=0, seed=3)
        assert (str(answer), answer.finish_reason, answer.mode) == ("The quick", "length", "pipeline")
        assert answer.stages[1]["name"] == "kitchen"
        assert answer.details["cost_microunits"] == 6
        assert node.requests[0].prompt == "Once"
        assert mesh.chat("hello").text == "The quick brown fox jumps."
        assert mesh.chat(
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}], model=MODEL
        )
        assert "Be brief." in str(node.requests[-1].prompt)


def test_stream(url: str, node: RecordedNode) -> None:
    """Pieces come one by one, the whole answer at the end; a broken answer raises."""
    mesh = p2pnode.connect(url)
    pieces = mesh.stream("hello")
    assert next(pieces) == "The"
    assert [next(pieces) for _ in range(4)] == [" quick", " brown", " fox", " jumps."]
    with pytest.raises(StopIteration) as end:
        next(pieces)
    assert end.value.value.text == "The quick brown fox jumps."
    node.fail_after = (1, StageLost("kitchen is gone"))
    with pytest.raises(NodeError, match="kitchen is gone") as broken:
        list(mesh.stream("hello"))
    assert broken.value.node_code == "stage_lost"


def test_views_and_doing(url: str) -> None:
    """Views are plain lists and dicts; plans and tickets come back as they are."""
    mesh = p2pnode.connect(url)
    assert [peer["name"] for peer in mesh.peers()] == ["studio", "kitchen"]
    assert mesh.models()[0]["name"] == MODEL
    assert mesh.status()["ready"] is True
    assert mesh.billing()["accounts"][0]["available_microunits"] == 5_000_000
    assert mesh.plan(MODEL, stages=2, devices=["studio"])["mode"] == "pipeline"
    assert mesh.invite() == "p2p1-TEST"
    assert len(mesh.embed(["a", "b"])) == 2
    with pytest.raises(NodeError) as unknown:
        mesh.plan("gpt-9")
    assert unknown.value.as_dict()["code"] == "model_not_found"


def test_log(url: str, node: RecordedNode) -> None:
    """verify proves entries here; a forged one is caught."""
    log = p2pnode.connect(url).log
    assert log.size() == len(log.entries(limit=100)) > 10
    assert log.verify()
    assert log.verify(3)
    with pytest.raises(CorruptRecord, match="not under the checkpoint"):
        log.verify(log.size())

    def forged(name: str, arguments: Mapping[str, Any], answer: Any) -> Any:
        if name == "event":
            return {**answer, "entry": answer["entry"][:-2] + "00"}
        return answer

    node.forge = forged
    with pytest.raises((BadCheckpoint, CorruptRecord, NonCanonical)):
        log.verify(3)


async def test_async(url: str) -> None:
    """The async twins say the same."""
    async with p2pnode.connect_async(url) as mesh:
        assert (await mesh.chat("hello")).text == "The quick brown fox jumps."
        assert (await mesh.generate("x", max_tokens=1)).text == "The"
        assert "".join([piece async for piece in mesh.stream("hello")]) == "The quick brown fox jumps."
        assert len(await mesh.peers()) == 2
        assert len(await mesh.models()) == 1
        assert (await mesh.plan())["mode"] == "pipeline"
        assert len(await mesh.embed("a")) == 1


def test_everything_public_says_what_it_does() -> None:
    """What notebooks show: names after a dot, and a docstring of each."""
    assert set(p2pnode.__all__) <= set(dir(p2pnode))
    for kind in (p2pnode.Mesh, p2pnode.AsyncMesh):
        methods = [getattr(kind, name) for name in dir(kind) if not name.startswith("_")]
        assert [method.__qualname__ for method in methods if callable(method) and not method.__doc__] == []


def test_nobody_there(tmp_path: Path) -> None:
    """Without a node the error says how to start one."""
    with pytest.raises(NodeNotRunning, match="no node is running"):
        p2pnode.connect(data=tmp_path)
    with pytest.raises(NodeNotRunning, match="no node answers"):
        p2pnode.connect("127.0.0.1:1")
    with pytest.raises(AttributeError):
        p2pnode.nonsense  # noqa: B018 # asking is the test
