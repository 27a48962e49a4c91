"""Tool calls: told to the model, found in what it writes, while it writes.

Read: <tool_call>{json}</tool_call> (Hermes, Qwen), [TOOL_CALLS][{json}, ...] (Mistral), <|python_tag|>{json}
and bare {"name": ..., "parameters": ...} (Llama 3), <function=name>{json}</function>.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from p2pnode.api.grammar import tool_grammar
from p2pnode.api.schemas import NamedTool, Tool
from p2pnode.errors import RequestError

_OPENINGS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<function=")
_CLOSINGS = {"<tool_call>": "</tool_call>", "<function=": "</function>"}
_OPENING_MAX = max(map(len, _OPENINGS))
INSTRUCTIONS = (
    "You may call functions. Their signatures, one JSON object a line:\n{tools}\n"
    'To call one, answer with <tool_call>{{"name": <name>, "arguments": <object>}}</tool_call> and nothing else.'
)


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: str
    """JSON text of an object."""
    identity: str

    def openai(self, index: int | None = None) -> dict[str, Any]:
        call = {
            "id": self.identity,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }
        return call if index is None else {"index": index, **call}


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """What the tools of a request mean for the prompt, the sampler and the reader."""

    tools: tuple[Tool, ...] = ()
    grammar: str | None = None
    parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.function.name for tool in self.tools)

    def specifications(self) -> list[dict[str, Any]]:
        rows = msgspec.to_builtins(list(self.tools))
        return [
            {"type": "function", "function": {k: v for k, v in row["function"].items() if v is not None}}
            for row in rows
        ]


def plan_tools(
    tools: Sequence[Tool] | None, choice: str | NamedTool | None, parallel: bool | None
) -> ToolPlan:
    """Which tools are offered and whether a call is forced."""
    offered = tuple(tools or ())
    if isinstance(choice, NamedTool):
        chosen = tuple(tool for tool in offered if tool.function.name == choice.function.name)
        if not chosen:
            raise RequestError(
                f"tool_choice names {choice.function.name!r}, which is no tool", param="tool_choice"
            )
        return ToolPlan(chosen, tool_grammar(chosen), parallel=False)
    if choice == "required":
        if not offered:
            raise RequestError("tool_choice is `required` but there are no tools", param="tool_choice")
        return ToolPlan(offered, tool_grammar(offered), parallel=False)
    if choice == "none":
        return ToolPlan()
    return ToolPlan(offered, None, parallel is not False)


def with_instructions(
    metadata: Mapping[str, Any], messages: list[dict[str, Any]], plan: ToolPlan
) -> list[dict[str, Any]]:
    """Messages that tell a model about the tools when its own template has no place for them."""
    if not plan.tools or "tools" in str(metadata.get("chat_template") or ""):
        return messages
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in plan.specifications())
    text = INSTRUCTIONS.format(tools=lines)
    told = [_as_text(message) for message in messages]
    if told and told[0]["role"] == "system":
        return [{**told[0], "content": f"{told[0]['content']}\n\n{text}"}, *told[1:]]
    return [{"role": "system", "content": text}, *told]


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    """Calls and results of earlier turns as words, for a template that knows neither."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>{message['content']}</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    texts = [f"<tool_call>{json.dumps(call['function'], ensure_ascii=False)}</tool_call>" for call in calls]
    return {"role": message["role"], "content": "\n".join([message["content"], *texts]).strip()}


Piece = str | Call


class ToolReader:
    """Separates text from calls in a stream; text is passed on as soon as it cannot be a call."""

    def __init__(self, plan: ToolPlan) -> None:
        self._plan = plan
        self._held = ""
        self._inside = ""
        self._said = False
        self.calls = 0

    def feed(self, text: str) -> list[Piece]:
        if not self._plan.tools:
            return [text] if text else []
        self._held += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back at the end: a call without its closing mark, or text after all."""
        held, self._held, opening, self._inside = self._held, "", self._inside, ""
        if not held:
            return []
        calls = self._calls(opening, held)
        return list(calls) if calls else [opening + held]

    def _step(self, pieces: list[Piece]) -> bool:
        if self._inside:
            return self._close(pieces)
        if not self._said and self._held.lstrip().startswith(("{", "[{")):
            return False  # may be a bare call: known at the end
        found = [(self._held.find(mark), mark) for mark in _OPENINGS if mark in self._held]
        if found:
            position, mark = min(found)
            self._say(self._held[:position], pieces)
            self._held = self._held[position + len(mark) :]
            self._inside = mark
            return True
        keep = self._possible_start()
        if not self._said and not self._held.strip():
            return False
        self._say(self._held[: len(self._held) - keep], pieces)
        self._held = self._held[len(self._held) - keep :]
        return False

    def _say(self, text: str, pieces: list[Piece]) -> None:
        if text.strip() or (text and self._said):
            self._said = True
            pieces.append(text)

    def _possible_start(self) -> int:
        """Length of the end of what is held that may be the beginning of a mark."""
        for length in range(min(_OPENING_MAX - 1, len(self._held)), 0, -1):
            if any(mark.startswith(self._held[-length:]) for mark in _OPENINGS):
                return length
        return 0

    def _close(self, pieces: list[Piece]) -> bool:
        closing = _CLOSINGS.get(self._inside)
        if closing is None or closing not in self._held:
            return False
        body, _, self._held = self._held.partition(closing)
        opening, self._inside = self._inside, ""
        calls = self._calls(opening, body)
        pieces.extend(calls or [opening + body + closing])
        return True

    def _calls(self, opening: str, body: str) -> list[Call]:
        if opening == "<function=":
            name, _, arguments = body.partition(">")
            rows: Any = [{"name": name.strip(), "arguments": _json(arguments.removesuffix("</function>"))}]
        else:
            rows = _json(body.removesuffix("</tool_call>"))
            rows = rows if isinstance(rows, list) else [rows]
        calls = []
        for row in rows:
            call = self._call(row)
            if call is None:
                return []
            calls.append(call)
        if not self._plan.parallel:
            calls = calls[: max(0, 1 - self.calls)]
        self.calls += len(calls)
        return calls

    def _call(self, row: Any) -> Call | None:
        if isinstance(row, dict) and isinstance(row.get("function"), dict):
            row = row["function"]
        if not isinstance(row, dict) or row.get("name") not in self._plan.names:
            return None
        arguments = row.get("arguments", row.get("parameters", {}))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return Call(row["name"], text, f"call_{secrets.token_hex(12)}")


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text.strip())
    except (msgspec.DecodeError, RecursionError):
        return None
