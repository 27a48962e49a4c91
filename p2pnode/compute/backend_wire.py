"""What an external OpenAI-compatible server is asked and what it says. Pure; everything it says is bounded and checked.

llama-server, Ollama, LM Studio and others share the two completion endpoints and their streams; what only some
of them have is asked for only where it is known to be understood.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pnode import limits
from p2pnode.errors import (
    Busy,
    ContextFull,
    EngineUnavailable,
    ModelUnknown,
    P2PNodeError,
    RequestError,
)
from p2pnode.facade import GenerateRequest

_CONTEXT_SIGNS = ("context length", "context size", "context_length", "exceed_context")
LLAMA_SERVER, OLLAMA, OTHER = "llama-server", "ollama", "openai"


@dataclass(frozen=True, slots=True)
class BackendModel:
    name: str
    kind: str
    context_length: int = 0
    """0 where the server does not say."""
    size_bytes: int = 0
    quantisation: str = ""

    def told(self) -> dict[str, Any]:
        """For the other devices."""
        return {
            "name": self.name,
            "kind": self.kind,
            "context_length": self.context_length,
            "size_bytes": self.size_bytes,
            "quantisation": self.quantisation,
        }


def models_of(listing: Any, tags: Any = None) -> list[BackendModel]:
    """From /v1/models, and Ollama's /api/tags where there is one; what cannot be read is left out."""
    rows = listing.get("data") if isinstance(listing, dict) else None
    known = {}
    if isinstance(tags, dict) and isinstance(tags.get("models"), list):
        known = {str(row.get("name")): row for row in tags["models"] if isinstance(row, dict)}
    found: dict[str, BackendModel] = {}
    for row in rows if isinstance(rows, list) else ():
        name = row.get("id") if isinstance(row, dict) else None
        if isinstance(name, str) and 0 < len(name) <= limits.NAME_OF_BACKEND_MODEL_CHARACTERS_MAX:
            found.setdefault(name, _model(name, row, known.get(name), is_ollama=bool(known)))
        if len(found) == limits.BACKEND_MODELS_MAX:
            break
    return list(found.values())


def _model(
    name: str, row: Mapping[str, Any], tag: Mapping[str, Any] | None, *, is_ollama: bool
) -> BackendModel:
    said = row.get("meta")
    meta: dict[str, Any] = said if isinstance(said, dict) else {}
    if row.get("owned_by") == "llamacpp":
        return BackendModel(
            name,
            LLAMA_SERVER,
            _count(meta.get("n_ctx_train")),
            _count(meta.get("size")),
        )
    if is_ollama:
        details = tag.get("details") if tag else None
        quantisation = details.get("quantization_level") if isinstance(details, dict) else ""
        size = _count(tag.get("size")) if tag else 0
        return BackendModel(name, OLLAMA, 0, size, str(quantisation or "")[:32])
    return BackendModel(name, OTHER, _count(row.get("max_model_len")))


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 53 else 0


# --- asking ----------------------------------------------------------------------------------------
def body_of(model: BackendModel, request: GenerateRequest) -> tuple[str, dict[str, Any]]:
    """Path and document of the request; RequestError for what such a server cannot do."""
    sampling = request.sampling
    if sampling.logprobs is not None:
        raise RequestError("an external server's probabilities are not passed on", param="logprobs")
    if sampling.logit_bias:
        raise RequestError(
            "token ids are this node's words, an external server has its own", param="logit_bias"
        )
    document: dict[str, Any] = {
        "model": model.name,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    if request.stop:
        document["stop"] = list(request.stop)
    if sampling.seed is not None:
        document["seed"] = sampling.seed
    if model.kind == LLAMA_SERVER:
        document |= {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "typical_p": sampling.typical_p,
            "repeat_penalty": sampling.repeat_penalty,
            "repeat_last_n": sampling.repeat_last_tokens,
        }
        if request.cache_prompt is not None:
            document["cache_prompt"] = request.cache_prompt
    if sampling.grammar is not None:
        if model.kind != LLAMA_SERVER:
            raise RequestError(
                f"{model.name} is computed by a server that takes no grammar", param="response_format"
            )
        document["grammar"] = sampling.grammar
    if request.messages:
        return "/v1/chat/completions", document | {"messages": [_message(row) for row in request.messages]}
    if not isinstance(request.prompt, str):
        raise RequestError(
            "token ids are this node's words: send an external server's model text", param="prompt"
        )
    return "/v1/completions", document | {"prompt": request.prompt}


def _message(row: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI writes arguments of calls as text, templates as objects."""
    message = dict(row)
    if calls := row.get("tool_calls"):
        message["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _text(call["function"]["arguments"])}}
            for call in calls
        ]
    return message


def _text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def prompt_tokens_guess(request: GenerateRequest) -> int:
    """Enough for a hold before the server has counted: fewer characters make a token nowhere but in rare scripts."""
    if request.messages:
        return sum(len(str(row.get("content") or "")) for row in request.messages) // 2 + 16
    return len(request.prompt) // 2 + 1 if isinstance(request.prompt, str) else len(request.prompt)


# --- hearing ---------------------------------------------------------------------------------------
@dataclass(slots=True)
class Heard:
    """What a stream said so far."""

    text_pieces: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int = 0
    reason: str | None = None
    is_over: bool = False

    @property
    def is_whole(self) -> bool:
        """Some servers leave out [DONE], none the reason."""
        return self.is_over or self.reason is not None

    def take(self, line: bytes) -> str:
        """The text of one line of an event stream; conditions for errors in it and for what is no event."""
        if not line.startswith(b"data:"):
            return ""  # comments, event names, the empty lines between events
        data = line[5:].strip()
        if data == b"[DONE]":
            self.is_over = True
            return ""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            raise EngineUnavailable("the external server sent something that is no JSON") from None
        if not isinstance(document, dict):
            raise EngineUnavailable("the external server sent an event that is no object")
        if document.get("error"):
            raise condition_of(500, data)
        self._count(document.get("usage"))
        return self._choice(document.get("choices"))

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        self.prompt_tokens = _count(usage.get("prompt_tokens")) or self.prompt_tokens
        self.completion_tokens = _count(usage.get("completion_tokens")) or self.completion_tokens
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            self.cached_tokens = _count(details.get("cached_tokens"))

    def _choice(self, choices: Any) -> str:
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return ""
        if isinstance(reason := choice.get("finish_reason"), str):
            self.reason = reason
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
        if not isinstance(text, str) or not text:
            return ""
        self.text_pieces += 1
        return text


def condition_of(status: int, body: bytes) -> P2PNodeError:
    """What an answer other than 200 means here."""
    said = _error_text(body)
    words = (
        f"the external server says: {said}" if said else f"the external server answered with status {status}"
    )
    if any(sign in said.lower() for sign in _CONTEXT_SIGNS):
        return ContextFull(words, hint="shorten the prompt, or start that server with a longer context")
    if status in (401, 403):
        return EngineUnavailable(words, hint="give its key in the address: http://:KEY@HOST:PORT")
    if status == 404:
        return ModelUnknown(words, hint="it may have dropped the model: see p2pnode models")
    if status in (429, 503):
        return Busy(words)
    if 400 <= status < 500:
        return RequestError(words)
    return EngineUnavailable(words)


def _error_text(body: bytes) -> str:
    """OpenAI's, llama-server's and Ollama's ways to say what is wrong."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return " ".join(str(error).split())[:300] if isinstance(error, str) else ""


def told_models(said: Sequence[Any]) -> list[BackendModel]:
    """What another device says of its servers; its form was checked when it was heard."""
    return [
        BackendModel(
            str(row["name"]), str(row.get("kind", OTHER)), _count(row.get("context_length")),
            _count(row.get("size_bytes")), str(row.get("quantisation", ""))[:32],
        )
        for row in said
    ]  # fmt: skip
