"""The OpenAPI document, made from the routes and the structs that read their bodies."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from quart import Quart

from p2pnode import __version__
from p2pnode.api import ollama_schemas as ollama
from p2pnode.api.agent import AgentRequest
from p2pnode.api.anthropic import CountRequest, MessagesRequest
from p2pnode.api.console import ConsoleRequest
from p2pnode.api.modes import FRAME_TYPE
from p2pnode.api.ollama_lines import NDJSON
from p2pnode.api.responses_schemas import ResponsesRequest
from p2pnode.api.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    InferRequest,
    InviteRequest,
    KeyRequest,
    PlanRequest,
    RerankRequest,
    TokenizeRequest,
)

BODIES: dict[str, type[msgspec.Struct]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/rerank": RerankRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountRequest,
    "/api/chat": ollama.OllamaChatRequest,
    "/api/generate": ollama.OllamaGenerateRequest,
    "/api/embed": ollama.OllamaEmbedRequest,
    "/api/embeddings": ollama.OllamaEmbeddingsRequest,
    "/api/show": ollama.OllamaModelRequest,
    "/api/pull": ollama.OllamaPullRequest,
    "/api/delete": ollama.OllamaModelRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/infer": InferRequest,
    "/infer/stream": InferRequest,
    "/pipeline/infer": InferRequest,
    "/tensor/infer": InferRequest,
    "/agent/stream": AgentRequest,
    "/plan": PlanRequest,
    "/pipeline/plan": PlanRequest,
    "/tensor/plan": PlanRequest,
    "/invites": InviteRequest,
    "/keys": KeyRequest,
    "/shell/exec": ConsoleRequest,
}
_STREAMS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/infer",
    "/infer/stream",
    "/agent/stream",
    "/plan",
    "/pipeline/plan",
    "/tensor/plan",
    "/pipeline/infer",
    "/tensor/infer",
    "/command/<name>",
    "/api/live",
)
_TEXT = {"schema": {"type": "string"}}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_OTHER: dict[str, dict[str, Any]] = {
    "/metrics": {"text/plain": _TEXT},
    "/log/checkpoint": {"text/plain": _TEXT, "application/json": {"schema": {"type": "object"}}},
    "/log/tile/<int:level>/<path:number>": {"application/octet-stream": _BYTES},
    "/log/tile/entries/<path:number>": {"application/octet-stream": _BYTES},
    "/pipeline/forward": {FRAME_TYPE: _BYTES},
    "/tensor/allreduce": {FRAME_TYPE: _BYTES},
}
"""Answers that are not JSON; a frame is asked with a frame."""
_PANEL = ("/", "/web/<path:name>", "/favicon.ico")
SUMMARIES: dict[str, str] = {
    "GET /health": "Whether the node lives and is ready",
    "GET /metrics": "Counts and times for Prometheus",
    "GET /openapi.json": "This document",
    "GET /v1/models": "Models, OpenAI's list",
    "GET /v1/models/<path:name>": "One model",
    "POST /v1/chat/completions": "OpenAI chat, whole or streamed",
    "POST /v1/completions": "OpenAI plain completions, whole or streamed",
    "POST /v1/embeddings": "OpenAI embeddings",
    "POST /v1/rerank": "Documents in the order in which they answer a query, as Jina, Cohere and llama-server have it",
    "POST /v1/responses": "OpenAI responses, stateless",
    "POST /v1/messages": "Anthropic's messages, whole or streamed",
    "POST /v1/messages/count_tokens": "How many tokens such a request has",
    "POST /api/chat": "Ollama's chat, lines of JSON unless `stream` is false",
    "POST /api/generate": "Ollama's generate, for one prompt",
    "POST /api/embed": "Ollama's embeddings",
    "POST /api/embeddings": "Ollama's older embeddings, of one prompt",
    "POST /api/show": "Ollama's document about a model",
    "POST /api/pull": "A model to this device, its bytes counted in Ollama's lines",
    "DELETE /api/delete": "A model from this device, as Ollama's clients ask for it",
    "POST /api/create": "Refused: models are not made here",
    "POST /api/copy": "Refused: models are not renamed here",
    "POST /api/push": "Refused: models are not sent to registries",
    "POST /api/blobs/<digest>": "Refused: models are not made here",
    "GET /api/tags": "Models, Ollama's list",
    "GET /api/ps": "Models in memory, Ollama's list",
    "GET /api/version": "Version, as Ollama says it",
    "GET /status": "This node in one document",
    "GET /peers": "Devices of the mesh, their links and addresses",
    "GET /models": "Models, who holds them and how much",
    "GET /models/<path:name>": "One model: what its header says, chat template and licence included, and who holds it",
    "GET /plans": "Plans, newest first",
    "GET /sessions": "Requests that run and that ran",
    "GET /sessions/<request_id>/trace": "The way of one request, for Perfetto or Chrome's tracing",
    "GET /billing": "Accounts, holds and channels",
    "GET /settings": "Settings that were changed, and by whom",
    "POST /settings": "Change a setting",
    "GET /settings/origins": "What this start was told, and by what",
    "POST /tokenize": "Token ids of a text",
    "POST /detokenize": "Text of token ids",
    "POST /infer": "One prompt or conversation, p2pnode's short form",
    "POST /infer/stream": "The same as server-sent events",
    "POST /agent/stream": "A bounded loop of writing and looking things up with tools",
    "GET /agent/tools": "Tools an agent of this caller may use",
    "POST /plan": "Propose a plan, or apply it",
    "GET /pipeline/plan": "Propose a pipeline",
    "POST /pipeline/plan": "Propose or apply a pipeline",
    "POST /pipeline/infer": "Infer through a pipeline",
    "POST /pipeline/forward": "One stage's forward step (admin)",
    "POST /pipeline/clear": "Forget a session's state on the stages",
    "GET /tensor/plan": "Propose a tensor-parallel group",
    "POST /tensor/plan": "Propose or apply a tensor-parallel group",
    "GET /tensor/status": "Tensor plans and sessions",
    "POST /tensor/infer": "Infer through a tensor-parallel group",
    "POST /tensor/allreduce": "One reduction step (admin)",
    "POST /tensor/rpc/start": "Start the RPC worker of llama.cpp",
    "POST /tensor/rpc/stop": "Stop it",
    "POST /invites": "Make a ticket; with `?link=1` also the link of a page that shows how to join",
    "GET /invite/<invite_id>": "The page behind an invite's link; no key is needed",
    "GET /invite/<invite_id>/about": "Who invites, to which mesh, until when; for an open invite, without a key",
    "GET /invite/<invite_id>/p2pnode.tar.gz": "This program's source, for an open invite, without a key",
    "GET /keys": "API keys, without their secrets",
    "POST /keys": "Make an API key; its secret is in this answer only",
    "DELETE /keys/<key_id>": "Revoke an API key",
    "GET /log/checkpoint": "The signed checkpoint, C2SP text",
    "GET /log/tile/<int:level>/<path:number>": "A tile of hashes, C2SP tlog-tiles",
    "GET /log/tile/entries/<path:number>": "A bundle of entries, C2SP tlog-tiles",
    "GET /log/<path:query>": "Questions to the sealed record: size, entries, event, checkpoint, proofs",
    "POST /command/<name>": "Any other state change, by name",
    "POST /billing/topup": "Add credit to an account",
    "POST /shell/exec": "Run a command, when the operator enabled the console",
    "GET /api/live": "Log events and telemetry as server-sent events",
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
                "hint": {"type": "string"},
                "details": {"type": "object"},
            },
        }
    },
}
OLLAMA_ERROR = {
    "type": "object",
    "required": ["error", "code"],
    "properties": {
        **{name: {"type": "string"} for name in ("error", "type", "hint")},
        **{name: {"type": ["string", "null"]} for name in ("param", "code")},
        "details": {"type": "object"},
    },
}


def routes_of(app: Quart) -> list[tuple[str, str]]:
    """(method, rule) of every address of the API, the panel's files apart."""
    found = []
    for rule in app.url_map.iter_rules():
        if rule.rule in _PANEL:
            continue
        found += [(method, rule.rule) for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}]
    return sorted(found, key=lambda pair: (pair[1], pair[0]))


def document(app: Quart) -> dict[str, Any]:
    """OpenAPI 3.1 of the running application."""
    kinds = sorted(set(BODIES.values()), key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    names = {kind: schema["$ref"] for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, Any] = {}
    for method, rule in routes_of(app):
        path = re.sub(r"<(?:[a-z]+:)?([a-z_]+)>", r"{\1}", rule)
        paths.setdefault(path, {})[method.lower()] = _operation(method, rule, names)
    return {
        "openapi": "3.1.0",
        "info": {"title": "p2pnode", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": ERROR, "OllamaError": OLLAMA_ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _error_of(rule: str) -> str:
    """Ollama's clients read a sentence where all others find an object."""
    return "OllamaError" if rule.startswith("/api/") and rule != "/api/live" else "Error"


def _operation(method: str, rule: str, names: dict[type[msgspec.Struct], str]) -> dict[str, Any]:
    content = dict(_OTHER.get(rule, {"application/json": {"schema": {"type": "object"}}}))
    if rule in ("/api/chat", "/api/generate", "/api/pull"):
        content[NDJSON] = _TEXT
    if rule in _STREAMS:
        content["text/event-stream"] = {}
    status = "201" if method == "POST" and rule in ("/invites", "/keys") else "200"
    operation: dict[str, Any] = {
        "summary": SUMMARIES[f"{method} {rule}"],
        "operationId": re.sub(r"[^a-z0-9]+", "_", f"{method} {rule}".lower()).strip("_"),
        "responses": {
            status: {"description": "done", "content": content},
            "default": {
                "description": "an error",
                "content": {
                    "application/json": {"schema": {"$ref": f"#/components/schemas/{_error_of(rule)}"}}
                },
            },
        },
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"<(?:[a-z]+:)?([a-z_]+)>", rule)
    ]
    if parameters:
        operation["parameters"] = parameters
    if method == "POST" or rule in BODIES:
        kind = BODIES.get(rule)
        schema = {"$ref": names[kind]} if kind is not None else {"type": "object"}
        takes = {"application/json": {"schema": schema}}
        operation["requestBody"] = {
            "required": kind is not None or FRAME_TYPE in content,
            "content": {**content, "application/octet-stream": _BYTES} if FRAME_TYPE in content else takes,
        }
    return operation
