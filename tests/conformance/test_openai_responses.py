"""The official openai client's Responses API against our stateless one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.kit.fake_node import MODEL, FakeNode

WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_text(node: FakeNode, client: OpenAI) -> None:
    """A text in, a text out, with instructions and usage."""
    answer = client.responses.create(model=MODEL, input="hello", instructions="Be brief.", temperature=0)
    assert answer.output_text == "The quick brown fox jumps."
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 5
    assert node.requests[0].prompt.startswith("<|im_start|>system\nBe brief.")
    assert node.requests[0].sampling.temperature == 0


def test_cut_answer(client: OpenAI) -> None:
    """An answer at its length limit is incomplete and says why."""
    answer = client.responses.create(model=MODEL, input="hello", max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_stream(client: OpenAI) -> None:
    """Events come in order, numbered, and end with the whole response."""
    events = list(client.responses.create(model=MODEL, input="hello", stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (
        "".join(e.delta for e in events if e.type == "response.output_text.delta")
        == "The quick brown fox jumps."
    )
    assert events[-1].response.output_text == "The quick brown fox jumps."


@pytest.mark.parametrize("stream", [False, True])
def test_tools(node: FakeNode, client: OpenAI, stream: bool) -> None:
    """A function call is an output item; its result goes back in the next input."""
    node.reply = f"I look. {CALL}"
    if stream:
        with client.responses.stream(model=MODEL, input="hello", tools=[WEATHER]) as events:
            answer = events.get_final_response()
    else:
        answer = client.responses.create(model=MODEL, input="hello", tools=[WEATHER])
    assert [item.type for item in answer.output] == ["message", "function_call"]
    call = answer.output[1]
    assert json.loads(call.arguments) == {"city": "Oslo"}
    node.reply = "It rains."
    history = [
        {"role": "user", "content": "hello"},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    assert client.responses.create(model=MODEL, input=history, tools=[WEATHER]).output_text == "It rains."
    forced = client.responses.create(
        model=MODEL, input="x", tools=[WEATHER], tool_choice={"type": "function", "name": "weather"}
    )
    assert forced.status == "completed"
    assert "weather" in node.requests[-1].sampling.grammar


def test_schema(node: FakeNode, client: OpenAI) -> None:
    """text.format constrains the answer."""
    node.reply = '{"a": true}'
    form = {
        "type": "json_schema",
        "name": "x",
        "schema": {"type": "object", "properties": {"a": {"type": "boolean"}}},
    }
    client.responses.create(model=MODEL, input="x", text={"format": form})
    assert "boolean" in node.requests[-1].sampling.grammar


@pytest.mark.parametrize(
    "wrong",
    [
        {"previous_response_id": "resp_1"},
        {"input": [{"type": "input_image"}]},
        {"input": [{"role": "robot", "content": "x"}]},
        {"background": True},
        {"tools": [{"type": "web_search"}]},
    ],
)
def test_refused(client: OpenAI, wrong: dict) -> None:
    """What would need state or other senses is refused, not ignored."""
    with pytest.raises(openai.BadRequestError):
        client.responses.create(**{"model": MODEL, "input": "x", **wrong})


async def test_async(url: str) -> None:
    """The async client streams too."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        stream = await client.responses.create(model=MODEL, input="x", stream=True)
        assert [event.type async for event in stream][-1] == "response.completed"
