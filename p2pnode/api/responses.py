"""POST /v1/responses, stateless: nothing is stored, the whole conversation is in `input`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from quart import Blueprint, Response

from p2pnode.api.completions import NAMED, StreamBody
from p2pnode.api.context import ApiContext, body, caller
from p2pnode.api.conversation import chat_prompt
from p2pnode.api.envelope import json_response
from p2pnode.api.generation import MAX_TOKENS_DEFAULT, collect, extension, first_then, new_id, run_choices
from p2pnode.api.grammar import format_grammar
from p2pnode.api.responses_schemas import ResponsesNamedTool, ResponsesRequest
from p2pnode.api.schemas import (
    FunctionCall,
    FunctionSpec,
    JsonSchemaFormat,
    Message,
    NamedFunction,
    NamedTool,
    ResponseFormat,
    Tool,
    ToolCall,
    check_fields,
    parse,
)
from p2pnode.api.sse import stream_response
from p2pnode.api.tools import Call, Piece, ToolPlan, ToolReader, plan_tools
from p2pnode.errors import RequestError
from p2pnode.facade import Finished, GenerateEvent, GenerateRequest, SamplingParams, TextDelta


def messages_of(asked: ResponsesRequest) -> list[Message]:
    """Input items as messages; items nobody here can use are refused by their type."""
    messages = [Message("system", asked.instructions)] if asked.instructions else []
    if isinstance(asked.input, str):
        return [*messages, Message("user", asked.input)]
    return messages + [_message(item) for item in asked.input]


def _message(item: Mapping[str, Any]) -> Message:
    kind = item.get("type", "message")
    try:
        if kind == "message":
            return msgspec.convert({"role": item.get("role"), "content": item.get("content")}, Message)
        if kind == "function_call":
            call = msgspec.convert(
                {"name": item.get("name"), "arguments": item.get("arguments")}, FunctionCall
            )
            return Message("assistant", "", tool_calls=[ToolCall(call, str(item.get("call_id", "")))])
        if kind == "function_call_output":
            return Message("tool", str(item.get("output", "")), tool_call_id=str(item.get("call_id", "")))
    except msgspec.ValidationError as error:
        raise RequestError(f"an input item is wrong: {error}", param="input") from None
    raise RequestError(f"input items of type {str(kind)[:40]!r} are not supported", param="input")


def tools_of(asked: ResponsesRequest) -> ToolPlan:
    tools = [
        Tool(FunctionSpec(tool.name, tool.description, tool.parameters, tool.strict))
        for tool in asked.tools or []
    ]
    choice = asked.tool_choice
    if isinstance(choice, ResponsesNamedTool):
        return plan_tools(tools, NamedTool(NamedFunction(choice.name)), asked.parallel_tool_calls)
    return plan_tools(tools, choice, asked.parallel_tool_calls)


def grammar_for(asked: ResponsesRequest, tools: ToolPlan) -> str | None:
    wanted = asked.text.format if asked.text else None
    if wanted is None or wanted.type == "text":
        return tools.grammar
    schema = JsonSchemaFormat(wanted.schema) if wanted.schema is not None else None
    return tools.grammar or format_grammar(ResponseFormat(wanted.type, json_schema=schema))


class Document:
    """The response object, growing while the answer is written; events carry copies of it."""

    def __init__(self, asked: ResponsesRequest, model: str) -> None:
        self.identity = new_id("resp")
        self.asked = asked
        self.model = model
        self.created = int(time.time())
        self.output: list[dict[str, Any]] = []
        self.sequence = -1

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self.sequence += 1
        return {"type": kind, "sequence_number": self.sequence, **fields}

    def view(self, end: Finished | None) -> dict[str, Any]:
        asked = self.asked
        cut = end is not None and end.reason == "length"
        view: dict[str, Any] = {
            "id": self.identity,
            "object": "response",
            "created_at": self.created,
            "status": "in_progress" if end is None else "incomplete" if cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": self.model,
            "output": [dict(item) for item in self.output],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": asked.temperature,
            "text": {
                "format": {"type": asked.text.format.type if asked.text and asked.text.format else "text"}
            },
            "tool_choice": asked.tool_choice if isinstance(asked.tool_choice, str) else "auto",
            "tools": msgspec.to_builtins(asked.tools or []),
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None,
            "metadata": asked.metadata if isinstance(asked.metadata, dict) else {},
        }
        if end is not None:
            view["usage"] = {
                "input_tokens": end.prompt_tokens,
                "input_tokens_details": {"cached_tokens": end.cached_tokens},
                "output_tokens": end.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": end.prompt_tokens + end.completion_tokens,
            }
            view["p2pnode"] = extension([end])
        return view


class Events:
    """A generation's events as the events of a response."""

    def __init__(self, document: Document, tools: ToolPlan) -> None:
        self._document = document
        self._reader = ToolReader(tools)
        self._text: dict[str, Any] | None = None

    def started(self) -> list[dict[str, Any]]:
        view = self._document.view(None)
        event = self._document.event
        return [event("response.created", response=view), event("response.in_progress", response=view)]

    def __call__(self, index: int, event: GenerateEvent) -> list[dict[str, Any]]:
        del index  # one choice only
        if isinstance(event, TextDelta):
            return self._pieces(self._reader.feed(event.text))
        if not isinstance(event, Finished):
            return []
        events = self._pieces(self._reader.finish()) + self._end_text()
        view = self._document.view(event)
        return [*events, self._document.event(f"response.{view['status']}", response=view)]

    def _pieces(self, pieces: list[Piece]) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        for piece in pieces:
            events += self._call(piece) if isinstance(piece, Call) else self._say(piece)
        return events

    def _say(self, text: str) -> list[dict[str, Any]]:
        document, events = self._document, []
        if self._text is None:
            self._text = {
                "id": new_id("msg"),
                "type": "message",
                "role": "assistant",
                "status": "in_progress",
            }
            self._text["content"] = []
            at = {"output_index": len(document.output)}
            events.append(document.event("response.output_item.added", item=dict(self._text), **at))
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            document.output.append(self._text | {"content": [part]})
            self._text = document.output[-1]
            events.append(document.event("response.content_part.added", part=dict(part), **self._at()))
        self._text["content"][0]["text"] += text
        delta = document.event("response.output_text.delta", delta=text, logprobs=[], **self._at())
        return [*events, delta]

    def _at(self) -> dict[str, Any]:
        assert self._text is not None
        return {
            "item_id": self._text["id"],
            "output_index": len(self._document.output) - 1,
            "content_index": 0,
        }

    def _end_text(self) -> list[dict[str, Any]]:
        if self._text is None:
            return []
        item, at, event = self._text, self._at(), self._document.event
        item["status"] = "completed"
        part = dict(item["content"][0])
        self._text = None
        return [
            event("response.output_text.done", text=part["text"], logprobs=[], **at),
            event("response.content_part.done", part=part, **at),
            event("response.output_item.done", item=item, output_index=at["output_index"]),
        ]

    def _call(self, call: Call) -> list[dict[str, Any]]:
        events = self._end_text()
        document = self._document
        item = {
            "id": new_id("fc"),
            "type": "function_call",
            "status": "completed",
            "call_id": call.identity,
            "name": call.name,
            "arguments": call.arguments,
        }
        at = {"output_index": len(document.output)}
        inside = {"item_id": item["id"], **at}
        events.append(
            document.event(
                "response.output_item.added", item=item | {"arguments": "", "status": "in_progress"}, **at
            )
        )
        document.output.append(item)
        events += [
            document.event("response.function_call_arguments.delta", delta=call.arguments, **inside),
            document.event(
                "response.function_call_arguments.done", arguments=call.arguments, name=call.name, **inside
            ),
            document.event("response.output_item.done", item=item, **at),
        ]
        return events


def responses_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("responses", __name__)
    node = context.node

    @routes.post("/v1/responses")
    async def responses() -> Response:
        who = caller("use")
        asked = parse(ResponsesRequest, await body())
        ignored = check_fields("responses", asked)
        tools = tools_of(asked)
        model = node.resolve_model(asked.model)
        prompt, stops, messages = await chat_prompt(node, model, messages_of(asked), tools=tools)
        document = Document(asked, model)
        usual = SamplingParams()
        request = GenerateRequest(
            model=model,
            prompt=prompt,
            messages=messages,
            max_tokens=asked.max_output_tokens or MAX_TOKENS_DEFAULT,
            stop=stops,
            sampling=SamplingParams(
                temperature=usual.temperature if asked.temperature is None else asked.temperature,
                top_p=usual.top_p if asked.top_p is None else asked.top_p,
                grammar=grammar_for(asked, tools),
            ),
            mode=asked.mode or "auto",
            caller=who.account,
            address=who.address,
            request_id=document.identity,
        )
        events = Events(document, tools)
        headers = {"x-request-id": document.identity}
        if ignored:
            headers["X-P2PNode-Ignored"] = ", ".join(ignored)
        if asked.stream:
            return await streamed(request, events, headers)
        with context.slot():
            outcome = (await collect(context.generate, [request]))[0]
        for part in outcome.text:
            events(0, TextDelta(part, 0))
        last = events(0, outcome.end)[-1]
        return json_response(last["response"], headers=headers)

    async def streamed(request: GenerateRequest, events: Events, headers: dict[str, str]) -> Response:
        context.take_slot()
        try:
            source = await first_then(run_choices(context.generate, [request]))
        except BaseException:
            context.generating -= 1
            raise
        stream = StreamBody(context, source, events, lambda _: [], begin=events.started, form=NAMED)
        response = stream_response(stream)
        response.headers.extend(headers)
        return response

    return routes
