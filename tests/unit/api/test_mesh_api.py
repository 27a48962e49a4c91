"""The mesh's own addresses: views, plans, invites, the record, modes, metrics, the live feed."""

from __future__ import annotations

import asyncio
import json

import pytest

from p2pnode.errors import PlanError
from tests.kit.fake_node import MODEL, FakeNode


@pytest.mark.parametrize("name", ["status", "peers", "models", "plans", "sessions", "billing", "settings"])
async def test_views(client, node: FakeNode, name: str) -> None:
    """A view is what the projections say."""
    assert await (await client.get(f"/{name}")).get_json() == json.loads(json.dumps(getattr(node, name)()))


async def test_plans(client, node: FakeNode) -> None:
    """GET proposes, POST may apply; the address names the mode unless the body does."""
    answer = await (await client.post("/plan", json={"model": MODEL, "stages": 2, "apply": True})).get_json()
    assert answer["applied"] is True
    await client.get(f"/pipeline/plan?model={MODEL}&devices=studio,kitchen&stages=2")
    await client.post("/tensor/plan", json={})
    await client.post("/tensor/plan", json={"mode": "hybrid"})
    assert [asked["mode"] for asked in node.plans_asked] == ["auto", "pipeline", "tensor", "hybrid"]
    assert node.plans_asked[1]["devices"] == ["studio", "kitchen"]
    assert (await client.get("/pipeline/plan?apply=true")).status_code == 400
    assert (await client.get("/pipeline/plan?stages=many")).status_code == 400
    assert (await client.post("/plan", json={"mode": "magic"})).status_code == 400


async def test_no_plan(client, node: FakeNode) -> None:
    """A refusal carries its reasons."""
    node.shown["plan"] = PlanError(
        "nothing fits", rejections=[{"name": "studio", "reason": "needs 9.1 GB, 6.2 free"}]
    )
    response = await client.post("/plan", json={})
    assert response.status_code == 409
    assert (await response.get_json())["error"]["details"]["rejections"][0]["name"] == "studio"


async def test_invite_with_qr(client) -> None:
    """The picture is plain SVG."""
    made = await (await client.post("/invites?qr=1", json={"uses": 2, "expires_s": 900})).get_json()
    assert made["qr"].startswith("<?xml")
    assert "<script" not in made["qr"]
    assert (await client.post("/invites", json={"uses": 0})).status_code == 400


async def test_record_and_commands(client, node: FakeNode) -> None:
    """Questions keep their types; commands reach the node; the short names are the long ones."""
    answer = await (await client.get("/log/entries?first=3&verbose=true&type=NodeStarted")).get_json()
    assert answer["arguments"] == {"first": 3, "verbose": True, "type": "NodeStarted"}
    await client.post("/command/pause", json={"reason": "dinner"})
    await client.post("/billing/topup", json={"account": "local"})
    await client.post("/settings", json={"key": "a", "value": "b"})
    await client.post("/tensor/rpc/start", json={})
    assert [name for name, _ in node.commands] == ["pause", "topup", "set", "tensor_rpc_start"]
    assert (await client.post("/command/pause", data=b"[]")).status_code == 400
    assert (await (await client.get("/tensor/status")).get_json()) == {"plans": [], "sessions": []}
    assert (await (await client.get("/settings/origins")).get_json())["settings"][0][
        "origin"
    ] == "flag --threads"


async def test_infer(client, node: FakeNode) -> None:
    """The short form: a prompt or messages, the address names the mode."""
    answer = await (await client.post("/pipeline/infer", json={"prompt": "Once", "max_tokens": 2})).get_json()
    assert (answer["text"], answer["finish_reason"], answer["mode"]) == ("The quick", "length", "pipeline")
    await client.post("/tensor/infer", json={"prompt": "x", "mode": "local"})
    assert [request.mode for request in node.requests] == ["pipeline", "local"]
    for wrong in ({}, {"prompt": "x", "messages": []}, {"prompt": "x", "n": 2}):
        assert (await client.post("/infer", json=wrong)).status_code == 400
    raw = await (
        await client.post("/infer/stream", json={"messages": [{"role": "user", "content": "x"}]})
    ).get_data()
    kinds = [json.loads(line[6:])["type"] for line in raw.decode().splitlines() if line.startswith("data: {")]
    assert kinds == ["prefill", *["text"] * 5, "finished"]


async def test_tokens(client) -> None:
    """Texts become token ids and token ids texts."""
    tokens = (await (await client.post("/tokenize", json={"content": "a b"})).get_json())["tokens"]
    assert len(tokens) == 2
    text = (await (await client.post("/detokenize", json={"tokens": [1, 2]})).get_json())["content"]
    assert text == "<1><2>"


async def test_metrics(client) -> None:
    """What was asked and written is counted, with the record's counts beside it."""
    await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
    await client.get("/nothing")
    text = (await (await client.get("/metrics")).get_data()).decode()
    assert f'p2pnode_tokens_generated_total{{mode="pipeline",model="{MODEL}"}} 5.0' in text
    assert f'p2pnode_time_to_first_token_seconds_count{{model="{MODEL}"}} 1.0' in text
    assert 'p2pnode_http_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'p2pnode_http_requests_total{route="none",status="404"} 1.0' in text
    assert 'p2pnode_events_total{type="NodeStarted"} 3.0' in text
    assert "p2pnode_log_size 42.0" in text
    assert 'p2pnode_link_rtt_seconds{peer="odeFake2"} 0.0024' in text
    assert 'p2pnode_link_reachable{direction="out",peer="odeFake2"} 1.0' in text
    assert "p2pnode_answers_running 0.0" in text


async def test_live(app, client, node: FakeNode) -> None:
    """The feed sends events with their index as id, ends with the server, and frees its place."""
    async with client.request(
        "/api/live?after=3", headers={"Host": "localhost"}, scope_base={"client": ("127.0.0.1", 1)}
    ) as connection:
        await connection.send_complete()
        seen = b""
        while b"data: " not in seen:
            seen += await asyncio.wait_for(connection.receive(), 5)
        assert b"id: 7\n" in seen
        assert app.extensions["p2pnode"].live_readers == 1
        await connection.disconnect()
    for _ in range(100):
        if not node.running:
            break
        await asyncio.sleep(0.01)
    assert node.running == 0
    assert app.extensions["p2pnode"].live_readers == 0


async def test_busy(app, client) -> None:
    """Past the limit the answer is 503 with Retry-After, and a place that is free again is used."""
    context = app.extensions["p2pnode"]
    context.generating = 10**6
    response = await client.post("/infer", json={"prompt": "x"})
    assert response.status_code == 503
    assert response.headers["Retry-After"]
    context.live_readers = 10**6
    assert (await client.get("/api/live")).status_code == 503
    context.generating = 0
    assert (await client.post("/infer", json={"prompt": "x"})).status_code == 200
    assert context.generating == 0


async def test_panel_files(client) -> None:
    """Files have their types, are checked for changes, and nothing outside the folder is served."""
    page = await client.get("/")
    assert page.content_type.startswith("text/html")
    script = await client.get("/web/app.js")
    assert script.content_type.startswith("text/javascript")
    again = await client.get("/web/app.js", headers={"If-None-Match": script.headers["ETag"]})
    assert again.status_code == 304
    assert (await client.get("/web/nothing.js")).status_code == 404
    assert (await client.get("/favicon.ico")).content_type == "image/svg+xml"
