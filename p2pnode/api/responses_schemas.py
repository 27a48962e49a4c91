"""What `POST /v1/responses` may say (specs/11-http.md); what becomes of each field is in `schemas`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from p2pnode.api.schemas import Fraction, JsonMap, ModelName, PositiveInt, Temperature
from p2pnode.facade import Mode
from p2pnode.limits import API_MESSAGES_MAX, API_TOOLS_MAX


class ResponsesTool(Struct):
    """The Responses API has a function's fields beside `type`."""

    type: Literal["function"]
    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.\-]+$")]
    description: str | None = None
    parameters: JsonMap | None = None
    strict: bool | None = None


class ResponsesNamedTool(Struct):
    type: Literal["function"]
    name: str


class TextFormat(Struct):
    type: Literal["text", "json_object", "json_schema"] = "text"
    schema: JsonMap | None = None
    name: str = "schema"
    description: str | None = None
    strict: bool | None = None


class TextOptions(Struct):
    format: TextFormat | None = None
    verbosity: str | None = None


class ResponsesRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Stateless: the whole conversation is in `input`."""

    input: str | Annotated[list[JsonMap], Meta(min_length=1, max_length=API_MESSAGES_MAX)]
    model: ModelName | None = None
    instructions: str | None = None
    max_output_tokens: PositiveInt | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    tools: Annotated[list[ResponsesTool], Meta(max_length=API_TOOLS_MAX)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponsesNamedTool | None = None
    parallel_tool_calls: bool | None = None
    mode: Mode | None = None
    user: str | None = None
    metadata: Any = None
    store: bool | None = None
    service_tier: Any = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    stream_options: Any = None
    reasoning: Any = None
    truncation: Literal["disabled"] | None = None
    include: list[str] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    max_tool_calls: int | None = None
    top_logprobs: int | None = None
