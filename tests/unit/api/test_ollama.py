"""Ollama's addresses: its clients find models, stream lines of JSON, call tools and read counts as they are used to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2pnode.errors import StageLost
from tests.kit.fake_node import MODEL, FakeNode
from tests.unit.api.conftest import LoopbackClient

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
TEXT = "The quick brown fox jumps."


async def lines(client: LoopbackClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = await client.post(path, json=body)
    assert (response.status_code, response.content_type) == (200, "application/x-ndjson")
    raw = await response.get_data()
    assert raw.endswith(b"\n")
    return [json.loads(line) for line in raw.splitlines()]


async def document(client: LoopbackClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(path, json=body)
    answer: dict[str, Any] = await response.get_json()
    assert response.status_code == 200, answer
    return answer


async def refused(client: LoopbackClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code in (400, 404)
    error: dict[str, Any] = await response.get_json()
    assert error["error"]
    assert isinstance(error["error"], str), "its clients show it as it is"
    return error


async def test_chat_streams_unless_told_not_to(client: LoopbackClient, node: FakeNode) -> None:
    body = {
        "model": MODEL,
        "messages": HELLO,
        "options": {"temperature": 0, "num_predict": 3, "seed": 5, "stop": ["zebra"]},
    }
    seen = await lines(client, "/api/chat", body)
    assert "".join(line["message"]["content"] for line in seen) == "The quick brown"
    assert [line["done"] for line in seen] == [False] * 3 + [True]
    last = seen[-1]
    assert (last["done_reason"], last["eval_count"], last["prompt_eval_duration"]) == (
        "length",
        3,
        250_000_000,
    )
    assert last["eval_duration"] == 500_000_000
    assert last["total_duration"] >= 0
    (asked,) = node.requests
    assert (asked.max_tokens, asked.sampling.temperature, asked.sampling.seed) == (3, 0, 5)
    assert "zebra" in asked.stop
    assert "<|im_start|>user\nhello" in str(asked.prompt)
    whole = await document(client, "/api/chat", body | {"stream": False})
    assert whole["message"] == {"role": "assistant", "content": "The quick brown"}
    assert whole["done"]
    assert node.running == 0


async def test_names_with_latest_are_ours(client: LoopbackClient) -> None:
    answer = await document(
        client, "/api/chat", {"model": f"{MODEL}:latest", "messages": HELLO, "stream": False}
    )
    assert answer["model"] == f"{MODEL}:latest"
    error = await refused(client, "/api/chat", {"model": "llama3:8b", "messages": HELLO})
    assert error["code"] == "model_not_found"


async def test_generate(client: LoopbackClient, node: FakeNode) -> None:
    seen = await lines(client, "/api/generate", {"model": MODEL, "prompt": "hello", "system": "Be brief."})
    assert "".join(line["response"] for line in seen) == TEXT
    assert "system\nBe brief." in str(node.requests[0].prompt)
    raw = await document(
        client, "/api/generate", {"model": MODEL, "prompt": "hello", "raw": True, "stream": False}
    )
    assert (raw["response"], node.requests[1].prompt) == (TEXT, "hello")
    assert raw["done_reason"] == "stop"


@pytest.mark.parametrize(("path", "part"), [("/api/chat", "message"), ("/api/generate", "response")])
async def test_nothing_to_say_loads_the_model(
    client: LoopbackClient, node: FakeNode, path: str, part: str
) -> None:
    answer = await document(client, path, {"model": MODEL})
    assert (answer["done"], answer["done_reason"]) == (True, "load")
    assert part in answer
    assert node.requests == []


@pytest.mark.parametrize("stream", [True, False])
async def test_tools(client: LoopbackClient, node: FakeNode, stream: bool) -> None:
    """Arguments are an object in both directions."""
    node.reply = 'Wait. <tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
    past = [
        *HELLO,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}],
        },
        {"role": "tool", "content": "sunny", "tool_name": "weather"},
    ]
    body = {"model": MODEL, "messages": past, "tools": [TOOL], "stream": stream}
    seen = await lines(client, "/api/chat", body) if stream else [await document(client, "/api/chat", body)]
    calls = [call for line in seen for call in line["message"].get("tool_calls", [])]
    assert calls == [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
    assert "".join(line["message"]["content"] for line in seen).strip() == "Wait."
    assert "TOOLS" in str(node.requests[0].prompt)


async def test_formats_are_grammars(client: LoopbackClient, node: FakeNode) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    for form in ("json", schema):
        await document(
            client, "/api/chat", {"model": MODEL, "messages": HELLO, "format": form, "stream": False}
        )
    assert all("root" in str(request.sampling.grammar) for request in node.requests)
    assert "age" in str(node.requests[1].sampling.grammar)


async def test_lists(client: LoopbackClient) -> None:
    tags = await (await client.get("/api/tags")).get_json()
    (row,) = tags["models"]
    assert (row["name"], row["size"], row["details"]["family"]) == (MODEL, 9_000_000, "llama")
    assert row["details"]["quantization_level"] == "Q8_0"
    shown = await document(client, "/api/show", {"model": MODEL})
    assert shown["model_info"]["llama.context_length"] == 2048
    assert shown["capabilities"] == ["completion", "tools"]
    assert (await (await client.get("/api/version")).get_json())["version"]
    assert "models" in await (await client.get("/api/ps")).get_json()


async def test_embeddings(client: LoopbackClient) -> None:
    many = await document(client, "/api/embed", {"model": MODEL, "input": ["one two", "three"]})
    assert many["embeddings"] == [[1.0, 0.0, 2.0], [1.0, 0.0, 1.0]]
    assert many["prompt_eval_count"] == 3
    one = await document(client, "/api/embeddings", {"model": MODEL, "prompt": "one two"})
    assert one == {"embedding": [1.0, 0.0, 2.0]}


async def test_what_has_no_effect_is_named(client: LoopbackClient) -> None:
    body = {
        "model": MODEL,
        "messages": HELLO,
        "keep_alive": "5m",
        "options": {"num_ctx": 4096, "mirostat": 0},
    }
    response = await client.post("/api/chat", json=body)
    assert response.headers["X-P2PNode-Ignored"] == "keep_alive, options.num_ctx"


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        ("/api/chat", {"options": {"mirostat": 2}}, "options.mirostat"),
        ("/api/chat", {"options": {"temperature": -1}}, "options.temperature"),
        ("/api/chat", {"options": {"num_predict": 0}}, "options.num_predict"),
        (
            "/api/chat",
            {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]},
            "messages.images",
        ),
        ("/api/chat", {"format": "yaml"}, "format"),
        ("/api/chat", {"colour": "blue"}, "colour"),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/api/generate", {"prompt": "x", "context": [1, 2]}, "context"),
        ("/api/embed", {"input": "x", "dimensions": 8}, "dimensions"),
        ("/api/embed", {"input": "x", "dimensions": 0}, "dimensions"),
        ("/api/chat", {"top_logprobs": 2}, "top_logprobs"),
        ("/api/chat", {"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ("/api/pull", {"model": ""}, "model"),
    ],
)
async def test_what_cannot_be_done_is_said(
    client: LoopbackClient, node: FakeNode, path: str, change: dict[str, Any], param: str
) -> None:
    base: dict[str, Any] = {"model": MODEL} | ({"messages": HELLO} if path == "/api/chat" else {})
    error = await refused(client, path, base | change)
    assert error["param"] == param
    assert node.requests == []


async def test_a_failure_in_the_middle_is_a_line(client: LoopbackClient, node: FakeNode) -> None:
    node.fail_after = (2, StageLost("the device with layers 4-7 is gone"))
    *said, last = await lines(client, "/api/chat", {"model": MODEL, "messages": HELLO})
    assert "".join(line["message"]["content"] for line in said) == "The quick"
    assert "layers 4-7" in last["error"]
    assert node.running == 0
