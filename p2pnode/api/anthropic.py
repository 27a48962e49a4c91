"""POST /v1/messages in Anthropic's form, for the agents and editors that are made for it. Stateless, text and tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from quart import Blueprint, Response

from p2pnode.api.completions import NAMED, StreamBody
from p2pnode.api.context import ApiContext, body, caller
from p2pnode.api.conversation import ChatPrompt, chat_prompt
from p2pnode.api.envelope import envelope, error_response, json_response
from p2pnode.api.generation import collect, extension, first_then, new_id, run_choices
from p2pnode.api.grammar import format_grammar
from p2pnode.api.schemas import (
    Fraction,
    FunctionCall,
    FunctionSpec,
    JsonMap,
    JsonSchemaFormat,
    Message,
    ModelName,
    NamedFunction,
    NamedTool,
    PositiveInt,
    ResponseFormat,
    StopText,
    Tool,
    ToolCall,
    parse,
)
from p2pnode.api.security import Caller
from p2pnode.api.sse import stream_response
from p2pnode.api.tools import Call, ToolPlan, ToolReader, plan_tools
from p2pnode.errors import P2PNodeError, RequestError
from p2pnode.facade import (
    Finished,
    GenerateEvent,
    GenerateRequest,
    PrefillProgress,
    SamplingParams,
    TextDelta,
)
from p2pnode.limits import API_MESSAGES_MAX, API_STOP_SEQUENCES_MAX, API_TOOLS_MAX

IGNORED = ("cache_control", "metadata", "service_tier", "thinking")
_TYPES = {413: "request_too_large", 500: "api_error", 503: "overloaded_error"}
_UNSEEN = ("thinking", "redacted_thinking")
"""Blocks that its clients send back and no model here reads."""


class Turn(Struct):
    role: Literal["user", "assistant"]
    content: str | list[JsonMap]


class OfferedTool(Struct):
    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.\-]+$")]
    input_schema: JsonMap | None = None
    description: str | None = None
    type: str | None = None


class Choice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(Struct):
    type: Literal["json_schema"]
    schema: JsonMap


class OutputConfig(Struct, forbid_unknown_fields=True):
    format: OutputFormat | None = None
    effort: str | None = None


class CountRequest(Struct, kw_only=True):
    """Counting takes whatever a request may say; only the prompt matters."""

    messages: Annotated[list[Turn], Meta(min_length=1, max_length=API_MESSAGES_MAX)]
    model: ModelName | None = None
    system: str | list[JsonMap] | None = None
    tools: Annotated[list[OfferedTool], Meta(max_length=API_TOOLS_MAX)] | None = None
    tool_choice: Choice | None = None


class MessagesRequest(CountRequest, forbid_unknown_fields=True, kw_only=True):
    max_tokens: PositiveInt
    stop_sequences: Annotated[list[StopText], Meta(max_length=API_STOP_SEQUENCES_MAX)] | None = None
    stream: bool | None = None
    temperature: Fraction | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    metadata: JsonMap | None = None
    service_tier: str | None = None
    thinking: JsonMap | None = None
    cache_control: JsonMap | None = None
    output_config: OutputConfig | None = None


def failure(condition: P2PNodeError) -> dict[str, Any]:
    """The envelope as its clients tell errors apart: `type: error` outside, their names of types inside."""
    inside = envelope(condition)["error"]
    kind = "invalid_request_error" if condition.http_status == 400 else inside["type"]
    if kind in ("server_error", "invalid_request_error", "insufficient_quota"):
        kind = _TYPES.get(condition.http_status, "rate_limit_error" if condition.http_status == 429 else kind)
    return {"type": "error", "error": inside | {"type": "api_error" if kind == "server_error" else kind}}


EVENTS = replace(NAMED, failure=failure)


def grammar_of(asked: MessagesRequest, tools: ToolPlan) -> str | None:
    """What may be written: calls that were demanded, or a document of the schema."""
    form = None if asked.output_config is None else asked.output_config.format
    if form is None:
        return tools.grammar
    if tools.grammar is not None:
        raise RequestError("a demanded tool and output_config.format cannot both be", param="output_config")
    return format_grammar(
        ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat(schema=form.schema))
    )


def ignored_in(asked: MessagesRequest) -> list[str]:
    names = [name for name in IGNORED if getattr(asked, name) is not None]
    return names + ["output_config.effort"] * bool(asked.output_config and asked.output_config.effort)


def text_of(content: object) -> str:
    """Text of blocks that may hold nothing else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise RequestError("content is text or a list of blocks", param="messages")
    for block in content:
        if block.get("type") != "text":
            raise RequestError(
                f"blocks of type {str(block.get('type'))[:40]!r} are not understood: models here read text only",
                param="messages",
            )
    return "".join(str(block.get("text", "")) for block in content)


def messages_of(asked: CountRequest) -> list[Message]:
    """Turns as messages: results of tools are messages of their own, calls belong to what the assistant said."""
    messages = [Message("system", text_of(asked.system))] if asked.system else []
    for turn in asked.messages:
        blocks = [{"type": "text", "text": turn.content}] if isinstance(turn.content, str) else turn.content
        said = [block for block in blocks if block.get("type") not in ("tool_use", "tool_result", *_UNSEEN)]
        for block in blocks:
            if block.get("type") == "tool_result":
                result = text_of(block.get("content") or "")
                messages.append(Message("tool", result, tool_call_id=str(block.get("tool_use_id", ""))))
        calls = [_called(block) for block in blocks if block.get("type") == "tool_use"]
        if said or calls:
            messages.append(Message(turn.role, text_of(said), tool_calls=calls or None))
    return messages


def _called(block: Mapping[str, Any]) -> ToolCall:
    arguments = msgspec.json.encode(block.get("input") or {}).decode()
    return ToolCall(FunctionCall(str(block.get("name", ""))[:256], arguments), str(block.get("id", "")))


def tools_of(asked: CountRequest) -> ToolPlan:
    for tool in asked.tools or []:
        if tool.type not in (None, "custom"):
            raise RequestError(f"tools of type {tool.type[:40]!r} are not run here", param="tools")
    tools = [Tool(FunctionSpec(tool.name, tool.description, tool.input_schema)) for tool in asked.tools or []]
    choice = asked.tool_choice
    parallel = None if choice is None else not choice.disable_parallel_tool_use
    if choice is None or choice.type != "tool":
        ours = {"auto": "auto", "any": "required", "none": "none"}
        return plan_tools(tools, None if choice is None else ours[choice.type], parallel)
    return plan_tools(tools, NamedTool(NamedFunction(choice.name or "")), parallel)


class Document:
    """The message, growing while it is written, and the events that say so."""

    def __init__(self, model: str, tools: ToolPlan) -> None:
        self.identity = new_id("msg")
        self.content: list[dict[str, Any]] = []
        self.model = model
        self._reader = ToolReader(tools)
        self._is_begun = self._in_text = False

    def view(self, end: Finished | None, input_tokens: int = 0) -> dict[str, Any]:
        usage = {"input_tokens": input_tokens, "output_tokens": 0}
        view = {
            "id": self.identity, "type": "message", "role": "assistant", "model": self.model,
            "content": [dict(block) for block in self.content], "stop_reason": None, "stop_sequence": None,
            "usage": usage,
        }  # fmt: skip
        if end is not None:
            view.update(self._stop(end), usage=self._usage(end), p2pnode=extension([end]))
        return view

    def _stop(self, end: Finished) -> dict[str, Any]:
        reason = (
            "max_tokens" if end.reason == "length" else "stop_sequence" if end.stop_sequence else "end_turn"
        )
        called = any(block["type"] == "tool_use" for block in self.content)
        return {"stop_reason": "tool_use" if called else reason, "stop_sequence": end.stop_sequence}

    @staticmethod
    def _usage(end: Finished) -> dict[str, Any]:
        """There, what was found in a cache does not count as input."""
        return {
            "input_tokens": end.prompt_tokens - end.cached_tokens,
            "cache_read_input_tokens": end.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": end.completion_tokens,
        }

    def __call__(self, index: int, event: GenerateEvent) -> list[dict[str, Any]]:
        del index  # one choice only
        events: list[dict[str, Any]] = []
        if not self._is_begun:
            self._is_begun = True
            known = event.tokens_total - event.tokens_cached if isinstance(event, PrefillProgress) else 0
            events.append({"type": "message_start", "message": self.view(None, known)})
        if isinstance(event, TextDelta):
            return events + self._pieces(self._reader.feed(event.text))
        if not isinstance(event, Finished):
            return events
        events += self._pieces(self._reader.finish()) + self._end_text()
        delta = {"type": "message_delta", "delta": self._stop(event), "usage": self._usage(event)}
        return [*events, delta | {"p2pnode": extension([event])}, {"type": "message_stop"}]

    def _pieces(self, pieces: list[str | Call]) -> list[dict[str, Any]]:
        return [
            event
            for piece in pieces
            for event in (self._call(piece) if isinstance(piece, Call) else self._say(piece))
        ]

    def _say(self, text: str) -> list[dict[str, Any]]:
        events = [] if self._in_text else [self._start({"type": "text", "text": ""})]
        self._in_text = True
        self.content[-1]["text"] += text
        return [*events, self._delta({"type": "text_delta", "text": text})]

    def _call(self, call: Call) -> list[dict[str, Any]]:
        events = self._end_text()
        block = {"type": "tool_use", "id": call.identity, "name": call.name, "input": {}}
        events += [
            self._start(block),
            self._delta({"type": "input_json_delta", "partial_json": call.arguments}),
        ]
        self.content[-1]["input"] = msgspec.json.decode(call.arguments)
        return [*events, self._block_stop()]

    def _end_text(self) -> list[dict[str, Any]]:
        if not self._in_text:
            return []
        self._in_text = False
        return [self._block_stop()]

    def _start(self, block: dict[str, Any]) -> dict[str, Any]:
        self.content.append(dict(block))
        return {"type": "content_block_start", "index": len(self.content) - 1, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self.content) - 1, "delta": delta}

    def _block_stop(self) -> dict[str, Any]:
        return {"type": "content_block_stop", "index": len(self.content) - 1}


def _request(
    asked: MessagesRequest, document: Document, made: ChatPrompt, grammar: str | None, who: Caller
) -> GenerateRequest:
    usual = SamplingParams()
    return GenerateRequest(
        model=document.model,
        prompt=made.text,
        messages=made.messages,
        max_tokens=asked.max_tokens,
        stop=(*(asked.stop_sequences or ()), *made.stops),
        sampling=SamplingParams(
            temperature=usual.temperature if asked.temperature is None else asked.temperature,
            top_p=usual.top_p if asked.top_p is None else asked.top_p,
            top_k=usual.top_k if asked.top_k is None else asked.top_k,
            grammar=grammar,
        ),
        caller=who.account,
        address=who.address,
        request_id=document.identity,
    )


def anthropic_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("anthropic", __name__)
    node = context.node

    @routes.errorhandler(Exception)
    async def failed(error: Exception) -> Response:
        return error_response(error, failure)

    @routes.post("/v1/messages")
    async def messages() -> Response:
        who = caller("use")
        asked = parse(MessagesRequest, await body())
        tools = tools_of(asked)
        model = node.resolve_model(asked.model)
        made = await chat_prompt(node, model, messages_of(asked), tools=tools)
        document = Document(model, tools)
        request = _request(asked, document, made, grammar_of(asked, tools), who)
        ignored = ignored_in(asked)
        headers = {"request-id": document.identity, "x-request-id": document.identity}
        if ignored:
            headers["X-P2PNode-Ignored"] = ", ".join(ignored)
        return await answered(request, document, headers, stream=bool(asked.stream))

    @routes.post("/v1/messages/count_tokens")
    async def count() -> Response:
        caller("use")
        asked = parse(CountRequest, await body())
        model = node.resolve_model(asked.model)
        made = await chat_prompt(node, model, messages_of(asked), tools=tools_of(asked))
        work = node.tokenize(model, made.text, add_special=True, parse_special=True)
        return json_response({"input_tokens": len(await context.loaded(model, work))})

    async def answered(
        request: GenerateRequest, document: Document, headers: dict[str, str], *, stream: bool
    ) -> Response:
        if not stream:
            with context.slot():
                outcome = (await collect(context.generate, [request]))[0]
            for text in outcome.text:
                document(0, TextDelta(text, 0))
            document(0, outcome.end)
            return json_response(document.view(outcome.end), headers=headers)
        context.take_slot()
        try:
            events = await first_then(run_choices(context.generate, [request]))
        except BaseException:
            context.generating -= 1
            raise
        response = stream_response(StreamBody(context, events, document, lambda _: [], form=EVENTS))
        response.headers.extend(headers)
        return response

    return routes
