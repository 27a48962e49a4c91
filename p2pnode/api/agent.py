"""POST /agent/stream: a model with tools in a loop that always ends.

The built-in tools are read-only questions to this node. Tools of other programs (MCP) are there when the operator
named them, and only for callers of the scope that the operator gave them. What the caller wants besides must be run
by the caller: those calls end the loop and are handed back, as OpenAI's API does.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from quart import Blueprint, Response

from p2pnode.api.context import ApiContext, body, caller
from p2pnode.api.conversation import chat_prompt
from p2pnode.api.envelope import condition_of, envelope, json_bytes, json_response
from p2pnode.api.generation import MAX_TOKENS_DEFAULT, extension, new_id, run_choices
from p2pnode.api.schemas import (
    FunctionCall,
    FunctionSpec,
    Message,
    ModelName,
    PositiveInt,
    Seed,
    Temperature,
    Tool,
    ToolCall,
    parse,
)
from p2pnode.api.security import Caller
from p2pnode.api.sse import DONE, HEARTBEAT, sse_data, stream_response, until_closed
from p2pnode.api.tools import Call, ToolReader, plan_tools
from p2pnode.errors import EngineUnavailable, Forbidden, NotFound, RequestError, ToolFailed
from p2pnode.facade import Finished, GenerateRequest, Loading, Mode, NodeFacade, SamplingParams, TextDelta
from p2pnode.limits import (
    AGENT_CALLS_MAX,
    AGENT_RESULT_CHARS_MAX,
    AGENT_STEPS_MAX,
    API_MESSAGES_MAX,
    API_TOOLS_MAX,
    MCP_SERVERS_MAX,
)

_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")

_OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
}


class AgentRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1, max_length=API_MESSAGES_MAX)]
    model: ModelName | None = None
    tools: Annotated[list[Tool], Meta(max_length=API_TOOLS_MAX)] | None = None
    """The caller's own tools, beside the built-in ones."""
    builtin: list[str] | None = None
    """Which built-in tools are offered; all when not given."""
    mcp: Annotated[list[str], Meta(max_length=MCP_SERVERS_MAX)] | None = None
    """Which tool servers are offered; all that this caller may use when not given."""
    max_steps: Annotated[int, Meta(ge=1, le=AGENT_STEPS_MAX)] = 6
    max_tokens: PositiveInt | None = None
    temperature: Temperature | None = None
    seed: Seed | None = None
    mode: Mode | None = None
    return_progress: bool = False
    """Whether to hear `loading` while the model is brought into memory, instead of a 503 when that takes long."""


@dataclass(frozen=True, slots=True)
class BuiltIn:
    tool: Tool
    run: Callable[[NodeFacade, dict[str, Any]], Any]


def _tool(
    name: str, text: str, run: Callable[[NodeFacade, dict[str, Any]], Any], **properties: str
) -> BuiltIn:
    schema = {
        "type": "object",
        "properties": {key: {"type": "string", "description": words} for key, words in properties.items()},
        "required": list(properties),
    }
    return BuiltIn(Tool(FunctionSpec(name, text, schema)), run)


def calculate(expression: str) -> float:
    """Plain arithmetic with + - * / // %; no powers, names or calls, so that it cannot run away."""

    def value(node: ast.AST) -> float:
        if isinstance(node, ast.Expression):
            return value(node.body)
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value if abs(node.value) < 1 << 53 else float(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.operand))
        raise RequestError("only numbers and + - * / // % are calculated")

    if len(expression) > 500:
        raise RequestError("the expression is too long")
    try:
        return value(ast.parse(expression, mode="eval"))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise RequestError(f"this cannot be calculated: {type(error).__name__}") from None


BUILTIN: dict[str, BuiltIn] = {
    built.tool.function.name: built
    for built in (
        _tool("mesh_status", "Health and load of this node", lambda node, _: node.status()),
        _tool("mesh_peers", "Devices of the mesh and their links", lambda node, _: node.peers()),
        _tool("mesh_models", "Models of the mesh and who holds them", lambda node, _: node.models()),
        _tool("mesh_plans", "Which device computes which layers", lambda node, _: node.plans()),
        _tool("now", "Date and time of this node", lambda _n, _a: datetime.now().astimezone().isoformat()),
        _tool(
            "calculate",
            "The value of an arithmetic expression",
            lambda _, a: calculate(str(a.get("expression", ""))),
            expression="for example (2 + 3) * 4",
        ),
    )
}


async def outside_tools(
    node: NodeFacade, asked: AgentRequest, who: Caller
) -> dict[str, tuple[str, str, Tool]]:
    """Tools of the operator's servers for this caller: name for the model, then server, tool and what it is told."""
    servers = {server["name"]: server for server in (await node.tools())["servers"]}
    names = list(servers) if asked.mcp is None else asked.mcp
    found: dict[str, tuple[str, str, Tool]] = {}
    for name in names:
        server = servers.get(name)
        if server is None:
            raise RequestError(
                f"there is no tool server {name[:40]!r}", param="mcp", hint="GET /agent/tools lists them"
            )
        if server["scope"] == "admin" and who.scope != "admin":
            if asked.mcp is None:
                continue
            raise Forbidden(f"the tools of {name} need an admin key", param="mcp")
        if server["error"] and asked.mcp is not None:
            raise ToolFailed(server["error"])
        for row in server["tools"]:
            shown = _NOT_IN_NAMES.sub("_", f"{name}__{row['name']}")[:64]
            spec = FunctionSpec(shown, row["description"], row["input_schema"])
            found.setdefault(shown, (name, row["name"], Tool(spec)))
    return found


class Agent:
    """One run: steps of writing and looking things up, until there is an answer or the bound is reached."""

    def __init__(
        self,
        context: ApiContext,
        asked: AgentRequest,
        account: str,
        outside: Mapping[str, tuple[str, str, Tool]],
    ) -> None:
        self._context = context
        self._asked = asked
        self._account = account
        self._outside = outside
        names = list(BUILTIN) if asked.builtin is None else asked.builtin
        unknown = [name for name in names if name not in BUILTIN]
        if unknown:
            raise RequestError(
                f"there is no built-in tool {unknown[0][:40]!r}",
                param="builtin",
                hint=f"known: {', '.join(BUILTIN)}",
            )
        self._own = {tool.function.name for tool in asked.tools or []}
        self._tools = plan_tools(
            [
                *(BUILTIN[name].tool for name in names),
                *(tool for name, (_, _, tool) in outside.items() if name not in self._own),
                *(asked.tools or []),
            ],
            "auto",
            True,
        )
        self._model = context.node.resolve_model(asked.model)
        self._messages = list(asked.messages)
        self._request_id = new_id("agent")

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        for step in range(1, self._asked.max_steps + 1):
            calls: list[Call] = []
            written: list[str] = []
            end: Finished | None = None
            async for event in self._write(step, calls, written):
                if isinstance(event, Finished):
                    end = event
                else:
                    yield event
            if end is None:
                raise EngineUnavailable("the generation ended without a result", hint="try again")
            about = {"step": step, "p2pnode": extension([end])}
            foreign = [call for call in calls if call.name in self._own]
            if not calls or foreign:
                reason = "tool_calls" if foreign else end.reason
                handed = [call.openai() for call in foreign]
                yield {"type": "finished", "finish_reason": reason, "tool_calls": handed, **about}
                return
            self._remember(calls, "".join(written))
            for call in calls:
                result, is_error = await self._look_up(call)
                self._messages.append(Message("tool", result, tool_call_id=call.identity))
                yield {
                    "type": "tool_result",
                    "name": call.name,
                    "result": result,
                    "is_error": is_error,
                    "step": step,
                }
        yield {
            "type": "finished",
            "finish_reason": "max_steps",
            "tool_calls": [],
            "step": self._asked.max_steps,
        }

    async def _write(
        self, step: int, calls: list[Call], written: list[str]
    ) -> AsyncGenerator[dict[str, Any] | Finished, None]:
        asked, usual = self._asked, SamplingParams()
        prompt, stops, messages = await chat_prompt(
            self._context.node, self._model, self._messages, tools=self._tools
        )
        request = GenerateRequest(
            model=self._model,
            prompt=prompt,
            messages=messages,
            max_tokens=asked.max_tokens or MAX_TOKENS_DEFAULT,
            stop=stops,
            sampling=SamplingParams(
                temperature=usual.temperature if asked.temperature is None else asked.temperature,
                seed=None if asked.seed is None else asked.seed & 0xFFFF_FFFF,
            ),
            mode=asked.mode or "auto",
            caller=self._account,
            request_id=f"{self._request_id}-{step}",
        )
        reader = ToolReader(self._tools)
        generate = self._context.generate_telling if asked.return_progress else self._context.generate
        async with aclosing(run_choices(generate, [request])) as source:
            async for _, event in source:
                if isinstance(event, Loading):
                    yield {"type": "loading", "step": step, **event.view()}
                if isinstance(event, TextDelta):
                    pieces = reader.feed(event.text)
                elif isinstance(event, Finished):
                    pieces = reader.finish()
                else:
                    continue
                for piece in pieces:
                    if isinstance(piece, Call):
                        if len(calls) >= AGENT_CALLS_MAX:
                            continue  # it is writing calls in a circle
                        calls.append(piece)
                        yield {
                            "type": "tool_call",
                            "step": step,
                            **piece.openai()["function"],
                            "id": piece.identity,
                        }
                    else:
                        written.append(piece)
                        yield {"type": "text", "text": piece, "step": step}
                if isinstance(event, Finished):
                    yield event

    def _remember(self, calls: list[Call], text: str) -> None:
        rows = [ToolCall(FunctionCall(call.name, call.arguments), call.identity) for call in calls]
        self._messages.append(Message("assistant", text, tool_calls=rows))

    async def _look_up(self, call: Call) -> tuple[str, bool]:
        """A tool's result as text, and whether it failed: that is told to the model, who may do better."""
        try:
            arguments = msgspec.json.decode(call.arguments)
            given = arguments if isinstance(arguments, dict) else {}
            if call.name in self._outside:
                server, tool, _ = self._outside[call.name]
                answer = await self._context.node.call_tool(server, tool, given, request_id=self._request_id)
                return str(answer["text"])[:AGENT_RESULT_CHARS_MAX], bool(answer["is_error"])
            result = BUILTIN[call.name].run(self._context.node, given)
        except (RequestError, ToolFailed, NotFound) as error:
            return f"error: {error.message}", True
        except msgspec.DecodeError:
            return "error: the arguments are not JSON", True
        text = result if isinstance(result, str) else json_bytes(result).decode()
        return text[:AGENT_RESULT_CHARS_MAX], False


def agent_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("agent", __name__)

    @routes.post("/agent/stream")
    async def agent() -> Response:
        who = caller("use")
        asked = parse(AgentRequest, await body())
        outside = await outside_tools(context.node, asked, who)
        return stream_response(stream(Agent(context, asked, who.account, outside)))

    @routes.get("/agent/tools")
    async def tools() -> Response:
        """What an agent of this caller may use."""
        who = caller("use")
        servers = (await context.node.tools())["servers"]
        specs = [built.tool.function for built in BUILTIN.values()]
        builtin = [
            {"name": spec.name, "description": spec.description, "input_schema": spec.parameters}
            for spec in specs
        ]
        mine = [server for server in servers if server["scope"] == "use" or who.scope == "admin"]
        return json_response({"builtin": builtin, "servers": mine})

    async def stream(run: Agent) -> AsyncGenerator[bytes, None]:
        with context.slot():
            items = until_closed(run.events(), context.closing)
            try:
                async for item in items:
                    yield HEARTBEAT if item is None else sse_data(json_bytes(item))
                if context.closing.is_set():
                    raise EngineUnavailable("the node is stopping", hint="try again when it is back")
                yield DONE
            except Exception as error:
                yield sse_data(json_bytes(envelope(condition_of(error))))
            finally:
                await items.aclose()

    return routes
