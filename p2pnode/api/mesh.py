"""The mesh's own addresses: views, plans, invites, the record, commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from quart import Blueprint, Response, request

from p2pnode.api.context import ApiContext, body, caller
from p2pnode.api.envelope import json_response
from p2pnode.api.schemas import InviteRequest, PlanRequest, parse
from p2pnode.errors import RequestError
from p2pnode.facade import Mode, NodeFacade


def plain(request_struct: msgspec.Struct) -> dict[str, Any]:
    """A struct's given fields as a dict."""
    built = msgspec.to_builtins(request_struct)
    return {key: value for key, value in built.items() if value is not None}


def query_arguments(arguments: Mapping[str, str]) -> dict[str, Any]:
    """Query text as JSON values where it is a number or a boolean."""
    values: dict[str, Any] = {}
    for name, text in arguments.items():
        if text.removeprefix("-").isdecimal() and len(text) < 20:
            values[name] = int(text)
        elif text in ("true", "false"):
            values[name] = text == "true"
        else:
            values[name] = text
    return values


def view_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("views", __name__)
    node = context.node

    @routes.get("/health")
    async def health() -> Response:
        return json_response(node.health())

    @routes.get("/v1/models")
    async def openai_models() -> Response:
        caller("use")
        rows = [openai_model(model) for model in node.models().get("models", [])]
        return json_response({"object": "list", "data": rows})

    @routes.get("/v1/models/<path:name>")
    async def openai_model_one(name: str) -> Response:
        caller("use")
        full = node.resolve_model(name)
        for model in node.models().get("models", []):
            if model["name"] == full:
                return json_response(openai_model(model))
        return json_response(openai_model({"name": full}))

    def view(path: str, method: str) -> None:
        async def answer() -> Response:
            caller("use")
            return json_response(getattr(node, method)())

        routes.add_url_rule(path, method, answer, methods=["GET"])

    @routes.get("/settings/origins")
    async def origins() -> Response:
        caller("admin")
        return json_response(node.options())

    for name in ("status", "peers", "models", "plans", "sessions", "billing", "settings"):
        view(f"/{name}", name)
    return routes


def qr_svg(text: str) -> str:
    """The ticket as an SVG picture that a phone reads."""
    import io

    import segno

    out = io.BytesIO()
    segno.make(text, error="l", micro=False).save(
        out, kind="svg", scale=4, border=3, dark="#000", light="#fff"
    )
    return out.getvalue().decode()


def openai_model(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": model["name"],
        "object": "model",
        "created": int(model.get("added_ms", 0)) // 1000,
        "owned_by": "p2pnode",
        "p2pnode": dict(model),
    }


def mesh_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("mesh", __name__)
    node = context.node

    @routes.post("/plan")
    async def plan() -> Response:
        return await answer_plan(node, "auto")

    @routes.post("/invites")
    async def invites() -> Response:
        caller("admin")
        asked = parse(InviteRequest, await body())
        made = await node.invite(
            uses=asked.uses, expires_s=asked.expires_s, role=asked.role, label=asked.label
        )
        if request.args.get("qr") in ("1", "true"):
            made = {**made, "qr": qr_svg(str(made["ticket"]))}
        return json_response(made, 201)

    @routes.get("/log/<path:query>")
    async def log_query(query: str) -> Response:
        caller("use")
        return json_response(node.log_query(query, query_arguments(request.args)))

    @routes.post("/command/<name>")
    async def command(name: str) -> Response:
        caller("admin")
        return json_response(await node.command(name, await arguments()))

    @routes.post("/settings")
    async def change_settings() -> Response:
        caller("admin")
        return json_response(await node.command("set", await arguments()))

    return routes


async def answer_plan(node: NodeFacade, mode: Mode) -> Response:
    """POST takes JSON, GET a query; only POST applies."""
    if request.method == "GET":
        asked = plan_from_query({"mode": mode, **query_arguments(request.args)})
    else:
        given = await body()
        asked = parse(PlanRequest, given)
        if asked.mode == "auto" and b'"mode"' not in given:
            asked.mode = mode
    is_file = asked.model is not None and ("/" in asked.model or asked.model.endswith(".gguf"))
    caller("admin" if asked.apply or is_file else "use")
    return json_response(await node.plan(plain(asked)))


async def arguments() -> dict[str, Any]:
    """A body that must be a JSON object."""
    try:
        document = msgspec.json.decode(await body() or b"{}")
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise RequestError("the body must be a JSON object")
    return document


def plan_from_query(query: dict[str, Any]) -> PlanRequest:
    if query.get("apply"):
        raise RequestError("a plan is applied with POST", hint="POST /plan", param="apply")
    devices = query.pop("devices", None)
    if devices is not None:
        query["devices"] = str(devices).split(",")
    try:
        return msgspec.convert(query, PlanRequest)
    except msgspec.ValidationError as error:
        raise RequestError(str(error)) from None
