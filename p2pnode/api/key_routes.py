"""GET|POST /keys, DELETE /keys/<id>: API keys, for admins."""

from __future__ import annotations

from quart import Blueprint, Response

from p2pnode.api.context import ApiContext, body, caller
from p2pnode.api.envelope import json_response
from p2pnode.api.schemas import KeyRequest, parse
from p2pnode.machine import now_ms


def key_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("keys", __name__)
    store = context.security.keys

    @routes.get("/keys")
    async def list_keys() -> Response:
        caller("admin")
        return json_response({"keys": [key.public() for key in store.list()]})

    @routes.post("/keys")
    async def create_key() -> Response:
        caller("admin")
        asked = parse(KeyRequest, await body())
        key, secret = store.create(asked.label, asked.scope, now_ms())
        await context.node.command(
            "key_created", {"key_id": key.key_id, "label": key.label, "scope": key.scope}
        )
        return json_response({**key.public(), "key": secret}, 201)

    @routes.delete("/keys/<key_id>")
    async def revoke_key(key_id: str) -> Response:
        caller("admin")
        key = store.revoke(key_id, now_ms())
        await context.node.command("key_revoked", {"key_id": key.key_id})
        return json_response(key.public())

    return routes
