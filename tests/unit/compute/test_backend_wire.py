"""Words exchanged with external servers: what is asked, what is understood, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.compute.backend_wire import (
    LLAMA_SERVER,
    OLLAMA,
    OTHER,
    BackendModel,
    Heard,
    body_of,
    condition_of,
    models_of,
    prompt_tokens_guess,
    told_models,
)
from p2pnode.errors import (
    Busy,
    ConfigError,
    ContextFull,
    EngineUnavailable,
    ModelUnknown,
    P2PNodeError,
    RequestError,
)
from p2pnode.facade import GenerateRequest, SamplingParams
from p2pnode.server_address import BackendAddress, address_of

MODEL = BackendModel("toy", LLAMA_SERVER)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "delta", "content", "usage", "data", "id", "error", "message", "meta", "models"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8080", BackendAddress("127.0.0.1", 8080)),
        ("http://localhost:11434/v1/", BackendAddress("localhost", 11434)),
        ("https://:sec-ret@box.lan/api/v1", BackendAddress("box.lan", 443, "/api", True, "sec-ret")),
        ("http://[::1]:1234", BackendAddress("::1", 1234)),
        ("http://box", BackendAddress("box", 80)),
    ],
)  # fmt: skip
def test_addresses(text: str, expected: BackendAddress) -> None:
    made = address_of(text)
    assert made == expected
    assert expected.key not in made.text or not expected.key
    assert address_of(made.text).host == expected.host
    assert made.is_loopback == (expected.host not in ("box", "box.lan"))


@pytest.mark.parametrize(
    "text", ["", "ftp://x", "http://", "http://h:99999", "http://h?x=1", "http://h/a b", "http://[::"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError):
        address_of(text)


def test_models_of_three_kinds() -> None:
    llama = {"data": [{"id": "a.gguf", "owned_by": "llamacpp", "meta": {"n_ctx_train": 8192, "size": 5}}]}
    assert models_of(llama) == [BackendModel("a.gguf", LLAMA_SERVER, 8192, 5)]
    tags = {"models": [{"name": "b:1b", "size": 7, "details": {"quantization_level": "Q4_0"}}]}
    assert models_of({"data": [{"id": "b:1b"}]}, tags) == [BackendModel("b:1b", OLLAMA, 0, 7, "Q4_0")]
    assert models_of({"data": [{"id": "c", "max_model_len": 100}]}) == [BackendModel("c", OTHER, 100)]
    many = {"data": [{"id": f"m{n}"} for n in range(500)] + [{"id": "x" * 500}, {"id": 5}, 7]}
    assert len(models_of(many)) == limits.BACKEND_MODELS_MAX
    assert told_models([model.told() for model in models_of(llama)]) == models_of(llama)


@given(JSON, JSON)
def test_no_listing_breaks_anything(listing: Any, tags: Any) -> None:
    for model in models_of(listing, tags):
        assert model.name
        assert json.dumps(model.told())


def test_what_is_asked() -> None:
    sampling = SamplingParams(temperature=0.5, top_k=7, seed=3, grammar='root ::= "x"')
    request = GenerateRequest("toy", "Hi", max_tokens=9, stop=("x",), sampling=sampling, cache_prompt=False)
    path, document = body_of(MODEL, request)
    assert path == "/v1/completions"
    assert (document["prompt"], document["max_tokens"], document["stop"], document["seed"]) == (
        "Hi",
        9,
        ["x"],
        3,
    )
    assert (document["top_k"], document["cache_prompt"]) == (7, False)
    assert document["grammar"] == sampling.grammar
    plain = GenerateRequest("toy", "Hi", sampling=SamplingParams())
    assert not {"top_k", "grammar", "seed", "stop"} & set(body_of(BackendModel("toy", OTHER), plain)[1])


def test_a_conversation_is_sent_as_one() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    said = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [call]})
    path, document = body_of(MODEL, GenerateRequest("toy", "", messages=said))
    assert path == "/v1/chat/completions"
    assert document["messages"][0] == said[0]
    assert document["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    assert prompt_tokens_guess(GenerateRequest("toy", "", messages=said)) == 17


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest("toy", [1, 2]),
        GenerateRequest("toy", "x", sampling=SamplingParams(logprobs=1)),
        GenerateRequest("toy", "x", sampling=SamplingParams(logit_bias={1: 2.0})),
        GenerateRequest("toy", "x", sampling=SamplingParams(grammar="root ::= [0-9]")),
    ],
)
def test_what_such_a_server_cannot_do_is_said(request_: GenerateRequest) -> None:
    with pytest.raises(RequestError):
        body_of(BackendModel("toy", OLLAMA), request_)
    assert prompt_tokens_guess(request_) > 0


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode()


def test_a_stream_is_heard() -> None:
    heard = Heard()
    lines = [
        b": hello", b"event: message", b"",
        event({"choices": [{"delta": {"role": "assistant", "content": None}}]}),
        event({"choices": [{"delta": {"content": "Hi"}}]}),
        event({"choices": [{"text": "!"}]}),
        event({"choices": [{"delta": {}, "finish_reason": "length"}]}),
        event({"choices": [], "usage": {
            "prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3},
        }}),
    ]  # fmt: skip
    assert "".join(heard.take(line) for line in lines) == "Hi!"
    assert (heard.prompt_tokens, heard.completion_tokens, heard.cached_tokens) == (5, 2, 3)
    assert (heard.text_pieces, heard.reason, heard.is_over, heard.is_whole) == (2, "length", False, True)
    assert heard.take(b"data: [DONE]") == ""
    assert heard.is_over


@pytest.mark.parametrize(
    "line", [b"data: {", b"data: 7", b"data:" + b"[" * 100_000, event({"error": "gone"})]
)
def test_nonsense_in_a_stream_is_a_condition(line: bytes) -> None:
    with pytest.raises(EngineUnavailable):
        Heard().take(line)


@given(st.lists(JSON.map(event) | st.binary(max_size=20), max_size=6))
def test_no_stream_breaks_anything(lines: list[bytes]) -> None:
    heard = Heard()
    try:
        for line in lines:
            assert isinstance(heard.take(line), str)
    except P2PNodeError:
        pass
    assert heard.text_pieces <= len(lines)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, b"{}", EngineUnavailable),
        (404, b'{"error": "model not found"}', ModelUnknown),
        (429, b"", Busy),
        (503, b'{"error": {"message": "Loading model"}}', Busy),
        (400, b'{"error": {"message": "bad temperature"}}', RequestError),
        (400, b'{"error": {"message": "exceeds the available context size"}}', ContextFull),
        (500, b"[" * 100_000, EngineUnavailable),
        (302, b"[]", EngineUnavailable),
    ],
)
def test_statuses_become_conditions(status: int, body: bytes, kind: type[P2PNodeError]) -> None:
    assert type(condition_of(status, body)) is kind
