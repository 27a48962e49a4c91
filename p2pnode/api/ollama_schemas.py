"""What requests in Ollama's form may say, and what becomes of each option (specs/11-http.md)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from p2pnode.api.schemas import ModelName, Tool
from p2pnode.limits import API_EMBEDDING_INPUTS_MAX, API_MESSAGES_MAX, API_TOOLS_MAX

Options = Annotated[dict[str, Any], Meta(max_length=64)]

OPTIONS = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "typical_p": "typical_p",
    "seed": "seed", "stop": "stop", "repeat_penalty": "repeat_penalty", "repeat_last_n": "repeat_last_n",
    "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty",
}  # fmt: skip
"""Theirs and ours, with our bounds; `num_predict` is `max_tokens`."""
OPTIONS_IGNORED = frozenset(
    {
        "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "use_mmap", "use_mlock", "numa",
        "low_vram", "vocab_only", "f16_kv", "penalize_newline",
    }
)  # fmt: skip
"""About how a model is loaded, which is a person's choice here (`p2pnode plan --engine`)."""
IGNORED = ("keep_alive", "think", "truncate")


class CalledFunction(Struct):
    name: Annotated[str, Meta(max_length=256)]
    arguments: dict[str, Any] = field(default_factory=dict)


class CalledTool(Struct):
    function: CalledFunction


class OllamaMessage(Struct, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[CalledTool] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaChatRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    model: ModelName | None = None
    messages: Annotated[list[OllamaMessage], Meta(max_length=API_MESSAGES_MAX)] = []
    tools: Annotated[list[Tool], Meta(max_length=API_TOOLS_MAX)] | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    stream: bool | None = None
    keep_alive: str | float | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class OllamaGenerateRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    model: ModelName | None = None
    prompt: str = ""
    system: str | None = None
    raw: bool | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    stream: bool | None = None
    keep_alive: str | float | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    suffix: str | None = None
    template: str | None = None
    images: list[str] | None = None
    context: list[int] | None = None


class OllamaEmbedRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    model: ModelName
    input: str | Annotated[list[str], Meta(min_length=1, max_length=API_EMBEDDING_INPUTS_MAX)]
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    options: Options | None = None
    keep_alive: str | float | None = None


class OllamaEmbeddingsRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    model: ModelName
    prompt: str
    options: Options | None = None
    keep_alive: str | float | None = None


class OllamaPullRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    model: Annotated[str, Meta(max_length=512)] | None = None
    name: Annotated[str, Meta(max_length=512)] | None = None
    stream: bool | None = None
    insecure: bool | None = None


class OllamaModelRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    model: ModelName | None = None
    name: ModelName | None = None
    verbose: bool | None = None
