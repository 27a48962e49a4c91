"""From messages and tools to a generation: what chat, responses and the short form share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from p2pnode.api.chat_template import flatten_content, render_chat
from p2pnode.api.schemas import Message
from p2pnode.api.tools import ToolPlan, with_instructions
from p2pnode.facade import NodeFacade

NO_TOOLS = ToolPlan()


def plain_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as templates know them: text content, `system` for `developer`, tool arguments as objects."""
    plain: list[dict[str, Any]] = []
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        row: dict[str, Any] = {"role": role, "content": flatten_content(message.content)}
        for name in ("name", "tool_call_id", "reasoning_content"):
            if getattr(message, name):
                row[name] = getattr(message, name)
        if message.tool_calls:
            row["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": _arguments(call.function.arguments),
                    },
                }
                for call in message.tool_calls
            ]
        plain.append(row)
    return plain


def _arguments(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text


class ChatPrompt(NamedTuple):
    text: str
    stops: tuple[str, ...]
    """Stop sequences its format needs."""
    messages: tuple[dict[str, Any], ...] = ()
    """The conversation itself, where an external server renders it."""


async def chat_prompt(
    node: NodeFacade,
    model: str,
    messages: list[Message],
    *,
    tools: ToolPlan = NO_TOOLS,
    extra: Mapping[str, Any] | None = None,
) -> ChatPrompt:
    """A conversation as the model's own template writes it."""
    metadata = {"model": model, **await node.model_metadata(model)}
    rows = with_instructions(metadata, plain_messages(messages), tools)
    if metadata.get("external"):
        text = "\n".join(f"{row['role']}: {row['content']}" for row in rows)
        return ChatPrompt(text, (), tuple(rows))
    text, stops = await asyncio.to_thread(
        render_chat, metadata, rows, tools=tools.specifications() if tools.tools else None, extra=extra
    )
    return ChatPrompt(text, stops)
