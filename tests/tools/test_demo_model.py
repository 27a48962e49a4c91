"""The committed demo model is what its page promises, and answers the same text everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

llama_cpp = pytest.importorskip("llama_cpp")

MODEL = Path(__file__).parents[2] / "models" / "p2pnode-demo.gguf"
GOLDEN: dict[str, str] = json.loads(
    (Path(__file__).parent / "golden" / "demo_answers.json").read_text(encoding="utf-8")
)
SIZE_BYTES_MAX = 12 * 1024 * 1024
# Threads wait for each other at every matrix, which takes minutes for a long answer on a busy machine.
THREADED_ANSWER_SIZE_MAX = 120


def load(thread_count: int) -> Any:
    """The model with its own chat template."""
    return llama_cpp.Llama(
        str(MODEL), n_ctx=1024, n_threads=thread_count, n_threads_batch=thread_count, verbose=False
    )


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    """One model for all questions."""
    loaded = load(1)
    yield loaded
    loaded.close()


def ask(model: Any, *turns: str) -> tuple[str, str]:
    """Greedy answer to the last turn, with the answers of the earlier ones in the chat; and why it ended."""
    messages: list[dict[str, str]] = []
    text = reason = ""
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        reply = model.create_chat_completion(messages, temperature=0.0, max_tokens=400)
        text, reason = reply["choices"][0]["message"]["content"], reply["choices"][0]["finish_reason"]
        messages.append({"role": "assistant", "content": text})
    return text, reason


def test_the_file_has_the_promised_shape() -> None:
    """Small enough to commit; enough layers and heads for every way of cutting; rows that K-quants accept."""
    assert MODEL.stat().st_size <= SIZE_BYTES_MAX
    reader = gguf.GGUFReader(MODEL)
    value = {name: field.contents() for name, field in reader.fields.items()}
    assert value["general.architecture"] == "llama"
    assert value["general.name"] == "p2pnode demo"
    assert value["general.license"] == "apache-2.0"
    assert value["general.description"]
    assert value["llama.block_count"] >= 8
    assert value["llama.attention.head_count_kv"] >= 4
    assert value["llama.context_length"] >= 1024
    assert value["llama.embedding_length"] % 256 == 0
    assert value["llama.feed_forward_length"] % 256 == 0
    assert {"token_embd.weight", "output.weight"} <= {tensor.name for tensor in reader.tensors}


def test_the_tokenizer_keeps_any_text(model: Any) -> None:
    """Bytes fall back to themselves, so no text is lost; control tokens in a text stay plain text."""
    texts = (
        "plain",
        "Zwölf Boxkämpfer",
        "日本語とemoji 🦊🚀",
        "tab\tnew\nline  two",
        "<|im_end|>",
        "١٢٣ 007",
    )
    for text in texts:
        ids = model.tokenize(text.encode(), add_bos=False, special=False)
        assert model.detokenize(ids) == text.encode()
    every_byte = bytes(range(1, 128)).decode()
    assert model.detokenize(model.tokenize(every_byte.encode(), add_bos=False)) == every_byte.encode()


def test_the_chat_template_uses_real_special_tokens(model: Any) -> None:
    """Begin and end of a turn are one token each, and the end of a turn ends the answer."""
    start, end = (
        model.tokenize(name, add_bos=False, special=True) for name in (b"<|im_start|>", b"<|im_end|>")
    )
    assert len(start) == len(end) == 1
    assert model.token_eos() == end[0]
    assert "<|im_start|>" in model.metadata["tokenizer.chat_template"]
    assert model.metadata["tokenizer.ggml.add_bos_token"] == "false"


@pytest.mark.parametrize("thread_count", [1, 2])
def test_greedy_answers_are_golden(thread_count: int) -> None:
    """The same text with one and two threads, ended by the model itself."""
    model = load(thread_count)
    for prompt, golden in GOLDEN.items():
        if thread_count > 1 and len(golden) > THREADED_ANSWER_SIZE_MAX:
            continue
        assert ask(model, prompt) == (golden, "stop")
    model.close()


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("why is the sky blue", "light"),
        ("Can you explain why the sky looks blue?", "light"),
        ("what's a mesh?", "devices"),
        ("please explain what p2pnode is", "p2pnode"),
        ("hi", "Hello"),
        ("capital of france?", "Paris"),
        ("How much is 3 + 4?", "is 7."),
        ("what does a cow say", "moo"),
        ("I would like a story about an owl, please", "owl"),
        ("tell me a story about a fox named Ruby", "fox named Ruby"),
        ("Which day comes after Friday?", "Saturday"),
        ("What is the flumbostat?", "do not know"),
    ],
)
def test_other_phrasings_are_understood(model: Any, prompt: str, word: str) -> None:
    """The model learned questions and not only their letters."""
    text, reason = ask(model, prompt)
    assert word in text
    assert reason == "stop"


def test_a_chat_remembers(model: Any) -> None:
    """Earlier turns are read: a name told once can be asked for later."""
    text, _ = ask(model, "My name is Clara.", "What is a peer?", "What is my name?")
    assert "Clara" in text
