"""Ollama's addresses, for the many programs that speak them: /api/chat, generate, embed, tags, show, ps, version.

Streams are lines of JSON, as there, and on unless the request says no. An error is a sentence under `error`, which
its clients show as it is, with the rest of the envelope beside it. Models are waited for, however long they load.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from quart import Blueprint, Response

from p2pnode import __version__
from p2pnode.api.completions import StreamBody
from p2pnode.api.context import ApiContext, body, caller
from p2pnode.api.conversation import ChatPrompt, chat_prompt
from p2pnode.api.embeddings import inputs_of
from p2pnode.api.envelope import error_response, json_response
from p2pnode.api.generation import collect, first_then, new_id, run_choices, sampling_of, stop_list
from p2pnode.api.grammar import grammar_of
from p2pnode.api.ollama_lines import LINES, Lines, failure, nanoseconds, ndjson, now
from p2pnode.api.ollama_models import OllamaModels, model_of
from p2pnode.api.ollama_schemas import (
    IGNORED,
    OPTIONS,
    OPTIONS_IGNORED,
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaMessage,
    OllamaModelRequest,
)
from p2pnode.api.schemas import FunctionCall, InferRequest, Message, ToolCall, parse
from p2pnode.api.security import Caller
from p2pnode.api.tools import plan_tools
from p2pnode.errors import RequestError
from p2pnode.facade import GenerateRequest
from p2pnode.limits import OLLAMA_TOKENS_DEFAULT


def settings_of(options: Mapping[str, Any], form: Any) -> InferRequest:
    """Its options as our fields, with the same bounds; one that would change the answer and cannot is an error."""
    fields: dict[str, Any] = {"prompt": "-"}
    for name, value in options.items():
        if name == "num_predict":
            if isinstance(value, int) and value > 0:
                fields["max_tokens"] = value
            elif value not in (-1, -2):  # to the end, to the end of the context
                raise RequestError("num_predict is a number of tokens, or -1", param="options.num_predict")
        elif name in OPTIONS:
            fields[OPTIONS[name]] = value
        elif name not in OPTIONS_IGNORED and value:
            raise RequestError(f"the option {name[:40]!r} is not known here", param=f"options.{name[:40]}")
    if form == "json":
        fields["response_format"] = {"type": "json_object"}
    elif isinstance(form, dict):
        fields["response_format"] = {"type": "json_schema", "json_schema": {"schema": form}}
    elif form not in (None, ""):
        raise RequestError("format is `json` or a JSON schema", param="format")
    try:
        return msgspec.convert(fields, InferRequest)
    except msgspec.ValidationError as error:
        where = str(error).rpartition("`$.")[2].rstrip("`")
        theirs = next((name for name, ours in OPTIONS.items() if ours == where), where)
        raise RequestError(str(error), param=f"options.{theirs}") from None


def ignored_in(asked: msgspec.Struct, options: Mapping[str, Any]) -> list[str]:
    """What was sent and has no effect, for the header that names it."""
    fields = [name for name in IGNORED if getattr(asked, name, None) is not None]
    return sorted(fields + [f"options.{name}" for name in options if name in OPTIONS_IGNORED])


def messages_of(rows: Sequence[OllamaMessage]) -> list[Message]:
    """Calls have objects there, text here; pictures nobody can read."""
    messages = []
    for row in rows:
        if row.images:
            raise RequestError("models here read text only", param="messages.images")
        calls = [
            ToolCall(FunctionCall(call.function.name, msgspec.json.encode(call.function.arguments).decode()))
            for call in row.tool_calls or []
        ]
        messages.append(Message(row.role, row.content, name=row.tool_name, tool_calls=calls or None))
    return messages


def wished_logprobs(asked: OllamaChatRequest | OllamaGenerateRequest) -> int | None:
    """How many others beside each token, None for none at all."""
    if asked.top_logprobs is not None and not asked.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    return (asked.top_logprobs or 0) if asked.logprobs else None


def shortened(vector: Sequence[float], dimensions: int | None) -> list[float]:
    """The first `dimensions` numbers, as long as one again: what models trained for it take as a smaller vector."""
    if dimensions is None:
        return list(vector)
    if dimensions > len(vector):
        raise RequestError(f"this model's vectors have {len(vector)} dimensions", param="dimensions")
    kept = vector[:dimensions]
    length = math.sqrt(sum(number * number for number in kept)) or 1.0
    return [number / length for number in kept]


def model_row(row: Mapping[str, Any]) -> dict[str, Any]:
    family = str(row.get("architecture") or "")
    return {
        "name": row["name"],
        "model": row["name"],
        "modified_at": now(),
        "size": row.get("size_bytes") or 0,
        "digest": str(row.get("manifest") or ""),
        "details": {
            "parent_model": "", "format": "gguf", "family": family, "families": [family] if family else [],
            "parameter_size": "", "quantization_level": str(row.get("quantisation") or ""),
        },
    }  # fmt: skip


class OllamaFace:
    """The routes; each is one address."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._node = context.node

    def routes(self) -> Blueprint:
        routes = Blueprint("ollama", __name__)

        @routes.errorhandler(Exception)
        async def failed(error: Exception) -> Response:
            return error_response(error, failure)

        for path, view in (("version", self.version), ("tags", self.tags), ("ps", self.loaded)):
            routes.add_url_rule(f"/api/{path}", path, view, methods=["GET"])
        for path, view in (
            ("show", self.show), ("chat", self.chat), ("generate", self.generate), ("embed", self.embed),
            ("embeddings", self.embeddings),
        ):  # fmt: skip
            routes.add_url_rule(f"/api/{path}", path, view, methods=["POST"])
        OllamaModels(self._context).add_to(routes)
        return routes

    def _views(self) -> list[dict[str, Any]]:
        return list(self._node.models().get("models", []))

    async def version(self) -> Response:
        caller("use")
        return json_response({"version": __version__})

    async def tags(self) -> Response:
        caller("use")
        return json_response({"models": [model_row(row) for row in self._views()]})

    async def loaded(self) -> Response:
        caller("use")
        return json_response(
            {"models": [model_row(row) | {"size_vram": 0} for row in self._views() if row.get("loaded")]}
        )

    async def show(self) -> Response:
        caller("use")
        asked = parse(OllamaModelRequest, await body())
        name = model_of(self._node, asked.model or asked.name)
        about = await self._node.model_metadata(name)
        row = next((row for row in self._views() if row["name"] == name), {"name": name})
        template = str(about.get("chat_template") or "")
        document = model_row(row) | {
            "modelfile": "", "parameters": "", "template": template,
            "model_info": {
                "general.architecture": about.get("architecture"),
                f"{about.get('architecture')}.context_length": about.get("context_length"),
            },
            "capabilities": ["completion", *(["tools"] if "tools" in template else [])],
        }  # fmt: skip
        return json_response(document)

    async def chat(self) -> Response:
        who = caller("use")
        asked = parse(OllamaChatRequest, await body())
        options = asked.options or {}
        settings = settings_of(options, asked.format)
        model = model_of(self._node, asked.model)
        if not asked.messages:
            part = {"message": {"role": "assistant", "content": ""}}
            return await self._only_load(model, part, ignored_in(asked, options))
        tools = plan_tools(asked.tools, None, None)
        made = await chat_prompt(self._node, model, messages_of(asked.messages), tools=tools)
        wanted = self._request(settings, model, made, who, wished_logprobs(asked))
        lines = Lines(asked.model or model, chat=True, tools=tools)
        return await self._answered(
            wanted, lines, stream=asked.stream is not False, ignored=ignored_in(asked, options)
        )

    async def generate(self) -> Response:
        who = caller("use")
        asked = parse(OllamaGenerateRequest, await body())
        options = asked.options or {}
        settings = settings_of(options, asked.format)
        for name in ("suffix", "template", "images", "context"):
            if getattr(asked, name):
                raise RequestError(f"{name} is not supported by this API", param=name)
        model = model_of(self._node, asked.model)
        if not asked.prompt:
            return await self._only_load(model, {"response": ""}, ignored_in(asked, options))
        made = ChatPrompt(asked.prompt, ())
        if not asked.raw:
            system = [Message("system", asked.system)] if asked.system else []
            made = await chat_prompt(self._node, model, [*system, Message("user", asked.prompt)])
        wanted = self._request(settings, model, made, who, wished_logprobs(asked))
        lines = Lines(asked.model or model, chat=False)
        return await self._answered(
            wanted, lines, stream=asked.stream is not False, ignored=ignored_in(asked, options)
        )

    def _request(
        self,
        settings: InferRequest,
        model: str,
        made: ChatPrompt,
        who: Caller,
        logprobs: int | None,
    ) -> GenerateRequest:
        return GenerateRequest(
            model=model,
            prompt=made.text,
            messages=made.messages,
            max_tokens=settings.max_tokens or OLLAMA_TOKENS_DEFAULT,
            stop=stop_list(settings) + made.stops,
            sampling=sampling_of(settings, grammar=grammar_of(settings), logprobs=logprobs),
            caller=who.account,
            address=who.address,
            request_id=new_id("ollama"),
        )

    async def _only_load(self, model: str, part: dict[str, Any], ignored: list[str]) -> Response:
        """An empty prompt there means: have it in memory. What leaves it is for the node to decide."""
        await self._node.tokenize(model, " ", add_special=False, parse_special=False)
        line = {"model": model, "created_at": now(), **part, "done": True, "done_reason": "load"}
        return json_response(line, headers={"X-P2PNode-Ignored": ", ".join(ignored)} if ignored else None)

    async def _answered(
        self, wanted: GenerateRequest, lines: Lines, *, stream: bool, ignored: list[str]
    ) -> Response:
        headers = {"x-request-id": wanted.request_id, "X-P2PNode-Session": wanted.request_id}
        if ignored:
            headers["X-P2PNode-Ignored"] = ", ".join(ignored)
        if not stream:
            with self._context.slot():
                outcome = (await collect(self._context.generate_telling, [wanted]))[0]
            return json_response(lines.whole(outcome), headers=headers)
        self._context.take_slot()
        try:
            events = await first_then(run_choices(self._context.generate_telling, [wanted]))
        except BaseException:
            self._context.generating -= 1
            raise
        return ndjson(StreamBody(self._context, events, lines, lambda _: [], form=LINES), headers)

    async def embed(self) -> Response:
        caller("use")
        asked = parse(OllamaEmbedRequest, await body())
        begun_s = time.perf_counter()
        vectors, tokens = await self._embedded(asked.model, inputs_of(asked.input))
        counts = {
            "total_duration": nanoseconds(time.perf_counter() - begun_s),
            "load_duration": 0,
            "prompt_eval_count": tokens,
        }
        short = [shortened(vector, asked.dimensions) for vector in vectors]
        return json_response({"model": asked.model, "embeddings": short, **counts})

    async def embeddings(self) -> Response:
        caller("use")
        asked = parse(OllamaEmbeddingsRequest, await body())
        vectors, _ = await self._embedded(asked.model, inputs_of(asked.prompt))
        return json_response({"embedding": vectors[0]})

    async def _embedded(self, name: str, inputs: Sequence[str | list[int]]) -> tuple[list[list[float]], int]:
        model = model_of(self._node, name)
        tokens = [
            await self._node.tokenize(model, item, add_special=True, parse_special=False)
            if isinstance(item, str)
            else item
            for item in inputs
        ]
        with self._context.slot():
            return await self._node.embed(model, tokens), sum(map(len, tokens))


def ollama_routes(context: ApiContext) -> Blueprint:
    return OllamaFace(context).routes()
