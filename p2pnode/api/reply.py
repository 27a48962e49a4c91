"""OpenAI's answer documents, whole and in chunks, for chat and plain completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from p2pnode import __version__
from p2pnode.api.generation import Outcome, extension, usage
from p2pnode.facade import Finished, Loading, PrefillProgress, TokenLogprob

FINGERPRINT = f"p2pnode-{__version__}"


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if not logprobs:
        return None
    return {
        "content": [
            {
                "token": item.token,
                "logprob": item.logprob,
                "bytes": list(item.token_bytes),
                "top_logprobs": [
                    {"token": token, "logprob": value, "bytes": list(raw)} for token, value, raw in item.top
                ],
            }
            for item in logprobs
        ],
        "refusal": None,
    }


def completion_logprobs(logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
    if not logprobs:
        return None
    offsets = []
    for item in logprobs:
        offsets.append(offset)
        offset += len(item.token)
    return {
        "tokens": [item.token for item in logprobs],
        "token_logprobs": [item.logprob for item in logprobs],
        "top_logprobs": [{token: value for token, value, _ in item.top} for item in logprobs],
        "text_offset": offsets,
    }


def finish_reason(end: Finished, *, tools: bool = False) -> str:
    if tools:
        return "tool_calls"
    return "length" if end.reason == "length" else "stop"


@dataclass(slots=True)
class Reply:
    """Names of one answer, repeated in each of its chunks."""

    identity: str
    model: str
    kind: str
    """`chat.completion` or `text_completion`."""
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(
        self, choices: list[dict[str, Any]], ends: Sequence[Finished], prompts: int = 1
    ) -> dict[str, Any]:
        return {
            "id": self.identity,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            "usage": usage(ends, prompts),
            "p2pnode": extension(ends),
        }

    def chunk(self, choices: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.kind == "chat.completion" else self.kind
        return {
            "id": self.identity,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            **extra,
        }

    def progress(self, index: int, event: PrefillProgress | Loading) -> dict[str, Any]:
        """`loading` and llama-server's `prompt_progress`, for those who asked with return_progress."""
        if isinstance(event, Loading):
            return self.chunk([self._nothing_yet(index)], loading=event.view())
        counts = {"total": event.tokens_total, "cache": event.tokens_cached, "processed": event.tokens_done}
        return self.chunk([self._nothing_yet(index)], prompt_progress=counts)

    def _nothing_yet(self, index: int) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": None, "logprobs": None}
        choice["delta" if self.kind == "chat.completion" else "text"] = (
            {} if self.kind == "chat.completion" else ""
        )
        return choice


def completion_choice(index: int, outcome: Outcome, echo: str) -> dict[str, Any]:
    return {
        "index": index,
        "text": echo + "".join(outcome.text),
        "finish_reason": finish_reason(outcome.end),
        "logprobs": completion_logprobs(outcome.logprobs, len(echo)),
    }
