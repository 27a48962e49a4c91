"""External servers join the mesh: their models are listed, served whole, recorded, and reached from other devices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from p2pnode.cli.doctor import check_backends
from p2pnode.errors import Busy, ContextFull, EngineUnavailable, P2PNodeError
from p2pnode.events.types import RequestFailed
from p2pnode.facade import Finished, GenerateRequest, SamplingParams, TextDelta
from p2pnode.node.backends import DISCOVER, list_models
from p2pnode.node.core import Node
from p2pnode.node.faces import Faces
from p2pnode.server_address import address_of
from tests.kit.mesh import MeshOfProcesses, mesh_of
from tests.kit.node_here import node_here
from tests.kit.openai_server import WORDS, OpenAIServer, openai_server

TEXT = "".join(WORDS)


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with openai_server() as made:
        yield made


@pytest.fixture(autouse=True)
def _faultless(server: OpenAIServer) -> Iterator[None]:
    yield
    server.fault = ""
    server.gate.clear()
    server.gone.clear()


# --- a mesh of processes ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, server: OpenAIServer) -> Iterator[MeshOfProcesses]:
    root = tmp_path_factory.mktemp("backends")
    with mesh_of(root, "alpha", "beta", first_arguments=("--backend", server.url)) as made:
        for node in made.nodes:
            node.until("the model", "/models", lambda v: any(m["name"] == "toy:1b" for m in v["models"]))
        yield made


def test_its_models_are_listed_everywhere(mesh: MeshOfProcesses, server: OpenAIServer) -> None:
    alpha, beta = mesh.nodes
    for node, here in ((alpha, "complete"), (beta, "no")):
        (model,) = [m for m in node.api.get("/models")["models"] if m["name"] == "toy:1b"]
        assert (model["here"], model["holders"], model["context_length"]) == (here, [alpha.peer_id], 4096)
        assert "toy:1b" in [row["id"] for row in node.api.get("/v1/models")["data"]]
    assert alpha.api.get("/status")["backends"] == [
        {"address": server.url, "models": ["toy:1b"], "running": 0, "trouble": ""}
    ]


@pytest.mark.parametrize("asker", ["alpha", "beta"])
def test_it_answers_from_any_device(mesh: MeshOfProcesses, server: OpenAIServer, asker: str) -> None:
    """The conversation reaches it as one, its own counts are the usage, and the serving device records it."""
    alpha = mesh.nodes[0]
    node = next(n for n in mesh.nodes if n.name == asker)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    answer = node.api.post(
        "/v1/chat/completions", {"model": "toy:1b", "messages": messages, "temperature": 0, "top_k": 3}
    )
    assert answer["choices"][0]["message"]["content"] == TEXT
    assert answer["choices"][0]["finish_reason"] == "stop"
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (21, len(WORDS))
    assert usage["prompt_tokens_details"]["cached_tokens"] == 5
    assert (answer["p2pnode"]["mode"], answer["p2pnode"]["stages"][0]["name"]) == ("external", "alpha")
    asked = server.asked[-1]
    assert (asked["messages"], asked["temperature"], asked["top_k"]) == (messages, 0, 3)
    finished = alpha.events("RequestFinished")[-1]["data"]
    assert (finished["prompt_tokens"], finished["completion_tokens"]) == (21, len(WORDS))
    accepted = alpha.events("RequestAccepted")[-1]["data"]
    assert (accepted["mode"], accepted["model"]) == ("external", "external:toy:1b")
    assert accepted["caller"] == ("local" if asker == "alpha" else mesh.nodes[1].peer_id)


def test_it_streams(mesh: MeshOfProcesses) -> None:
    beta = mesh.nodes[1]
    events = list(beta.api.stream("/infer/stream", {"model": "toy:1b", "prompt": "Hi", "max_tokens": 4}))
    assert [e["text"] for e in events if e["type"] == "text"] == WORDS[:4]
    assert events[-1]["finish_reason"] == "length"


def test_what_it_cannot_do_is_refused_by_name(mesh: MeshOfProcesses) -> None:
    alpha = mesh.nodes[0]
    for path, body in (
        ("/v1/embeddings", {"model": "toy:1b", "input": "x"}),
        ("/tokenize", {"model": "toy:1b", "content": "x"}),
        ("/v1/completions", {"model": "toy:1b", "prompt": [1, 2]}),
    ):
        with pytest.raises(P2PNodeError, match="server"):
            alpha.api.post(path, body)


# --- misbehaviour, with a node in this process -----------------------------------------------------
@pytest.fixture
async def node(tmp_path: Path, server: OpenAIServer) -> AsyncIterator[Node]:
    async with node_here(tmp_path / "n", backends=(address_of(server.url),)) as made:
        await made.backends.refresh()
        yield made


async def answer(node: Node, **wish: Any) -> tuple[str, Finished]:
    text, end = "", None
    request = GenerateRequest("toy:1b", "Hi", sampling=SamplingParams(), **wish)
    async with aclosing(node.generate(request)) as events:  # type: ignore[type-var] # generators all
        async for event in events:
            if isinstance(event, TextDelta):
                text += event.text
            elif isinstance(event, Finished):
                end = event
    assert end is not None
    return text, end


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("busy", Busy),
        ("context", ContextFull),
        ("crash", EngineUnavailable),
        ("no http", EngineUnavailable),
        ("dies", EngineUnavailable),
        ("error inside", EngineUnavailable),
        ("huge line", EngineUnavailable),
        ("no json", EngineUnavailable),
        ("ends early", EngineUnavailable),
    ],
)
async def test_trouble_is_a_condition_and_recorded(
    node: Node, server: OpenAIServer, fault: str, kind: type[P2PNodeError]
) -> None:
    server.fault = fault
    with pytest.raises(kind):
        await answer(node)
    events = [record.event for record in node.ledger.log.read(0, node.ledger.log.size)]
    failed = [event for event in events if isinstance(event, RequestFailed)]
    assert [event.code for event in failed] == [kind.code]
    server.fault = ""
    assert (await answer(node))[0] == TEXT, "and the next one is answered"
    assert node.backends.view()[0]["running"] == 0
    assert not node.requests.running


async def test_a_server_without_counts_is_counted_by_its_pieces(node: Node, server: OpenAIServer) -> None:
    server.fault = "no usage"
    text, end = await answer(node, max_tokens=4)
    assert (text, end.reason, end.completion_tokens) == ("".join(WORDS[:4]), "length", 4)


async def test_who_hangs_up_ends_the_work_there(node: Node, server: OpenAIServer) -> None:
    server.fault = "slow"
    request = GenerateRequest("toy:1b", "Hi")
    events = node.generate(request)
    assert isinstance(await anext(events), TextDelta)
    await events.aclose()  # type: ignore[attr-defined] # a generator
    server.gate.set()
    assert await asyncio.to_thread(server.gone.wait, 20)
    assert not node.requests.running


async def test_a_key_is_sent_and_never_shown(tmp_path: Path) -> None:
    with openai_server(kind="library", key="sesame") as server:
        with pytest.raises(EngineUnavailable, match="says: Invalid API Key"):
            await list_models(address_of(server.url))
        address = address_of(server.url.replace("http://", "http://:sesame@"))
        async with node_here(tmp_path / "n", backends=(address,)) as node:
            await node.backends.refresh()
            (view,) = [m for m in Faces(node).models()["models"] if m.get("external")]
            assert (view["architecture"], view["quantisation"], view["size_bytes"]) == (
                "ollama",
                "Q4_K_M",
                77,
            )
            assert (await answer(node))[0] == TEXT
            shown = f"{Faces(node).status()}{Faces(node).options()}{Faces(node).models()}"
            assert server.url in shown
            assert "sesame" not in shown


async def test_a_server_that_comes_and_goes(tmp_path: Path) -> None:
    with openai_server() as server:
        address = address_of(server.url)
    async with node_here(tmp_path / "n", backends=(address,)) as node:
        await node.backends.refresh()
        (view,) = node.backends.view()
        assert view["models"] == []
        assert "went away" in view["trouble"]
        with pytest.raises(P2PNodeError) as caught:
            await answer(node)
        assert caught.value.code == "model_not_found"


async def test_loopback_is_searched_only_when_allowed(
    tmp_path: Path, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pnode.node.backends.KNOWN_PORTS", (server.server_address[1],))
    async with node_here(tmp_path / "n") as node:
        await node.backends.refresh()
        assert not node.backends.known()
        await Faces(node).command("set", {"key": DISCOVER, "value": "on"})
        await node.backends.refresh()
        assert list(node.backends.known()) == ["toy:1b"]
        assert (await answer(node))[0] == TEXT
        await Faces(node).command("set", {"key": DISCOVER, "value": "off"})
        await node.backends.refresh()
        assert not node.backends.known()


def test_doctor_names_what_it_finds(server: OpenAIServer) -> None:
    port = server.server_address[1]
    (check,) = check_backends((port,))
    assert (check.state, check.name) == ("note", "other servers")
    assert f"127.0.0.1:{port} has 1 model" in check.message
    assert "--backend" in check.hint
    with openai_server() as other:
        closed = other.server_address[1]
    assert check_backends((closed,)) == []
