"""What the official ollama client can ask, sync and async, whole and streamed, errors included."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from p2pnode.errors import StageLost
from tests.kit.fake_node import MODEL, FakeNode

HELLO = [{"role": "user", "content": "hello"}]
TEXT = "The quick brown fox jumps."


@pytest.fixture
def client(url: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=url) as client:
        yield client


def weather(city: str) -> str:
    """Tells the weather.

    Args:
      city: its name
    """
    return f"sunny in {city}"


def test_chat(client: ollama.Client, node: FakeNode) -> None:
    options = {
        "num_predict": 3,
        "temperature": 0.25,
        "seed": 5,
        "top_k": 3,
        "repeat_penalty": 1.5,
        "stop": ["zebra"],
    }
    whole = client.chat(MODEL, HELLO, options=options)
    assert (whole.message.content, whole.done_reason, whole.eval_count) == ("The quick brown", "length", 3)
    assert whole.total_duration is not None
    parts = list(client.chat(MODEL, HELLO, stream=True, options=options))
    assert "".join(part.message.content or "" for part in parts) == "The quick brown"
    assert [part.done for part in parts] == [False] * 3 + [True]
    for asked in node.requests:
        assert (asked.max_tokens, asked.sampling.temperature, asked.sampling.seed) == (3, 0.25, 5)
        assert (asked.sampling.top_k, asked.sampling.repeat_penalty) == (3, 1.5)
        assert "zebra" in asked.stop


def test_generate(client: ollama.Client, node: FakeNode) -> None:
    assert client.generate(MODEL, "hello", system="Be brief.").response == TEXT
    assert "system\nBe brief." in str(node.requests[0].prompt)
    assert "".join(part.response for part in client.generate(MODEL, "hello", raw=True, stream=True)) == TEXT
    assert node.requests[1].prompt == "hello"


def test_log_probabilities(client: ollama.Client) -> None:
    """Each token once, in the order of the text, whole and streamed."""
    whole = client.chat(MODEL, HELLO, logprobs=True, top_logprobs=2, options={"num_predict": 3})
    assert whole.logprobs
    assert "".join(item.token for item in whole.logprobs) == "The quick brown"
    assert all(item.logprob <= 0 and len(item.top_logprobs or ()) == 2 for item in whole.logprobs)
    parts = client.generate(MODEL, "hello", stream=True, logprobs=True, options={"num_predict": 3})
    streamed = [item for part in parts for item in part.logprobs or ()]
    assert [item.token for item in streamed] == [item.token for item in whole.logprobs]
    assert client.chat(MODEL, HELLO).logprobs is None


@pytest.mark.parametrize("stream", [False, True])
def test_tools(client: ollama.Client, node: FakeNode, stream: bool) -> None:
    """A Python function is offered, called with an object, and its result goes back."""
    node.reply = 'Wait. <tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
    answer: Any = client.chat(MODEL, HELLO, tools=[weather], stream=stream)
    parts = list(answer) if stream else [answer]
    (call,) = [call for part in parts for call in part.message.tool_calls or ()]
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Oslo"})
    said = {"role": "assistant", "tool_calls": [call]}
    result = {"role": "tool", "tool_name": "weather", "content": weather(**call.function.arguments)}
    node.reply = "Sunny."
    assert client.chat(MODEL, [*HELLO, said, result], tools=[weather]).message.content == "Sunny."
    assert "sunny in Oslo" in str(node.requests[-1].prompt)


def test_formats(client: ollama.Client, node: FakeNode) -> None:
    client.chat(MODEL, HELLO, format="json")
    client.chat(MODEL, HELLO, format={"type": "object", "properties": {"a": {"type": "integer"}}})
    assert all(request.sampling.grammar for request in node.requests)


def test_embeddings(client: ollama.Client) -> None:
    assert len(client.embed(MODEL, ["a", "b c"]).embeddings) == 2
    (short,) = client.embed(MODEL, "a", dimensions=1).embeddings
    assert short == [1.0], "as long as one again"
    assert client.embeddings(MODEL, "a").embedding[0] == 1.0
    with pytest.raises(ollama.ResponseError, match="vectors have 3 dimensions"):
        client.embed(MODEL, "a", dimensions=4)


def test_models(client: ollama.Client, node: FakeNode) -> None:
    (row,) = [row for row in client.list().models if row.model == MODEL]
    assert row.details is not None
    assert row.details.format == "gguf"
    assert client.show(MODEL).capabilities == ["completion", "tools"]
    assert client.ps().models is not None
    assert client.generate(MODEL).done_reason == "load"
    assert client.pull(MODEL).status == "success"
    assert [step.status for step in client.pull(f"{MODEL}:latest", stream=True)][-1] == "success"
    assert client.delete(MODEL).status == "success"
    assert node.commands == [("pull", {"model": MODEL})] * 2 + [("remove_model", {"model": MODEL})]


def test_a_pull_counts_its_bytes(client: ollama.Client, node: FakeNode) -> None:
    node.transfer_views[MODEL] = {"state": "fetching", "node": "studio", "done_bytes": 4, "total_bytes": 9}
    node.command_hold.clear()
    steps = client.pull(MODEL, stream=True)
    assert next(steps).status == "pulling manifest"
    step = next(steps)
    assert (step.status, step.completed, step.total) == (f"pulling {MODEL}", 4, 9)
    assert node.command_loop is not None
    node.command_loop.call_soon_threadsafe(node.command_hold.set)
    assert next(steps).status == "success"


def test_a_pull_that_fails_says_so(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="no model is called 'llama3'"):
        list(client.pull("llama3", stream=True))


@pytest.mark.parametrize("name", ["copy", "create", "push"])
def test_what_is_not_done_here_is_said(client: ollama.Client, name: str) -> None:
    ask = {"copy": lambda: client.copy(MODEL, "x"), "create": lambda: client.create("x", from_=MODEL),
           "push": lambda: client.push("x")}  # fmt: skip
    with pytest.raises(ollama.ResponseError, match="not made, renamed or pushed here"):
        ask[name]()


def test_an_address_that_nothing_has_is_a_sentence_too(url: str) -> None:
    with ollama.Client(host=f"{url}/api/nothing/") as client, pytest.raises(ollama.ResponseError) as caught:
        client.ps()
    assert caught.value.error.startswith("there is nothing at this address; ")


def test_errors_are_sentences(client: ollama.Client, node: FakeNode) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat("nope", HELLO)
    assert caught.value.status_code == 404
    assert caught.value.error == ("no model is called 'nope'; p2pnode models lists what this mesh has")
    with pytest.raises(ollama.ResponseError, match="suffix is not supported"):
        client.generate(MODEL, "a", suffix="b")
    node.fail_after = (2, StageLost("the device with layers 4-7 is gone"))
    said = []
    with pytest.raises(ollama.ResponseError, match="layers 4-7"):
        said += [part.message.content for part in client.chat(MODEL, HELLO, stream=True)]
    assert node.running == 0


def test_async(url: str) -> None:
    async def ask() -> list[str]:
        async with ollama.AsyncClient(host=url) as client:
            whole = await client.chat(MODEL, HELLO)
            with pytest.raises(ollama.ResponseError, match="called 'nope'"):
                await client.generate("nope", "x")
            parts = [
                part.message.content or "" async for part in await client.chat(MODEL, HELLO, stream=True)
            ]
            return [whole.message.content or "", "".join(parts)]

    assert asyncio.run(ask()) == [TEXT, TEXT]
