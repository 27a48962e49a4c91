"""The official openai client against our server: chat and completions, sync and async, errors included."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from p2pnode.errors import InsufficientCredit, StageLost
from tests.kit.api_server import Stand
from tests.kit.fake_node import MODEL, FakeNode

HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'


@pytest.fixture
def client(served: tuple[Stand, str]) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served[1]}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(node: FakeNode, client: OpenAI) -> None:
    """models.list and models.retrieve."""
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "p2pnode"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_chat(node: FakeNode, client: OpenAI) -> None:
    """Every sampling field of chat.completions.create is taken; the answer parses."""
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, temperature=0.2, top_p=0.9, max_tokens=3, seed=1, presence_penalty=0.1,
        frequency_penalty=0.2, stop=["zebra"], n=2, logit_bias={"5": -10}, logprobs=True, top_logprobs=2, user="u",
        extra_body={"top_k": 5, "min_p": 0.1, "mode": "local"},
    )  # fmt: skip
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content == "The quick brown"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content[0].top_logprobs[1].token == "alt1"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert answer.model_extra["p2pnode"]["mode"] == "pipeline"
    assert node.requests[0].sampling.top_k == 5


def test_chat_stream(node: FakeNode, client: OpenAI) -> None:
    """A stream with usage: text in order, the reason, then a chunk without choices."""
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "The quick brown fox jumps."
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens > 5


def test_stream_helper(node: FakeNode, client: OpenAI) -> None:
    """The client's own accumulator understands our chunks, tool calls included."""
    node.reply = f"I look. {CALL}"
    with client.chat.completions.stream(model=MODEL, messages=HELLO, tools=[WEATHER]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.content == "I look. "
    assert json.loads(final.choices[0].message.tool_calls[0].function.arguments) == {"city": "Oslo"}


def test_early_close(node: FakeNode, client: OpenAI) -> None:
    """Closing a stream stops the work."""
    node.reply = "word " * 5000
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, max_tokens=5000)
    next(iter(stream))
    stream.close()
    for _ in range(100):
        if node.cancelled:
            break
        client.models.list()
    assert node.cancelled == 1


@pytest.mark.parametrize(
    "reply",
    [
        CALL,
        '{"name": "weather", "parameters": {"city": "Oslo"}}',
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}}]',
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}',
        '<function=weather>{"city": "Oslo"}</function>',
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_tool_call(node: FakeNode, client: OpenAI, reply: str, stream: bool) -> None:
    """Each family's way of calling becomes tool_calls, and the answer can be given back."""
    node.reply = reply
    if stream:
        chunks = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER], stream=True)
        deltas = [c.choices[0] for c in chunks]
        calls = [call for c in deltas for call in c.delta.tool_calls or []]
        assert "".join(c.delta.content or "" for c in deltas) == ""
        assert deltas[-1].finish_reason == "tool_calls"
    else:
        answer = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER])
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        calls = choice.message.tool_calls
        back = [
            *HELLO,
            choice.message.model_dump(),
            {"role": "tool", "tool_call_id": calls[0].id, "content": "rain"},
        ]
        node.reply = "It rains."
        assert (
            client.chat.completions.create(model=MODEL, messages=back, tools=[WEATHER])
            .choices[0]
            .message.content
        )
    assert len(calls) == 1
    assert (calls[0].function.name, json.loads(calls[0].function.arguments)) == ("weather", {"city": "Oslo"})
    assert '"weather"' in node.requests[0].prompt


def test_forced_tool(node: FakeNode, client: OpenAI) -> None:
    """required and a named function constrain the answer by a grammar; none offers no tools."""
    node.reply = '{"name": "weather", "arguments": {"city": "Oslo"}}'
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = client.chat.completions.create(
            model=MODEL, messages=HELLO, tools=[WEATHER], tool_choice=choice
        )
        assert answer.choices[0].message.tool_calls[0].function.name == "weather"
        assert "weather" in node.requests[-1].sampling.grammar
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    assert "TOOLS" not in node.requests[-1].prompt
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=HELLO, tool_choice="required")


def test_response_format(node: FakeNode, client: OpenAI) -> None:
    """json_object and json_schema become grammars; what a grammar cannot hold is refused by name."""
    node.reply = '{"a": 1}'
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    forms = ({"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    for form in forms:
        answer = client.chat.completions.create(model=MODEL, messages=HELLO, response_format=form)
        assert json.loads(answer.choices[0].message.content) == {"a": 1}
        assert node.requests[-1].sampling.grammar.startswith("root ::=")
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "^a"}}}
    with pytest.raises(openai.BadRequestError, match="pattern"):
        client.chat.completions.create(model=MODEL, messages=HELLO, response_format=bad)


def test_completions(node: FakeNode, client: OpenAI) -> None:
    """Plain completions, whole and streamed, with echo, lists and log probabilities."""
    answer = client.completions.create(model=MODEL, prompt=["a", "b"], echo=True, max_tokens=1, logprobs=1)
    assert [choice.text for choice in answer.choices] == ["aThe", "bThe"]
    assert answer.choices[0].logprobs.text_offset == [1]
    chunks = list(
        client.completions.create(
            model=MODEL, prompt="a", stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == "The quick brown fox jumps."
    assert chunks[-1].usage.completion_tokens == 5


def test_embeddings(node: FakeNode, client: OpenAI) -> None:
    """Floats and base64 (the client's default) give the same vectors."""
    coded = client.embeddings.create(model=MODEL, input=["a b", "c"])
    plain = client.embeddings.create(model=MODEL, input=["a b", "c"], encoding_format="float")
    assert [d.embedding for d in coded.data] == [d.embedding for d in plain.data] == [[1, 0, 2], [1, 0, 1]]
    assert coded.usage.prompt_tokens == 3
    assert client.embeddings.create(model=MODEL, input=[[1, 2], [3]]).data[1].index == 1
    for wrong in ({"input": ""}, {"input": []}, {"input": "a", "dimensions": 2}):
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model=MODEL, **wrong)


def test_errors(node: FakeNode, client: OpenAI) -> None:
    """Each kind of failure is the client's matching exception, with our code."""
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=HELLO, extra_body={"nonsense": 1})
    assert bad.value.param == "nonsense"
    node.fail_before = InsufficientCredit("needs 5, has 1")
    with pytest.raises(openai.RateLimitError) as poor:
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert poor.value.code == "credit_balance_exhausted"
    node.fail_before = None
    node.fail_after = (2, StageLost("kitchen is gone"))
    with pytest.raises(openai.APIError, match="kitchen is gone"):
        list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))


def test_no_retry_without_credit(served: tuple[Stand, str], node: FakeNode) -> None:
    """x-should-retry keeps the client from asking again in vain."""
    node.fail_before = InsufficientCredit("needs 5, has 1")
    patient = OpenAI(base_url=f"{served[1]}/v1", api_key="x", max_retries=3)
    with patient as client, pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert len(node.requests) == 1


async def test_async_client(served: tuple[Stand, str], node: FakeNode) -> None:
    """The async client, whole and streamed."""
    async with AsyncOpenAI(base_url=f"{served[1]}/v1", api_key="x", max_retries=0) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO)
        assert answer.choices[0].message.content == "The quick brown fox jumps."
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == "The quick brown fox jumps."
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="gpt-9", prompt="x")
        embedded = await client.embeddings.create(model=MODEL, input="a")
        assert embedded.data[0].embedding[0] == 1.0
