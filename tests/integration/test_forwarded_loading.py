"""A request that another device serves, whose model is not in memory there: the asking device says how far it is."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from p2pnode.api.app import create_app
from p2pnode.node.active import Active, Say
from p2pnode.node.faces import Faces
from tests.kit.net import until
from tests.kit.node_here import node_here
from tests.unit.api.conftest import LoopbackClient

DEMO = "p2pnode-demo"
CHAT = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 4, "temperature": 0}


async def test_progress_of_the_serving_device_reaches_who_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with its name and progress, then lines in a stream, then the answer; both records tell of both requests."""
    async with AsyncExitStack() as stack:
        alpha = await stack.enter_async_context(node_here(tmp_path / "alpha"))
        ticket = (await alpha.mesh.invite(uses=1, expires_s=600, role="worker", label=""))["ticket"]
        beta = await stack.enter_async_context(node_here(tmp_path / "beta", "beta", ticket=ticket))
        await until(lambda: any(model.holders for model in beta.catalog.known()))
        may_load, load = asyncio.Event(), alpha.routing.local

        async def slowly(model: Any, say: Say) -> Active:
            say({"state": "loading", "progress": 0.25})
            await may_load.wait()
            return await load(model, say)

        monkeypatch.setattr(alpha.routing, "local", slowly)
        faces = Faces(beta)

        def client(wait_s: float) -> LoopbackClient:
            app = create_app(faces, loading_wait_s=wait_s)
            app.test_client_class = LoopbackClient
            return app.test_client()  # type: ignore[return-value]

        first = await client(0).post("/v1/chat/completions", json=CHAT)
        error = (await first.get_json())["error"]
        assert (first.status_code, error["code"]) == (503, "model_loading")
        shown = error["details"]["loading"]
        assert (shown["node"], shown["state"], shown["progress"]) == ("alpha", "loading", 0.25)
        assert int(first.headers["Retry-After"]) >= 1

        asked = CHAT | {"stream": True, "return_progress": True}
        streaming = asyncio.ensure_future(client(60).post("/v1/chat/completions", json=asked))
        await until(lambda: faces.loading(DEMO) is not None)
        assert (await (await client(0).get("/models")).get_json())["models"][0]["loading"]["node"] == "alpha"
        may_load.set()
        raw = (await (await streaming).get_data()).decode()
        chunks = [json.loads(line[6:]) for line in raw.split("\n\n") if line.startswith("data: {")]
        assert [chunk["loading"]["node"] for chunk in chunks if "loading" in chunk]
        assert chunks[-1]["p2pnode"]["stages"][0]["name"] == "alpha"
        assert raw.endswith("data: [DONE]\n\n")
        assert faces.loading(DEMO) is None
