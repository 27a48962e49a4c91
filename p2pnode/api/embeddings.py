"""POST /v1/embeddings, /v1/rerank, /tokenize and /detokenize: texts, tokens and vectors."""

from __future__ import annotations

import base64
import struct
from typing import Any

from quart import Blueprint, Response

from p2pnode.api.context import ApiContext, body, caller
from p2pnode.api.envelope import json_response
from p2pnode.api.generation import new_id
from p2pnode.api.schemas import (
    DetokenizeRequest,
    EmbeddingRequest,
    RerankRequest,
    TokenizeRequest,
    check_fields,
    parse,
)
from p2pnode.errors import RequestError
from p2pnode.limits import API_EMBEDDING_INPUTS_MAX


def inputs_of(value: str | list[Any]) -> list[str | list[int]]:
    """OpenAI's four forms of input as a list of texts or token lists; none may be empty."""
    items = [value] if isinstance(value, str) else value
    if items and all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        items = [items]
    if not items or len(items) > API_EMBEDDING_INPUTS_MAX:
        raise RequestError(
            f"between 1 and {API_EMBEDDING_INPUTS_MAX} inputs are embedded at once", param="input"
        )
    for item in items:
        tokens = isinstance(item, list) and all(type(token) is int and 0 <= token < 1 << 31 for token in item)
        if not item or not (isinstance(item, str) or tokens):
            raise RequestError("an input is text or token ids, and not empty", param="input")
    return list(items)


def encoded(vector: list[float], form: str) -> list[float] | str:
    if form == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _headers(ignored: list[str]) -> dict[str, str]:
    return {"x-request-id": new_id("embd"), **({"X-P2PNode-Ignored": ", ".join(ignored)} if ignored else {})}


def embedding_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("embeddings", __name__)
    node = context.node

    @routes.post("/v1/embeddings")
    async def embeddings() -> Response:
        caller("use")
        asked = parse(EmbeddingRequest, await body())
        ignored = check_fields("embedding", asked)
        inputs = inputs_of(asked.input)
        model = node.resolve_model(asked.model)
        tokens = [
            await context.loaded(model, node.tokenize(model, item, add_special=True, parse_special=False))
            if isinstance(item, str)
            else item
            for item in inputs
        ]
        with context.slot():
            vectors = await context.loaded(model, node.embed(model, tokens))
        count = sum(len(item) for item in tokens)
        document = {
            "object": "list",
            "model": model,
            "data": [
                {"object": "embedding", "index": index, "embedding": encoded(vector, asked.encoding_format)}
                for index, vector in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }
        return json_response(document, headers=_headers(ignored))

    @routes.post("/v1/rerank")
    async def rerank() -> Response:
        caller("use")
        asked = parse(RerankRequest, await body())
        ignored = check_fields("rerank", asked)
        documents = [one if isinstance(one, str) else one.text for one in asked.documents]
        if not all(documents):
            raise RequestError("a document is empty", param="documents")
        model = node.resolve_model(asked.model)
        with context.slot():
            ranking = await context.loaded(model, node.rerank(model, asked.query, documents))
        order = sorted(range(len(documents)), key=lambda index: (-ranking.scores[index], index))
        results = [
            {"index": index, "relevance_score": ranking.scores[index]}
            | ({"document": {"text": documents[index]}} if asked.return_documents else {})
            for index in order[: asked.top_n]
        ]
        document = {
            "object": "list",
            "model": model,
            "results": results,
            "usage": {"prompt_tokens": ranking.tokens, "total_tokens": ranking.tokens},
            "p2pnode": {"method": ranking.method},
        }
        return json_response(document, headers=_headers(ignored))

    @routes.post("/tokenize")
    async def tokenize() -> Response:
        caller("use")
        asked = parse(TokenizeRequest, await body())
        model = node.resolve_model(asked.model)
        work = node.tokenize(
            model, asked.content, add_special=asked.add_special, parse_special=asked.parse_special
        )
        return json_response({"tokens": await context.loaded(model, work)})

    @routes.post("/detokenize")
    async def detokenize() -> Response:
        caller("use")
        asked = parse(DetokenizeRequest, await body())
        model = node.resolve_model(asked.model)
        return json_response({"content": await context.loaded(model, node.detokenize(model, asked.tokens))})

    return routes
