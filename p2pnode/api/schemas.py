"""What a request may say. Unknown fields are refused; what happens with each known one is in FIELDS."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from p2pnode.errors import RequestError
from p2pnode.facade import Mode
from p2pnode.limits import (
    API_CHOICES_MAX,
    API_EMBEDDING_INPUTS_MAX,
    API_GRAMMAR_BYTES_MAX,
    API_LOGIT_BIAS_MAX,
    API_LOGPROBS_MAX,
    API_MESSAGES_MAX,
    API_STOP_CHARS_MAX,
    API_STOP_SEQUENCES_MAX,
    API_TOOLS_MAX,
    INVITE_S_MAX,
)

S = TypeVar("S", bound=Struct)
_AT = re.compile(r" - at `\$\.(.+)`$")
_UNKNOWN = re.compile(r"unknown field `(.+)`$")

ModelName = Annotated[str, Meta(min_length=1, max_length=1024)]
PositiveInt = Annotated[int, Meta(ge=1, le=1 << 24)]
Choices = Annotated[int, Meta(ge=1, le=API_CHOICES_MAX)]
Temperature = Annotated[float, Meta(ge=0.0, le=10.0)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Repeat = Annotated[float, Meta(ge=0.0, le=4.0)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
StopText = Annotated[str, Meta(min_length=1, max_length=API_STOP_CHARS_MAX)]
Stop = StopText | Annotated[list[StopText], Meta(max_length=API_STOP_SEQUENCES_MAX)]
LogitBias = Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=API_LOGIT_BIAS_MAX)]
Grammar = Annotated[str, Meta(min_length=1, max_length=API_GRAMMAR_BYTES_MAX)]
TokenIds = list[Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]]
JsonMap = dict[str, Any]


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class FunctionCall(Struct):
    name: Annotated[str, Meta(max_length=256)]
    arguments: str = "{}"


class ToolCall(Struct):
    function: FunctionCall
    id: str = ""
    type: Literal["function"] = "function"


class Message(Struct, forbid_unknown_fields=True):
    """One turn; what OpenAI's clients echo back (annotations, audio: null ...) is taken and not used."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[JsonMap] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: Any = None
    audio: None = None
    function_call: None = None


class FunctionSpec(Struct):
    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.\-]+$")]
    description: str | None = None
    parameters: JsonMap | None = None
    strict: bool | None = None


class Tool(Struct):
    function: FunctionSpec
    type: Literal["function"] = "function"


class NamedFunction(Struct):
    name: str


class NamedTool(Struct):
    function: NamedFunction
    type: Literal["function"] = "function"


class JsonSchemaFormat(Struct):
    schema: JsonMap | bool
    name: str = "schema"
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema: JsonMap | None = None
    """llama-server's form: a schema beside json_object."""


class SamplingFields(Struct, forbid_unknown_fields=True, kw_only=True):
    """What chat and plain completions share."""

    model: ModelName | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: PositiveInt | None = None
    n: Choices | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1 << 20)] | None = None
    min_p: Fraction | None = None
    typical_p: Fraction | None = None
    repeat_penalty: Repeat | None = None
    repeat_last_n: Annotated[int, Meta(ge=-1, le=1 << 20)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    grammar: Grammar | None = None
    response_format: ResponseFormat | None = None
    mode: Mode | None = None
    return_progress: bool | None = None
    user: str | None = None
    metadata: Any = None
    service_tier: Any = None
    store: bool | None = None
    cache_prompt: bool | None = None


class ChatRequest(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1, max_length=API_MESSAGES_MAX)]
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=API_LOGPROBS_MAX)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=API_TOOLS_MAX)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: JsonMap | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    functions: Any = None
    function_call: Any = None


class CompletionRequest(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    prompt: str | list[Any]
    """Text, token ids, or a list of texts or of token id lists."""
    logprobs: Annotated[int, Meta(ge=0, le=API_LOGPROBS_MAX)] | None = None
    echo: bool | None = None
    best_of: Choices | None = None
    suffix: str | None = None


class InferRequest(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    """p2pnode's own short form: a prompt as it is, or messages through the model's template."""

    prompt: Annotated[str, Meta(min_length=1)] | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=API_MESSAGES_MAX)] | None = None
    system: str | None = None


class TokenizeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    content: str
    model: ModelName | None = None
    add_special: bool = False
    parse_special: bool = False


class DetokenizeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    tokens: TokenIds
    model: ModelName | None = None


class EmbeddingRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    input: str | Annotated[list[Any], Meta(min_length=1, max_length=API_EMBEDDING_INPUTS_MAX)]
    model: ModelName | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: PositiveInt | None = None
    user: str | None = None


class DocumentText(Struct, forbid_unknown_fields=True):
    text: str


class RerankRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """The form that Jina, Cohere and llama-server share."""

    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | DocumentText], Meta(min_length=1, max_length=API_EMBEDDING_INPUTS_MAX)]
    model: ModelName | None = None
    top_n: PositiveInt | None = None
    return_documents: bool = False
    user: str | None = None


class PlanRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    model: ModelName | None = None
    mode: Mode = "auto"
    stages: Annotated[int, Meta(ge=1, le=64)] | None = None
    devices: Annotated[list[str], Meta(max_length=64)] | None = None
    strategy: str | None = None
    context: PositiveInt | None = None
    blocks: Annotated[list[tuple[str, int, int]], Meta(max_length=64)] | None = None
    """A hand-written map: [device, first layer, end layer] in order."""
    exclude: Annotated[list[str], Meta(max_length=64)] | None = None
    max_rtt_ms: Annotated[float, Meta(gt=0, le=10_000)] | None = None
    what_if: Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=16)] | None = None
    memory_max: Annotated[dict[str, Annotated[int, Meta(ge=1, le=2**53)]], Meta(max_length=64)] | None = None
    """Bytes of memory each device may use for this plan."""
    pins: Annotated[dict[str, tuple[int, int]], Meta(max_length=64)] | None = None
    """Layers that a device must compute: [first, end)."""
    engine: Annotated[dict[str, str | int | float], Meta(max_length=32)] | None = None
    """Engine options of the model, on all devices alike: kv, flash, context, rope, ...; {} for the defaults."""
    anyway: bool | None = None
    """Load although memory is short: what other programs hold is not counted."""
    apply: bool = False
    why: bool = False
    stream: bool = False
    """Whether to hear `loading` events while it is carried out; the answer is the last event."""


class InviteRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    uses: Annotated[int, Meta(ge=1, le=10_000)] = 1
    expires_s: Annotated[int, Meta(ge=1, le=INVITE_S_MAX)] = 3600
    role: Literal["worker", "client", "guest"] = "worker"
    label: Annotated[str, Meta(max_length=64)] = ""


class KeyRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    label: Annotated[str, Meta(max_length=64)] = ""
    scope: Literal["use", "admin"] = "use"


_EVERYWHERE = frozenset({"user", "metadata", "service_tier", "store"})
_CHAT_ONLY = frozenset(
    {
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "verbosity",
    }
)
IGNORED: Mapping[str, frozenset[str]] = {
    "chat": _EVERYWHERE | _CHAT_ONLY,
    "completion": _EVERYWHERE,
    "embedding": frozenset({"user"}),
    "rerank": frozenset({"user"}),
    "responses": frozenset(
        {
            "user",
            "metadata",
            "service_tier",
            "store",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_retention",
            "stream_options",
            "reasoning",
        }
    ),
}
"""Fields that are understood and have no effect here; an answer names those it got in X-P2PNode-Ignored."""

REFUSED: Mapping[str, frozenset[str]] = {
    "chat": frozenset(["audio", "prediction", "web_search_options", "functions", "function_call"]),
    "completion": frozenset({"suffix"}),
    "embedding": frozenset({"dimensions"}),
    "rerank": frozenset(),
    "responses": frozenset(
        {
            "previous_response_id",
            "conversation",
            "prompt",
            "background",
            "max_tool_calls",
            "top_logprobs",
            "include",
        }
    ),
}
"""Fields that would change the answer in a way this node cannot: sending one is an error."""


def check_fields(kind: str, request: Struct) -> list[str]:
    """Refuse what cannot be done; the names of fields that have no effect."""
    for name in REFUSED[kind]:
        if getattr(request, name) is not None:
            raise RequestError(f"{name} is not supported by this API", param=name)
    if isinstance(request, SamplingFields) and request.stream_options is not None and not request.stream:
        raise RequestError(
            "stream_options is only for streams", param="stream_options", hint="set stream: true"
        )
    return sorted(name for name in IGNORED[kind] if getattr(request, name) is not None)


def parse(kind: type[S], body: bytes) -> S:
    """A request's body as its struct, or RequestError that names the field."""
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        message = str(error)
        found = _AT.search(message) or _UNKNOWN.search(message)
        raise RequestError(message, param=found[1] if found else None) from None
    except msgspec.DecodeError as error:
        raise RequestError(f"the body is not JSON: {error}", hint="send a JSON object in UTF-8") from None
    except (UnicodeDecodeError, RecursionError):
        raise RequestError("the body is not JSON in UTF-8, or nested too deep") from None
