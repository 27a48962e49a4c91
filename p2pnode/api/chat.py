"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from quart import Blueprint, Response

from p2pnode.api.chat_template import flatten_content, render_chat
from p2pnode.api.completions import answer_headers, stream_answer
from p2pnode.api.context import ApiContext, body, caller
from p2pnode.api.envelope import json_response
from p2pnode.api.generation import (
    MAX_TOKENS_DEFAULT,
    Outcome,
    choices_of,
    collect,
    extension,
    new_id,
    sampling_of,
    stop_list,
)
from p2pnode.api.grammar import grammar_of
from p2pnode.api.reply import Reply, chat_logprobs, finish_reason
from p2pnode.api.schemas import ChatRequest, Message, check_fields, parse
from p2pnode.errors import RequestError
from p2pnode.facade import Finished, GenerateEvent, GenerateRequest, NodeFacade, PrefillProgress, TextDelta


def plain_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as templates know them: text content, `system` for `developer`, tool arguments as objects."""
    plain: list[dict[str, Any]] = []
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        row: dict[str, Any] = {"role": role, "content": flatten_content(message.content)}
        if message.name:
            row["name"] = message.name
        if message.tool_call_id:
            row["tool_call_id"] = message.tool_call_id
        if message.reasoning_content:
            row["reasoning_content"] = message.reasoning_content
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


async def chat_prompt(
    node: NodeFacade,
    model: str,
    messages: list[Message],
    *,
    tools: list[dict[str, Any]] | None = None,
    extra: dict[str, Any] | None = None,
) -> tuple[str, tuple[str, ...]]:
    metadata = {"model": model, **node.model_metadata(model)}
    return await asyncio.to_thread(render_chat, metadata, plain_messages(messages), tools=tools, extra=extra)


def check_chat(asked: ChatRequest) -> list[str]:
    ignored = check_fields("chat", asked)
    if asked.modalities not in (None, ["text"]):
        raise RequestError("models here write text only", param="modalities")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    return ignored


def chat_choice(index: int, outcome: Outcome) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": "".join(outcome.text), "refusal": None},
        "finish_reason": finish_reason(outcome.end),
        "logprobs": chat_logprobs(outcome.logprobs),
    }


def chat_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("chat", __name__)
    node = context.node

    @routes.post("/v1/chat/completions")
    async def chat_completions() -> Response:
        who = caller("use")
        asked = parse(ChatRequest, await body())
        ignored = check_chat(asked)
        model = node.resolve_model(asked.model)
        prompt, stops = await chat_prompt(node, model, asked.messages, extra=asked.chat_template_kwargs)
        reply = Reply(new_id("chatcmpl"), model, "chat.completion")
        base = GenerateRequest(
            model=model,
            prompt=prompt,
            max_tokens=asked.max_completion_tokens or asked.max_tokens or MAX_TOKENS_DEFAULT,
            stop=stop_list(asked) + stops,
            sampling=sampling_of(
                asked,
                grammar=grammar_of(asked),
                logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
            ),
            mode=asked.mode or "auto",
            caller=who.account,
            request_id=reply.identity,
        )
        requests = choices_of(base, asked.n or 1)
        headers = answer_headers(reply, ignored)
        if not asked.stream:
            with context.slot():
                outcomes = await collect(node, requests)
            choices = [chat_choice(index, outcome) for index, outcome in enumerate(outcomes)]
            return json_response(reply.whole(choices, [o.end for o in outcomes]), headers=headers)
        begun: set[int] = set()

        def render(index: int, event: GenerateEvent) -> list[dict[str, Any]]:
            if isinstance(event, PrefillProgress):
                return [reply.progress(index, event)] if asked.return_progress else []
            choice: dict[str, Any] = {"index": index, "delta": {}, "finish_reason": None, "logprobs": None}
            chunks = []
            if index not in begun:
                begun.add(index)
                chunks.append(reply.chunk([choice | {"delta": {"role": "assistant", "content": ""}}]))
            if isinstance(event, Finished):
                done = choice | {"finish_reason": finish_reason(event)}
                return [*chunks, reply.chunk([done], p2pnode=extension([event]))]
            assert isinstance(event, TextDelta)
            delta = choice | {"delta": {"content": event.text}, "logprobs": chat_logprobs(event.logprobs)}
            return [*chunks, reply.chunk([delta])]

        wants_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return await stream_answer(
            context, requests, render, reply, include_usage=wants_usage, headers=headers
        )

    return routes
