"""Every field of the tables in specs/11-http.md, asked through the official openai client: sync and async, whole
and streamed. What is taken has an effect, what has none is named in a header, what cannot be done is an error with
its name.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from p2pnode.api import schemas
from p2pnode.api.responses_schemas import ResponsesRequest
from p2pnode.errors import StageLost
from p2pnode.facade import GenerateRequest
from tests.kit.api_server import Stand
from tests.kit.fake_node import CHATML, MODEL, FakeNode

TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
FLAT_TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
CALL = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
CLIENTS = pytest.mark.parametrize("client", ["sync", "async"])


@dataclass
class Seen:
    """One answer: its events (a single one when it came whole), its headers, and what the node was asked."""

    events: list[Any]
    headers: dict[str, str]
    requests: list[GenerateRequest]

    @property
    def sampling(self) -> Any:
        return self.requests[0].sampling

    @property
    def prompt(self) -> str:
        return str(self.requests[0].prompt)

    @property
    def json(self) -> str:
        return " ".join(event.model_dump_json() for event in self.events)


Check = Callable[[Seen], bool]
Row = tuple[dict[str, Any], Check]


def has_usage(seen: Seen) -> bool:
    return seen.events[-1].usage.completion_tokens > 0


SAMPLING: dict[str, Row] = {
    "model": ({"model": MODEL}, lambda s: s.requests[0].model == MODEL),
    "stream": ({}, lambda s: "The" in s.json),
    "stream_options": ({"stream_options": {"include_usage": True}}, has_usage),
    "max_tokens": ({"max_tokens": 2}, lambda s: s.requests[0].max_tokens == 2 and '"length"' in s.json),
    "n": ({"n": 2}, lambda s: len(s.requests) == 2 and '"index":1' in s.json),
    "stop": ({"stop": ["brown"]}, lambda s: "brown" in s.requests[0].stop and "fox" not in s.json),
    "seed": ({"seed": 7}, lambda s: s.sampling.seed == 7),
    "temperature": ({"temperature": 0.25}, lambda s: s.sampling.temperature == 0.25),
    "top_p": ({"top_p": 0.5}, lambda s: s.sampling.top_p == 0.5),
    "top_k": ({"top_k": 5}, lambda s: s.sampling.top_k == 5),
    "min_p": ({"min_p": 0.125}, lambda s: s.sampling.min_p == 0.125),
    "typical_p": ({"typical_p": 0.5}, lambda s: s.sampling.typical_p == 0.5),
    "repeat_penalty": ({"repeat_penalty": 1.5}, lambda s: s.sampling.repeat_penalty == 1.5),
    "repeat_last_n": ({"repeat_last_n": 9}, lambda s: s.sampling.repeat_last_tokens == 9),
    "presence_penalty": ({"presence_penalty": 0.5}, lambda s: s.sampling.presence_penalty == 0.5),
    "frequency_penalty": ({"frequency_penalty": 0.5}, lambda s: s.sampling.frequency_penalty == 0.5),
    "logit_bias": ({"logit_bias": {"5": -10}}, lambda s: s.sampling.logit_bias == {5: -10.0}),
    "grammar": ({"grammar": 'root ::= "a"'}, lambda s: s.sampling.grammar == 'root ::= "a"'),
    "response_format": (
        {"response_format": {"type": "json_object"}},
        lambda s: "root" in s.sampling.grammar,
    ),
    "mode": ({"mode": "local"}, lambda s: s.requests[0].mode == "local"),
    "return_progress": ({"return_progress": True}, lambda s: len(s.events) == 1 or "prompt_progress" in s.json),
    "cache_prompt": ({"cache_prompt": False}, lambda s: s.requests[0].cache_prompt is False),
}  # fmt: skip
TAKEN: dict[str, dict[str, Row]] = {
    "chat": SAMPLING | {
        "messages": ({}, lambda s: "<|im_start|>user\nhello" in s.prompt),
        "max_completion_tokens": ({"max_completion_tokens": 2}, lambda s: s.requests[0].max_tokens == 2),
        "logprobs": ({"logprobs": True}, lambda s: '"logprob":-0.5' in s.json),
        "top_logprobs": ({"logprobs": True, "top_logprobs": 2}, lambda s: "alt1" in s.json),
        "tools": ({"tools": [TOOL]}, lambda s: "TOOLS" in s.prompt),
        "tool_choice": ({"tools": [TOOL], "tool_choice": "required"}, lambda s: "weather" in s.sampling.grammar),
        "parallel_tool_calls": (
            {"tools": [TOOL], "parallel_tool_calls": False}, lambda s: s.json.count('"name":"weather"') == 1,
        ),
        "chat_template_kwargs": ({"chat_template_kwargs": {"shout": "LOUD"}}, lambda s: "LOUD" in s.prompt),
        "modalities": ({"modalities": ["text"]}, lambda s: "The" in s.json),
    },
    "completion": SAMPLING | {
        "prompt": ({}, lambda s: s.prompt == "hello"),
        "logprobs": ({"logprobs": 2}, lambda s: "token_logprobs" in s.json and "alt1" in s.json),
        "echo": ({"echo": True}, lambda s: "hello" in s.json),
        "best_of": ({"best_of": 1}, lambda s: "The" in s.json),
    },
    "embedding": {
        "input": ({"input": ["one two", "three"]}, lambda s: len(s.events[0].data) == 2),
        "model": ({"model": MODEL}, lambda s: s.events[0].model == MODEL),
        "encoding_format": ({"encoding_format": "float"}, lambda s: s.events[0].data[0].embedding[0] == 1.0),
    },
    "responses": {
        "input": ({}, lambda s: "<|im_start|>user\nhello" in s.prompt),
        "model": ({"model": MODEL}, lambda s: s.requests[0].model == MODEL),
        "instructions": ({"instructions": "Be brief."}, lambda s: "system\nBe brief." in s.prompt),
        "max_output_tokens": ({"max_output_tokens": 2}, lambda s: s.requests[0].max_tokens == 2),
        "temperature": SAMPLING["temperature"],
        "top_p": SAMPLING["top_p"],
        "stream": ({}, lambda s: "The" in s.json),
        "text": ({"text": {"format": {"type": "json_object"}}}, lambda s: "root" in s.sampling.grammar),
        "tools": ({"tools": [FLAT_TOOL]}, lambda s: "TOOLS" in s.prompt),
        "tool_choice": (
            {"tools": [FLAT_TOOL], "tool_choice": "required"}, lambda s: "weather" in s.sampling.grammar,
        ),
        "parallel_tool_calls": (
            {"tools": [FLAT_TOOL], "parallel_tool_calls": False},
            lambda s: sum(item.type == "function_call" for item in final(s).output) == 1,
        ),
        "mode": SAMPLING["mode"],
        "truncation": ({"truncation": "disabled"}, lambda s: "The" in s.json),
    },
}  # fmt: skip
IGNORED: dict[str, Any] = {
    "user": "u", "metadata": {"a": "b"}, "service_tier": "auto", "store": False, "safety_identifier": "s",
    "prompt_cache_key": "k", "prompt_cache_retention": "24h", "reasoning_effort": "low", "verbosity": "low",
    "stream_options": {"include_obfuscation": False}, "reasoning": {"effort": "low"},
}  # fmt: skip
REFUSED: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"}, "prediction": {"type": "content", "content": "x"},
    "web_search_options": {}, "functions": [{"name": "f"}], "function_call": "auto", "suffix": "end",
    "dimensions": 8, "previous_response_id": "resp_1", "conversation": "conv_1", "prompt": {"id": "pmpt_1"},
    "background": True, "max_tool_calls": 1, "top_logprobs": 1, "include": ["reasoning.encrypted_content"],
}  # fmt: skip
KINDS = {
    "chat": (schemas.ChatRequest, {"messages": [{"role": "user", "content": "hello"}]}),
    "completion": (schemas.CompletionRequest, {"prompt": "hello"}),
    "embedding": (schemas.EmbeddingRequest, {"input": "hello"}),
    "responses": (ResponsesRequest, {"input": "hello"}),
}


def final(seen: Seen) -> Any:
    """The whole response, which a stream has in its last event."""
    return getattr(seen.events[-1], "response", seen.events[-1])


def rows(table: dict[str, Any]) -> list[tuple[str, str]]:
    return [(kind, field) for kind, fields in table.items() for field in sorted(fields)]


@pytest.fixture
def node(node: FakeNode) -> FakeNode:
    node.metadata["chat_template"] = CHATML + "{{ shout }}"
    return node


def resource(client: Any, kind: str) -> Any:
    return {
        "chat": client.chat.completions,
        "completion": client.completions,
        "embedding": client.embeddings,
        "responses": client.responses,
    }[kind]


@functools.cache
def arguments_of(kind: str) -> frozenset[str]:
    """What the client itself knows of this request."""
    with OpenAI(api_key="none", http_client=openai.DefaultHttpxClient(verify=False)) as client:
        return frozenset(inspect.signature(resource(client, kind).create).parameters)


def ask(served: tuple[Stand, str], client: str, kind: str, fields: dict[str, Any], *, stream: bool) -> Seen:
    """Through the client's own arguments where it has them, else as its `extra_body`."""
    stand, url = served
    given = {"model": MODEL} | KINDS[kind][1] | fields | ({"stream": True} if stream else {})
    known = arguments_of(kind)
    own = {name: value for name, value in given.items() if name in known}
    extra = {name: value for name, value in given.items() if name not in known}
    about = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}

    def with_sync() -> tuple[list[Any], dict[str, str]]:
        with OpenAI(**about, http_client=openai.DefaultHttpxClient(verify=False)) as made:
            raw = resource(made, kind).with_raw_response.create(**own, extra_body=extra)
            answer = raw.parse()
            return list(answer) if stream else [answer], dict(raw.headers)

    async def with_async() -> tuple[list[Any], dict[str, str]]:
        async with AsyncOpenAI(**about, http_client=openai.DefaultAsyncHttpxClient(verify=False)) as made:
            raw = await resource(made, kind).with_raw_response.create(**own, extra_body=extra)
            answer = raw.parse()
            return [event async for event in answer] if stream else [answer], dict(raw.headers)

    events, headers = with_sync() if client == "sync" else asyncio.run(with_async())
    return Seen(events, {name.lower(): value for name, value in headers.items()}, list(stand.node.requests))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tables_here_are_whole(kind: str) -> None:
    """Each field of a request is in exactly one of the three tables: a new one needs a row."""
    fields = {field.name for field in msgspec.structs.fields(KINDS[kind][0])}
    refused, ignored = schemas.REFUSED[kind], schemas.IGNORED[kind]
    assert fields == set(TAKEN[kind]) | refused | ignored
    assert not set(TAKEN[kind]) & (refused | ignored)
    assert refused <= set(REFUSED)
    assert ignored <= set(IGNORED)


@CLIENTS
@STREAMS
@pytest.mark.parametrize(("kind", "field"), rows(TAKEN))
def test_taken(
    served: tuple[Stand, str], node: FakeNode, kind: str, field: str, client: str, stream: bool
) -> None:
    fields, check = TAKEN[kind][field]
    if kind == "embedding" and stream:
        fields = {**fields, "model": MODEL}
        stream = (
            False  # this resource has no streams; the second time shows that nothing is left of the first
        )
    if field == "stream_options" and not stream:
        with pytest.raises(openai.BadRequestError) as refused:
            ask(served, client, kind, fields, stream=stream)
        assert refused.value.param == "stream_options"
        return
    if field == "parallel_tool_calls":
        node.reply = CALL + CALL
    seen = ask(served, client, kind, fields, stream=stream)
    assert check(seen), (seen.requests, seen.json)
    assert "x-p2pnode-ignored" not in seen.headers
    assert seen.headers["x-request-id"]


@CLIENTS
@STREAMS
@pytest.mark.parametrize(("kind", "field"), rows({kind: schemas.IGNORED[kind] for kind in KINDS}))
def test_without_effect(
    served: tuple[Stand, str], node: FakeNode, kind: str, field: str, client: str, stream: bool
) -> None:
    """Nothing is ignored silently: a header names it."""
    seen = ask(served, client, kind, {field: IGNORED[field]}, stream=stream and kind != "embedding")
    assert seen.headers["x-p2pnode-ignored"] == field


@CLIENTS
@STREAMS
@pytest.mark.parametrize(("kind", "field"), rows({kind: schemas.REFUSED[kind] for kind in KINDS}))
def test_refused(
    served: tuple[Stand, str], node: FakeNode, kind: str, field: str, client: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(served, client, kind, {field: REFUSED[field]}, stream=stream and kind != "embedding")
    assert (refused.value.param, refused.value.type) == (field, "invalid_request_error")
    assert node.requests == []


@CLIENTS
@STREAMS
@pytest.mark.parametrize("kind", KINDS)
def test_errors(served: tuple[Stand, str], node: FakeNode, kind: str, client: str, stream: bool) -> None:
    """An unknown field, an unknown model, and a node that fails in the middle: the client's own exceptions."""
    stream = stream and kind != "embedding"
    with pytest.raises(openai.BadRequestError) as unknown:
        ask(served, client, kind, {"colour": "blue"}, stream=stream)
    assert unknown.value.param == "colour"
    with pytest.raises(openai.NotFoundError) as missing:
        ask(served, client, kind, {"model": "gpt-9"}, stream=stream)
    assert missing.value.code == "model_not_found"
    if kind == "embedding":
        return
    node.fail_after = (2, StageLost("the device with layers 4-7 is gone"))
    with pytest.raises(openai.APIError, match="layers 4-7"):
        ask(served, client, kind, {}, stream=stream)
