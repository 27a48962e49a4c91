"""The grammar of a request: GBNF as given, or made from what response_format or the tools ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2pnode.api.json_grammar import schema_to_gbnf
from p2pnode.api.schemas import ResponseFormat, SamplingFields, Tool
from p2pnode.errors import RequestError

ANY_OBJECT: dict[str, Any] = {"type": "object"}


def grammar_of(request: SamplingFields) -> str | None:
    """GBNF text, or None when anything may be written."""
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return request.grammar
    if request.grammar is not None:
        raise RequestError("give either grammar or response_format", param="grammar")
    return format_grammar(wanted)


def format_grammar(wanted: ResponseFormat) -> str:
    if wanted.type == "json_object":
        return schema_to_gbnf(wanted.schema or ANY_OBJECT)
    if wanted.json_schema is None:
        raise RequestError("json_schema needs a schema", param="response_format.json_schema")
    return schema_to_gbnf(wanted.json_schema.schema)


def tool_grammar(tools: Sequence[Tool]) -> str:
    """One call of one of the tools: {"name": ..., "arguments": {...}}."""
    options = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": _arguments_schema(tool),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    definitions = {
        name: schema
        for tool in tools
        for name, schema in (tool.function.parameters or {}).get("$defs", {}).items()
    }
    return schema_to_gbnf({"anyOf": options, "$defs": definitions})


def _arguments_schema(tool: Tool) -> dict[str, Any]:
    schema = tool.function.parameters or ANY_OBJECT
    try:
        schema_to_gbnf(schema)
    except RequestError:
        if tool.function.strict:
            raise
        return ANY_OBJECT
    return {"type": "object", **schema}
