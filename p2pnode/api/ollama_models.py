"""Models as Ollama's clients ask for them: pulled and deleted; making and pushing them is refused in words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from quart import Blueprint, Response

from p2pnode.api.context import ApiContext, body, caller
from p2pnode.api.envelope import condition_of, json_bytes, json_response
from p2pnode.api.ollama_lines import failure, ndjson
from p2pnode.api.ollama_schemas import OllamaModelRequest, OllamaPullRequest
from p2pnode.api.schemas import parse
from p2pnode.api.watched import views
from p2pnode.errors import MethodNotAllowed, ModelUnknown, RequestError
from p2pnode.facade import JsonObject, NodeFacade
from p2pnode.models.hub_ref import is_reference

_LATEST = ":latest"


def model_of(node: NodeFacade, name: str | None) -> str:
    """Its clients add `:latest` to names."""
    try:
        return node.resolve_model(name)
    except ModelUnknown:
        if name is None or not name.endswith(_LATEST):
            raise
        return node.resolve_model(name.removesuffix(_LATEST))


class OllamaModels:
    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._node = context.node

    def add_to(self, routes: Blueprint) -> None:
        for path in ("create", "copy", "push", "blobs/<digest>"):
            routes.add_url_rule(f"/api/{path}", path, self.unmade, methods=["POST"])
        routes.add_url_rule("/api/pull", "pull", self.pull, methods=["POST"])
        routes.add_url_rule("/api/delete", "delete", self.delete, methods=["DELETE"])

    async def pull(self) -> Response:
        """A model to this device's disk, from the mesh first; the lines count bytes as its clients draw them."""
        caller("admin")
        asked = parse(OllamaPullRequest, await body())
        name = asked.model or asked.name
        if not name:
            raise RequestError("a model to pull is named", param="model")
        source = name if is_reference(name) else model_of(self._node, name)
        task = asyncio.ensure_future(self._node.command("pull", {"model": source}))
        if asked.stream is False:
            await task
            return json_response({"status": "success"})
        return ndjson(self._pulled(source, task), {})

    async def _pulled(self, source: str, task: asyncio.Future[JsonObject]) -> AsyncGenerator[bytes, None]:
        yield json_bytes({"status": "pulling manifest"}) + b"\n"
        steps = views(self._context, task, lambda: self._node.transfer(source))
        try:
            async for view in steps:
                if view is not None and view.get("total_bytes"):
                    counts = {"total": view["total_bytes"], "completed": view.get("done_bytes") or 0}
                    line = {"status": f"pulling {source}", "digest": source, **counts}
                    yield json_bytes(line) + b"\n"
            task.result()
            yield json_bytes({"status": "success"}) + b"\n"
        except Exception as error:
            yield json_bytes(failure(condition_of(error))) + b"\n"
        finally:
            await steps.aclose()

    async def delete(self) -> Response:
        caller("admin")
        asked = parse(OllamaModelRequest, await body())
        name = model_of(self._node, asked.model or asked.name)
        await self._node.command("remove_model", {"model": name})
        return json_response({"status": "success"})

    async def unmade(self, digest: str = "") -> Response:
        """Models here are GGUF files as they are: none is made of another, and none is sent to a registry."""
        del digest
        caller("use")
        raise MethodNotAllowed(
            "models are not made, renamed or pushed here", hint="add a GGUF file with: p2pnode pull FILE"
        )
