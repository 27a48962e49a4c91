"""The official clients of Ollama and Anthropic against a real mesh: text, streams, vectors and errors of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anthropic
import ollama
import pytest

from tests.kit.mesh import MeshOfProcesses, mesh_of
from tests.kit.toy_models import TOYS, write_model

MODEL = "my-model"
HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    root = tmp_path_factory.mktemp("mesh")
    file = write_model(root / f"{MODEL}.gguf", replace(TOYS["llama"], text=True, layers=4, vocabulary=320))
    with mesh_of(root, "studio", "kitchen", first_arguments=("--model", str(file))) as made:
        yield made


def test_ollama(mesh: MeshOfProcesses) -> None:
    """The same text whole and streamed, log-probabilities of it, vectors, and a copy pulled by another device."""
    options = {"num_predict": 6, "temperature": 0}
    with ollama.Client(host=mesh.nodes[0].api.url) as client:
        whole = client.chat(MODEL, HELLO, options=options, logprobs=True, top_logprobs=3)
        streamed = client.chat(MODEL, HELLO, options=options, stream=True)
        assert whole.message.content == "".join(part.message.content or "" for part in streamed)
        assert whole.eval_count == len(whole.logprobs or ()) > 0
        vector, again = client.embed(MODEL, ["hello", "hello"]).embeddings
        assert vector == pytest.approx(again)
        (short,) = client.embed(MODEL, "hello", dimensions=8).embeddings
        assert (len(short), sum(number * number for number in short)) == (8, pytest.approx(1.0))
        with pytest.raises(ollama.ResponseError, match="named 'nope'"):
            client.chat("nope", HELLO)
    with ollama.Client(host=mesh.nodes[1].api.url) as client:
        steps = list(client.pull(MODEL, stream=True))
        assert (steps[0].status, steps[-1].status) == ("pulling manifest", "success")
        assert client.chat(MODEL, HELLO, options=options).message.content == whole.message.content
        assert client.delete(MODEL).status == "success"


def test_anthropic(mesh: MeshOfProcesses) -> None:
    """The same text whole and streamed, a document of a schema, tokens counted as they are billed."""
    wish: Any = {"model": MODEL, "max_tokens": 6, "messages": HELLO, "extra_body": {"temperature": 0}}
    with anthropic.Anthropic(base_url=mesh.nodes[0].api.url, api_key="none", max_retries=0) as client:
        whole: Any = client.messages.create(**wish)
        with client.messages.stream(**wish) as stream:
            assert "".join(stream.text_stream) == whole.content[0].text
        usage = whole.usage
        counted = client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens
        assert usage.input_tokens + usage.cache_read_input_tokens == counted
        schema = {
            "type": "object",
            "properties": {"a": {"enum": [1]}},
            "required": ["a"],
            "additionalProperties": False,
        }
        format_of: Any = {"format": {"type": "json_schema", "schema": schema}}
        said: Any = client.messages.create(**(wish | {"max_tokens": 200, "output_config": format_of}))
        text = "".join(said.content[0].text.split())
        assert text
        assert '{"a":1}'.startswith(text), (
            "a toy may fill its tokens with white space, and writes nothing else"
        )
        assert MODEL in [model.id for model in client.models.list()]
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(**(wish | {"model": "nope"}))
