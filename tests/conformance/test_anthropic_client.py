"""What the official anthropic client can ask, sync and async, whole and streamed, errors included."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import pydantic
import pytest

from p2pnode.errors import EngineUnavailable, InsufficientCredit, StageLost
from tests.kit.fake_node import MODEL, FakeNode

HELLO: Any = [{"role": "user", "content": "hello"}]
TEXT = "The quick brown fox jumps."
WEATHER: Any = {
    "name": "weather",
    "description": "Tells the weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
def client(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_messages(client: anthropic.Anthropic, node: FakeNode) -> None:
    said = client.messages.create(
        model=MODEL, max_tokens=3, messages=HELLO, system=[{"type": "text", "text": "Be brief."}],
        stop_sequences=["zebra"], extra_body={"temperature": 0.25, "top_k": 3, "top_p": 0.5},
    )  # fmt: skip
    assert (said.content[0].text, said.stop_reason, said.usage.output_tokens) == (
        "The quick brown",
        "max_tokens",
        3,
    )
    (asked,) = node.requests
    assert (asked.sampling.temperature, asked.sampling.top_k, asked.sampling.top_p) == (0.25, 3, 0.5)
    assert "zebra" in asked.stop
    assert "system\nBe brief." in str(asked.prompt)


def test_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model=MODEL, max_tokens=99, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == TEXT
        last = stream.get_final_message()
    assert (last.content[0].text, last.stop_reason) == (TEXT, "end_turn")
    assert last.usage.output_tokens > 0
    kinds = [
        event.type for event in client.messages.create(model=MODEL, max_tokens=9, messages=HELLO, stream=True)
    ]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")


def test_stop_sequence(client: anthropic.Anthropic) -> None:
    said = client.messages.create(model=MODEL, max_tokens=99, messages=HELLO, stop_sequences=["brown"])
    assert (said.stop_reason, said.stop_sequence) == ("stop_sequence", "brown")


@pytest.mark.parametrize("stream", [False, True])
def test_tools(client: anthropic.Anthropic, node: FakeNode, stream: bool) -> None:
    """A tool is demanded, called with an object, and its result goes back."""
    node.reply = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
    wish: Any = {"model": MODEL, "max_tokens": 99, "messages": HELLO, "tools": [WEATHER],
                 "tool_choice": {"type": "tool", "name": "weather"}}  # fmt: skip
    if stream:
        with client.messages.stream(**wish) as events:
            said: Any = events.get_final_message()
    else:
        said = client.messages.create(**wish)
    (call,) = said.content
    assert (said.stop_reason, call.type, call.name, call.input) == (
        "tool_use",
        "tool_use",
        "weather",
        {"city": "Oslo"},
    )
    assert node.requests[0].sampling.grammar
    result: Any = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}],
    }
    node.reply = "Sunny."
    after = client.messages.create(
        model=MODEL,
        max_tokens=9,
        messages=[*HELLO, {"role": "assistant", "content": said.content}, result],
        tools=[WEATHER],
    )
    assert after.content[0].text == "Sunny."
    assert "sunny" in str(node.requests[-1].prompt)


class Fox(pydantic.BaseModel):
    speed: int


def test_a_document_of_a_schema(client: anthropic.Anthropic, node: FakeNode) -> None:
    """`output_config.format` is a grammar; `parse` makes an object of the answer."""
    node.reply = '{"speed": 7}'
    said = client.messages.parse(model=MODEL, max_tokens=99, messages=HELLO, output_format=Fox)
    assert said.parsed_output == Fox(speed=7)
    assert "speed" in str(node.requests[0].sampling.grammar)
    with pytest.raises(anthropic.BadRequestError, match="cannot both be"):
        client.messages.parse(
            model=MODEL,
            max_tokens=9,
            messages=HELLO,
            output_format=Fox,
            tools=[WEATHER],
            tool_choice={"type": "any"},
        )


def test_what_has_no_effect_is_named(client: anthropic.Anthropic) -> None:
    raw = client.messages.with_raw_response.create(
        model=MODEL, max_tokens=3, messages=HELLO, metadata={"user_id": "u"}, cache_control={"type": "ephemeral"},
        output_config={"effort": "low"},
    )  # fmt: skip
    assert raw.headers["X-P2PNode-Ignored"] == "cache_control, metadata, output_config.effort"
    assert raw.parse().content[0].text == "The quick brown"


def test_counting_and_models(client: anthropic.Anthropic) -> None:
    assert client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens > 0
    models = list(client.models.list())
    assert MODEL in [model.id for model in models]
    assert all(model.type == "model" and model.display_name and model.created_at for model in models)
    assert client.models.retrieve(MODEL).id == MODEL


def kind_of(error: anthropic.APIStatusError) -> str:
    body: Any = error.body
    assert body["type"] == "error"
    return str(body["error"]["type"])


def test_errors(client: anthropic.Anthropic, node: FakeNode) -> None:
    """Each has the class of its status and the type that programs look at."""
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="nope", max_tokens=3, messages=HELLO)
    assert kind_of(missing.value) == "not_found_error"
    with pytest.raises(anthropic.BadRequestError) as wrong:
        client.messages.create(model=MODEL, max_tokens=0, messages=HELLO)
    assert kind_of(wrong.value) == "invalid_request_error"
    for condition, cls, kind in (
        (InsufficientCredit("no credit"), anthropic.RateLimitError, "rate_limit_error"),
        (EngineUnavailable("busy"), anthropic.InternalServerError, "overloaded_error"),
    ):
        node.fail_before = condition
        with pytest.raises(cls) as caught:
            client.messages.create(model=MODEL, max_tokens=3, messages=HELLO)
        assert kind_of(caught.value) == kind


def test_an_error_in_the_middle(client: anthropic.Anthropic, node: FakeNode) -> None:
    node.fail_after = (2, StageLost("the device with layers 4-7 is gone"))
    with (
        client.messages.stream(model=MODEL, max_tokens=99, messages=HELLO) as stream,
        pytest.raises(anthropic.APIStatusError, match="layers 4-7"),
    ):
        list(stream.text_stream)
    assert node.running == 0


def test_async(url: str) -> None:
    async def ask() -> tuple[str, str]:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
            whole = await client.messages.create(model=MODEL, max_tokens=99, messages=HELLO)
            async with client.messages.stream(model=MODEL, max_tokens=99, messages=HELLO) as stream:
                streamed = "".join([text async for text in stream.text_stream])
            with pytest.raises(anthropic.NotFoundError):
                await client.messages.create(model="nope", max_tokens=3, messages=HELLO)
            return whole.content[0].text, streamed

    assert asyncio.run(ask()) == (TEXT, TEXT)
