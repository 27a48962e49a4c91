"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from quart import Blueprint, Response

from p2pnode.api.completions import answer_headers, stream_answer
from p2pnode.api.context import ApiContext, body, caller
from p2pnode.api.conversation import chat_prompt
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
from p2pnode.api.schemas import ChatRequest, check_fields, parse
from p2pnode.api.tools import Call, Piece, ToolPlan, ToolReader, plan_tools
from p2pnode.errors import RequestError
from p2pnode.facade import Finished, GenerateEvent, GenerateRequest, Loading, PrefillProgress, TextDelta


def check_chat(asked: ChatRequest) -> list[str]:
    ignored = check_fields("chat", asked)
    if asked.modalities not in (None, ["text"]):
        raise RequestError("models here write text only", param="modalities")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    return ignored


def chat_grammar(asked: ChatRequest, tools: ToolPlan) -> str | None:
    grammar = grammar_of(asked)
    if tools.grammar is not None and grammar is not None:
        raise RequestError("a forced tool call and a grammar cannot both hold", param="tool_choice")
    return tools.grammar or grammar


def chat_choice(index: int, outcome: Outcome, tools: ToolPlan) -> dict[str, Any]:
    reader = ToolReader(tools)
    pieces = reader.feed("".join(outcome.text)) + reader.finish()
    calls = [piece for piece in pieces if isinstance(piece, Call)]
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message["content"] = text or None
        message["tool_calls"] = [call.openai() for call in calls]
    return {
        "index": index,
        "message": message,
        "finish_reason": finish_reason(outcome.end, tools=bool(calls)),
        "logprobs": chat_logprobs(outcome.logprobs),
    }


class ChatChunks:
    """Turns a generation's events into chunks, choice by choice."""

    def __init__(self, reply: Reply, tools: ToolPlan, *, progress: bool) -> None:
        self._reply = reply
        self._tools = tools
        self._progress = progress
        self._readers: dict[int, ToolReader] = {}

    def __call__(self, index: int, event: GenerateEvent) -> list[dict[str, Any]]:
        if isinstance(event, PrefillProgress | Loading):
            return [self._reply.progress(index, event)] if self._progress else []
        chunks = []
        reader = self._readers.get(index)
        if reader is None:
            reader = self._readers[index] = ToolReader(self._tools)
            chunks.append(self._chunk(index, {"role": "assistant", "content": ""}))
        before = reader.calls
        if isinstance(event, TextDelta):
            pieces = reader.feed(event.text)
            logprobs = chat_logprobs(event.logprobs)
            return chunks + self._pieces(index, pieces, before, logprobs)
        assert isinstance(event, Finished)
        chunks += self._pieces(index, reader.finish(), before, None)
        end = self._chunk(index, {}, reason=finish_reason(event, tools=reader.calls > 0))
        return [*chunks, end | {"p2pnode": extension([event])}]

    def _pieces(
        self, index: int, pieces: list[Piece], before: int, logprobs: dict[str, Any] | None
    ) -> list[dict[str, Any]]:
        chunks = []
        for piece in pieces:
            if isinstance(piece, Call):
                chunks.append(self._chunk(index, {"tool_calls": [piece.openai(before)]}))
                before += 1
            else:
                chunks.append(self._chunk(index, {"content": piece}, logprobs=logprobs))
                logprobs = None
        if logprobs is not None:
            chunks.append(self._chunk(index, {"content": ""}, logprobs=logprobs))
        return chunks

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return self._reply.chunk([choice])


def chat_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("chat", __name__)
    node = context.node

    @routes.post("/v1/chat/completions")
    async def chat_completions() -> Response:
        who = caller("use")
        asked = parse(ChatRequest, await body())
        ignored = check_chat(asked)
        tools = plan_tools(asked.tools, asked.tool_choice, asked.parallel_tool_calls)
        model = node.resolve_model(asked.model)
        prompt, stops, messages = await chat_prompt(
            node, model, asked.messages, tools=tools, extra=asked.chat_template_kwargs
        )
        reply = Reply(new_id("chatcmpl"), model, "chat.completion")
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        base = GenerateRequest(
            model=model,
            prompt=prompt,
            messages=messages,
            max_tokens=asked.max_completion_tokens or asked.max_tokens or MAX_TOKENS_DEFAULT,
            stop=stop_list(asked) + stops,
            sampling=sampling_of(asked, grammar=chat_grammar(asked, tools), logprobs=logprobs),
            mode=asked.mode or "auto",
            cache_prompt=asked.cache_prompt,
            caller=who.account,
            address=who.address,
            request_id=reply.identity,
        )
        requests = choices_of(base, asked.n or 1)
        headers = answer_headers(reply, ignored)
        if asked.stream:
            render = ChatChunks(reply, tools, progress=bool(asked.return_progress))
            wants_usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return await stream_answer(
                context, requests, render, reply, include_usage=wants_usage, headers=headers,
                progress=bool(asked.return_progress),
            )  # fmt: skip
        with context.slot():
            outcomes = await collect(context.generate, requests)
        choices = [chat_choice(index, outcome, tools) for index, outcome in enumerate(outcomes)]
        return json_response(reply.whole(choices, [o.end for o in outcomes]), headers=headers)

    return routes
