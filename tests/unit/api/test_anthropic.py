"""Anthropic's form: whole and streamed messages, tools in both directions, counts, and what cannot be done."""

from __future__ import annotations

import json
from typing import Any

import pytest
from quart import Quart

from p2pnode.api.app import create_app
from p2pnode.api.keys import MemoryKeys
from p2pnode.api.security import ApiSecurity
from p2pnode.errors import StageLost
from tests.kit.fake_node import MODEL, FakeNode
from tests.unit.api.conftest import LoopbackClient

TEXT = "The quick brown fox jumps."
ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}
TOOL = {"name": "weather", "description": "Weather", "input_schema": {"type": "object", "properties": {}}}
CALL = 'Wait. <tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'


async def whole(client: LoopbackClient, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post("/v1/messages", json=body)
    answer: dict[str, Any] = await response.get_json()
    assert response.status_code == 200, answer
    return answer


async def streamed(client: LoopbackClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Its events; each is named like its type."""
    response = await client.post("/v1/messages", json=body | {"stream": True})
    assert response.status_code == 200
    events = []
    for part in (await response.get_data()).decode().strip().split("\n\n"):
        name, data = part.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1].get('type', 'error')}"
    return events


def built(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message as a client puts it together."""
    message: dict[str, Any] = {}
    arguments = ""
    for event in events:
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
                arguments = ""
            case "content_block_delta" if event["delta"]["type"] == "text_delta":
                message["content"][event["index"]]["text"] += event["delta"]["text"]
            case "content_block_delta":
                arguments += event["delta"]["partial_json"]
            case "content_block_stop" if message["content"][event["index"]]["type"] == "tool_use":
                message["content"][event["index"]]["input"] = json.loads(arguments)
            case "message_delta":
                message |= event["delta"] | {"usage": event["usage"], "p2pnode": event["p2pnode"]}
    assert events[-1] == {"type": "message_stop"}
    return message


async def test_whole_and_streamed_are_the_same(client: LoopbackClient, node: FakeNode) -> None:
    ask = ASK | {
        "system": "Be brief.", "temperature": 0.5, "top_p": 0.9, "top_k": 7, "stop_sequences": ["zebra"],
    }  # fmt: skip
    answer, message = await whole(client, ask), built(await streamed(client, ask))
    for one in (answer, message):
        assert one["content"] == [{"type": "text", "text": TEXT}]
        assert (one["type"], one["role"], one["stop_reason"], one["model"]) == (
            "message",
            "assistant",
            "end_turn",
            MODEL,
        )
        assert one["usage"]["output_tokens"] == 5
        assert one["usage"]["input_tokens"] > 0
        assert one["p2pnode"]["stages"][1]["name"] == "kitchen"
    request = node.requests[0]
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (0.5, 0.9, 7)
    assert "zebra" in request.stop
    assert str(request.prompt).startswith("<|im_start|>system\nBe brief.")
    assert request.request_id == answer["id"]
    assert node.running == 0


async def test_why_it_stopped(client: LoopbackClient) -> None:
    assert (await whole(client, ASK | {"max_tokens": 2}))["stop_reason"] == "max_tokens"
    stopped = await whole(client, ASK | {"stop_sequences": ["brown"]})
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "brown")


async def test_tools(client: LoopbackClient, node: FakeNode) -> None:
    """A call is a block, its result comes back as one, and both reach the model as what they are."""
    node.reply = CALL
    ask = ASK | {"tools": [TOOL]}
    answer, message = await whole(client, ask), built(await streamed(client, ask))
    for one in (answer, message):
        text, call = one["content"]
        assert text["text"].strip() == "Wait."
        assert (call["type"], call["name"], call["input"], one["stop_reason"]) == (
            "tool_use",
            "weather",
            {"city": "Oslo"},
            "tool_use",
        )
    assert "TOOLS" in str(node.requests[0].prompt)
    past = [
        *ASK["messages"],
        {"role": "assistant", "content": answer["content"]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "sunny"}]},
            {"type": "text", "text": "And now?"},
        ]},
    ]  # fmt: skip
    await whole(client, ask | {"messages": past})
    prompt = str(node.requests[-1].prompt)
    assert prompt.index("<|im_start|>tool\nsunny") < prompt.index("<|im_start|>user\nAnd now?")
    forced = ask | {"tool_choice": {"type": "tool", "name": "weather"}}
    await whole(client, forced)
    assert "weather" in str(node.requests[-1].sampling.grammar)


async def test_counts(client: LoopbackClient, node: FakeNode) -> None:
    response = await client.post(
        "/v1/messages/count_tokens", json={"model": MODEL, "messages": ASK["messages"]}
    )
    assert (await response.get_json())["input_tokens"] > 0
    assert node.requests == []


async def test_what_has_no_effect_is_named(client: LoopbackClient) -> None:
    response = await client.post("/v1/messages", json=ASK | {"metadata": {"user_id": "u"}})
    assert response.headers["X-P2PNode-Ignored"] == "metadata"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"colour": "blue"}, "colour"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": 5}]}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": ["x"]}]}]},
            "messages",
        ),
        ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "messages"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "clock"}}, "tool_choice"),
    ],
)
async def test_what_cannot_be_done_is_said(
    client: LoopbackClient, node: FakeNode, change: dict[str, Any], param: str
) -> None:
    response = await client.post("/v1/messages", json=ASK | change)
    error = (await response.get_json())["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert node.requests == []


async def test_a_failure_in_the_middle_is_an_event(client: LoopbackClient, node: FakeNode) -> None:
    node.fail_after = (2, StageLost("the device with layers 4-7 is gone"))
    events = await streamed(client, ASK)
    assert "layers 4-7" in events[-1]["error"]["message"]
    assert node.running == 0


async def test_its_clients_show_their_key_elsewhere(node: FakeNode) -> None:
    """From the network a key is needed; `x-api-key` is one."""
    keys = MemoryKeys()
    _, secret = keys.create("claude", "use", 1)
    app: Quart = create_app(node, ApiSecurity(host="0.0.0.0", keys=keys))
    app.test_client_class = LoopbackClient
    client = app.test_client()
    bare = await client.post("/v1/messages", json=ASK)
    shown = await client.post("/v1/messages", json=ASK, headers={"X-Api-Key": secret})
    assert (bare.status_code, shown.status_code) == (401, 200)
