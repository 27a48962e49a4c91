"""Chat and plain completions over a fake node."""

from __future__ import annotations

import asyncio
import json

import pytest

from p2pnode.errors import EngineUnavailable, InsufficientCredit, ModelLoading, StageLost
from tests.kit.fake_node import FakeNode

CHAT = {"model": "p2pnode-demo", "messages": [{"role": "user", "content": "hello"}]}


def chunks_of(raw: bytes) -> list[dict]:
    lines = [line[6:] for line in raw.decode().split("\n\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


async def test_chat_answer(client, node: FakeNode) -> None:
    """A whole answer has OpenAI's fields, usage, and who computed it."""
    response = await client.post("/v1/chat/completions", json=CHAT)
    answer = await response.get_json()
    assert response.status_code == 200
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {
        "role": "assistant", "content": "The quick brown fox jumps.", "refusal": None,
    }  # fmt: skip
    assert answer["choices"][0]["finish_reason"] == "stop"
    usage = answer["usage"]
    assert (
        usage["total_tokens"]
        == usage["prompt_tokens"] + 5
        == usage["prompt_tokens"] + usage["completion_tokens"]
    )
    assert answer["p2pnode"]["mode"] == "pipeline"
    assert [stage["layers"] for stage in answer["p2pnode"]["stages"]] == [[0, 4], [4, 8]]
    assert answer["p2pnode"]["tokens_per_s"] == 10.0
    assert response.headers["x-request-id"] == answer["id"] == node.requests[0].request_id
    assert node.requests[0].prompt == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


async def test_chat_stream(client) -> None:
    """A stream starts with the role, ends with the reason, the usage when asked for, and [DONE]."""
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.content_type.startswith("text/event-stream")
    raw = await response.get_data()
    assert raw.endswith(b"data: [DONE]\n\n")
    chunks = chunks_of(raw)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert text == "The quick brown fox jumps."
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-2]["p2pnode"]["mode"] == "pipeline"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5


async def test_stream_without_usage(client) -> None:
    """Without include_usage no chunk has an empty list of choices."""
    response = await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
    assert all(chunk["choices"] for chunk in chunks_of(await response.get_data()))


async def test_choices(client, node: FakeNode) -> None:
    """n choices have their own index, text and seed; the prompt counts once."""
    node.replies = {0: "one", 1: "two more", 2: "three"}
    response = await client.post("/v1/chat/completions", json=CHAT | {"n": 3, "seed": 5})
    answer = await response.get_json()
    assert [c["message"]["content"] for c in answer["choices"]] == ["one", "two more", "three"]
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["prompt_tokens"] < 5
    assert sorted(r.sampling.seed for r in node.requests) == [5, 6, 7]
    streamed = await client.post("/v1/chat/completions", json=CHAT | {"n": 3, "stream": True})
    texts = ["", "", ""]
    for chunk in chunks_of(await streamed.get_data()):
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == ["one", "two more", "three"]


async def test_completion(client, node: FakeNode) -> None:
    """Plain completions keep the prompt as it is; echo, lists and token prompts work."""
    response = await client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 2, "echo": True})
    answer = await response.get_json()
    assert answer["choices"][0]["text"] == "OnceThe quick"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert node.requests[0].prompt == "Once"
    response = await client.post("/v1/completions", json={"prompt": ["a", "b c"], "stream": True})
    assert {c["choices"][0]["index"] for c in chunks_of(await response.get_data())} == {0, 1}
    response = await client.post("/v1/completions", json={"prompt": [1, 2, 3]})
    assert (await response.get_json())["usage"]["prompt_tokens"] == 3
    assert node.requests[-1].prompt == [1, 2, 3]


async def test_logprobs(client) -> None:
    """Log probabilities have both of OpenAI's shapes."""
    response = await client.post("/v1/chat/completions", json=CHAT | {"logprobs": True, "top_logprobs": 2})
    content = (await response.get_json())["choices"][0]["logprobs"]["content"]
    assert content[1]["token"] == " quick"
    assert bytes(content[1]["bytes"]) == b" quick"
    assert len(content[1]["top_logprobs"]) == 2
    response = await client.post("/v1/completions", json={"prompt": "x", "logprobs": 1})
    old = (await response.get_json())["choices"][0]["logprobs"]
    assert old["text_offset"] == [0, 3, 9, 15, 19]
    assert old["top_logprobs"][0] == {"alt0": -1.0}


async def test_sampling_reaches_the_node(client, node: FakeNode) -> None:
    """Every sampling field arrives under llama.cpp's name; what is not given keeps the default."""
    body = CHAT | {
        "temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "seed": 9, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "repeat_penalty": 1.1, "repeat_last_n": 32, "logit_bias": {"12": -100},
        "stop": "fox", "max_completion_tokens": 4, "mode": "local", "grammar": 'root ::= "a"', "user": "me",
    }  # fmt: skip
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200
    assert response.headers["X-P2PNode-Ignored"] == "user"
    request = node.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed) == (
        0,
        0.5,
        7,
        0.1,
        9,
    )
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repeat_penalty) == (
        0.5,
        -0.5,
        1.1,
    )
    assert sampling.repeat_last_tokens == 32
    assert sampling.typical_p == 1.0
    assert sampling.logit_bias == {12: -100}
    assert (request.stop, request.max_tokens, request.mode) == (("fox",), 4, "local")
    assert sampling.grammar == 'root ::= "a"'
    assert (await response.get_json())["choices"][0]["message"]["content"] == "The quick brown "


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"functions": [{}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"nonsense": 1}, "nonsense"),
        ({"stop": ["x"] * 100}, "stop"),
    ],
)
async def test_bad_requests(client, change: dict, param: str | None) -> None:
    """A field that is wrong is named in OpenAI's envelope."""
    response = await client.post("/v1/chat/completions", json=CHAT | change)
    error = (await response.get_json())["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert response.headers["x-should-retry"] == "false"


async def test_unknown_model(client) -> None:
    """An unknown model is a 404 in the envelope."""
    response = await client.post("/v1/chat/completions", json=CHAT | {"model": "gpt-9"})
    assert response.status_code == 404
    assert (await response.get_json())["error"]["code"] == "model_not_found"


async def test_early_errors(client, node: FakeNode) -> None:
    """What fails before the first token has its own status, also when a stream was asked for."""
    node.fail_before = InsufficientCredit("needs 5, has 1")
    response = await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
    error = (await response.get_json())["error"]
    assert (response.status_code, error["type"], error["code"]) == (
        429, "insufficient_quota", "credit_balance_exhausted",
    )  # fmt: skip
    assert response.headers["x-should-retry"] == "false"
    node.fail_before = ModelLoading("loading", state="loading", progress=0.5, eta_s=7.2)
    response = await client.post("/v1/chat/completions", json=CHAT)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "7")
    assert (await response.get_json())["error"]["details"]["progress"] == 0.5
    node.fail_before = EngineUnavailable("gone")
    response = await client.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 503
    node.fail_before = ValueError("a bug with a secret")
    response = await client.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 500
    assert "secret" not in (await response.get_data()).decode()


@pytest.mark.parametrize("n", [1, 2])
async def test_error_in_the_middle(client, node: FakeNode, n: int) -> None:
    """A failure after the first token is an error event, and no [DONE] follows."""
    node.fail_after = (2, StageLost("kitchen is gone", layers=[4, 8]))
    response = await client.post("/v1/chat/completions", json=CHAT | {"stream": True, "n": n})
    raw = await response.get_data()
    assert b"[DONE]" not in raw
    assert chunks_of(raw)[-1]["error"]["code"] == "stage_lost"
    assert node.running == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_disconnect_cancels(client, node: FakeNode, stream: bool) -> None:
    """A client that goes away stops the work."""
    node.hold.clear()
    async with client.request(
        "/v1/chat/completions", method="POST", headers={"Host": "localhost"},
        scope_base={"client": ("127.0.0.1", 1)},
    ) as connection:  # fmt: skip
        await connection.send(json.dumps(CHAT | {"stream": stream}).encode())
        await connection.send_complete()
        for _ in range(200):
            if node.running:
                break
            await asyncio.sleep(0.01)
        assert node.running == 1
        await connection.disconnect()
    for _ in range(200):
        if not node.running:
            break
        await asyncio.sleep(0.01)
    assert node.running == 0
    assert node.cancelled == 1


async def test_progress_chunks(client) -> None:
    """Prefill progress comes only to those who ask."""
    response = await client.post(
        "/v1/chat/completions", json=CHAT | {"stream": True, "return_progress": True}
    )
    first = chunks_of(await response.get_data())[0]
    assert first["prompt_progress"]["total"] == first["prompt_progress"]["processed"] > 0
