"""A model that is not in memory yet: 503 with progress after a while, or progress in the stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from p2pnode.api.app import create_app
from p2pnode.errors import NotFound, P2PNodeError
from p2pnode.facade import JsonObject
from tests.kit.fake_node import MODEL, FakeNode
from tests.unit.api.conftest import LoopbackClient

VIEW = {"state": "loading", "node": "kitchen", "progress": 0.25, "eta_s": None}
BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/rerank": {"query": "hi", "documents": ["a"]},
    "/v1/responses": {"input": "hi"},
    "/infer": {"prompt": "hi"},
    "/infer/stream": {"prompt": "hi"},
    "/pipeline/infer": {"prompt": "hi"},
    "/tensor/infer": {"prompt": "hi"},
    "/tokenize": {"content": "hi"},
    "/detokenize": {"tokens": [1]},
}


def client_of(node: FakeNode, wait_s: float) -> LoopbackClient:
    app = create_app(node, loading_wait_s=wait_s)
    app.test_client_class = LoopbackClient
    return app.test_client()  # type: ignore[return-value]


def events_of(raw: bytes) -> list[dict]:
    lines = [line[6:] for line in raw.decode().split("\n\n") if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_route_says_how_far_the_model_is(path: str, stream: bool) -> None:
    """503 in the envelope, with where and how far; no time is guessed, and the work behind the request is ended."""
    if (
        stream
        and "stream" not in path
        and path.rpartition("/")[2] in ("embeddings", "rerank", "tokenize", "detokenize")
    ):
        return
    node = FakeNode()
    node.loading_views[MODEL] = VIEW
    body = BODIES[path] | ({"stream": True} if stream and not path.endswith("stream") else {})
    response = await client_of(node, 0).post(path, json=body)
    error = (await response.get_json())["error"]
    assert (response.status_code, error["code"], error["type"]) == (503, "model_loading", "server_error")
    assert error["details"]["loading"] == VIEW
    assert "loading on kitchen, 25% done" in error["message"]
    assert response.headers["Retry-After"] == "2"
    assert response.headers["x-should-retry"] == "true"
    assert node.running == 0


async def test_retry_after_is_the_time_that_is_known() -> None:
    """A model that will not be there in time is said at once, with the time it needs."""
    node = FakeNode()
    node.loading_views[MODEL] = VIEW | {"eta_s": 700.0}
    response = await client_of(node, 60).post("/v1/chat/completions", json=BODIES["/v1/chat/completions"])
    assert (response.status_code, response.headers["Retry-After"]) == (503, "700")


class Watched(FakeNode):
    """Its model is there with the second look at how far it is."""

    looks = 0

    def loading(self, model: str) -> JsonObject | None:
        self.looks += 1
        if self.looks == 2:
            self.loaded.set()
        return super().loading(model)


@pytest.mark.parametrize("path", BODIES)
async def test_a_model_that_comes_in_time_is_waited_for(path: str) -> None:
    node = Watched()
    node.loading_views[MODEL] = VIEW
    response = await client_of(node, 60).post(path, json=BODIES[path])
    assert response.status_code == 200
    assert node.looks >= 2


class Loading(FakeNode):
    """Its model is as far as each of these, one look after the other, and then there."""

    def __init__(self, *views: JsonObject) -> None:
        super().__init__()
        self.left = list(views)
        self.loading_views[MODEL] = VIEW

    def loading(self, model: str) -> JsonObject | None:
        if len(self.left) == 1:
            self.loaded.set()
        return self.left.pop(0) if self.left else None


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/infer/stream", "/agent/stream"]
)
async def test_streams_show_progress_to_who_asks(path: str) -> None:
    """With `return_progress` the stream begins at once, says how far the model is, and goes on with the answer."""
    node = Loading(VIEW, VIEW | {"progress": 0.5, "eta_s": 3.5})
    body = BODIES.get(path, BODIES["/v1/chat/completions"]) | {"return_progress": True}
    if path.startswith("/v1"):
        body["stream"] = True
    response = await client_of(node, 0).post(path, json=body)
    raw = await response.get_data()
    events = events_of(raw)
    seen = [
        event.get("loading", event)
        for event in events
        if "loading" in event or event.get("type") == "loading"
    ]
    assert [(view["progress"], view["eta_s"]) for view in seen] == [(0.25, None), (0.5, 3.5)]
    assert b"quick" in raw
    assert raw.endswith(b"data: [DONE]\n\n")


async def test_a_plan_is_applied_in_sight() -> None:
    """`stream`: how far each device is, then the plan."""
    node = Loading(VIEW, VIEW | {"progress": 0.75})
    response = await client_of(node, 0).post("/plan", json={"apply": True, "stream": True})
    events = events_of(await response.get_data())
    assert [event["type"] for event in events] == ["loading", "loading", "plan"]
    assert events[-1]["applied"] is True
    assert "stream" not in node.plans_asked[-1]


class Copying(FakeNode):
    """A command that ends when somebody has looked how far it is, or fails."""

    failure: P2PNodeError | None = None

    async def command(self, name: str, arguments: Mapping[str, Any]) -> JsonObject:
        if self.failure is not None:
            raise self.failure
        await self.loaded.wait()
        return {"name": name}

    def transfer(self, model: str) -> JsonObject | None:
        self.loaded.set()
        return super().transfer(model)


async def test_a_command_is_watched() -> None:
    """`?stream=true`: what is fetched so far, then the answer; an error is an event."""
    node = Copying()
    fetching = {
        "state": "fetching",
        "node": "attic",
        "progress": 0.5,
        "eta_s": None,
        "done_bytes": 1,
        "total_bytes": 2,
    }
    node.transfer_views["demo"] = fetching

    response = await client_of(node, 0).post("/command/copy_model?stream=true", json={"model": "demo"})
    assert events_of(await response.get_data()) == [
        {"type": "transfer", **fetching},
        {"type": "done", "name": "copy_model"},
    ]
    node.failure = NotFound("there is no device 'attic'")
    response = await client_of(node, 0).post("/command/copy_model?stream=true", json={})
    assert events_of(await response.get_data())[-1]["error"]["code"] == "not_found"
