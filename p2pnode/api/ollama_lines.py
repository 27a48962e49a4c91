"""Ollama's answers: lines of JSON, whole answers, and errors whose words stand under `error`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from quart import Response

from p2pnode.api.completions import Form
from p2pnode.api.conversation import NO_TOOLS
from p2pnode.api.envelope import envelope, json_bytes
from p2pnode.api.generation import Outcome
from p2pnode.api.tools import Call, ToolPlan, ToolReader
from p2pnode.errors import P2PNodeError
from p2pnode.facade import Finished, GenerateEvent, TextDelta, TokenLogprob

NDJSON = "application/x-ndjson"


def failure(condition: P2PNodeError) -> dict[str, Any]:
    """A sentence under `error`; what this API's envelope says besides stands beside it."""
    inside = envelope(condition)["error"]
    words = inside.pop("message")
    return {"error": f"{words}; {inside['hint']}" if inside["hint"] else words, **inside}


LINES = Form(lambda document, _: json_bytes(document) + b"\n", b"", b"", failure)
"""Lines of JSON, which have no place for a comment."""


class Lines:
    """Turns a generation into the lines of one of the two forms: `message` of chat, `response` of generate."""

    def __init__(self, model: str, *, chat: bool, tools: ToolPlan = NO_TOOLS) -> None:
        self.model = model
        self.chat = chat
        self._reader = ToolReader(tools)
        self._begun_s = time.perf_counter()
        self._logprobs: list[TokenLogprob] = []

    def __call__(self, index: int, event: GenerateEvent) -> list[dict[str, Any]]:
        del index  # one choice only
        if isinstance(event, TextDelta):
            self._logprobs.extend(event.logprobs)
            return [self.line(piece) for piece in self._reader.feed(event.text)]
        if not isinstance(event, Finished):
            return []
        return [*(self.line(piece) for piece in self._reader.finish()), self.line("") | self.end(event)]

    def line(self, piece: str | Call) -> dict[str, Any]:
        head: dict[str, Any] = {"model": self.model, "created_at": now(), "done": False}
        if self._logprobs:
            head["logprobs"] = [_logprob(item) for item in self._logprobs]
            self._logprobs = []
        if not self.chat:
            return head | {"response": piece if isinstance(piece, str) else piece.arguments}
        message: dict[str, Any] = {"role": "assistant", "content": piece if isinstance(piece, str) else ""}
        if isinstance(piece, Call):
            arguments = msgspec.json.decode(piece.arguments)
            message["tool_calls"] = [{"function": {"name": piece.name, "arguments": arguments}}]
        return head | {"message": message}

    def end(self, end: Finished) -> dict[str, Any]:
        """Counts and nanoseconds, as its clients show them; what is not computing counts as loading."""
        total_s = time.perf_counter() - self._begun_s
        return {
            "done": True,
            "done_reason": "length" if end.reason == "length" else "stop",
            "total_duration": nanoseconds(total_s),
            "load_duration": nanoseconds(max(0.0, total_s - end.prefill_s - end.decode_s)),
            "prompt_eval_count": end.prompt_tokens,
            "prompt_eval_duration": nanoseconds(end.prefill_s),
            "eval_count": end.completion_tokens,
            "eval_duration": nanoseconds(end.decode_s),
        }

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        self._logprobs = list(outcome.logprobs)
        lines = [line for text in outcome.text for line in self(0, TextDelta(text, 0))]
        lines += self(0, outcome.end)
        last = lines[-1]
        if outcome.logprobs:
            last = last | {"logprobs": [row for line in lines for row in line.get("logprobs", [])]}
        if not self.chat:
            return last | {"response": "".join(line["response"] for line in lines)}
        said = "".join(line["message"]["content"] for line in lines)
        calls = [call for line in lines for call in line["message"].get("tool_calls", [])]
        return last | {
            "message": {"role": "assistant", "content": said, **({"tool_calls": calls} if calls else {})}
        }


def _logprob(item: TokenLogprob) -> dict[str, Any]:
    top = [{"token": token, "logprob": value, "bytes": list(raw)} for token, value, raw in item.top]
    row = {"token": item.token, "logprob": item.logprob, "bytes": list(item.token_bytes)}
    return row | ({"top_logprobs": top} if top else {})


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def ndjson(lines: AsyncIterator[bytes], headers: Mapping[str, str]) -> Response:
    response = Response(lines, content_type=NDJSON)
    response.timeout = None
    response.headers.extend(dict(headers))
    return response
