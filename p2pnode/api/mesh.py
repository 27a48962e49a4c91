"""The mesh's own addresses: views, plans, invites, the record, commands."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
from quart import Blueprint, Response, request

from p2pnode.api.context import ApiContext, body, caller
from p2pnode.api.envelope import json_response
from p2pnode.api.invite_page import page_base
from p2pnode.api.schemas import InviteRequest, PlanRequest, parse
from p2pnode.api.sse import stream_response
from p2pnode.api.watched import watched
from p2pnode.errors import RequestError
from p2pnode.facade import Mode


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
        ends = {"first_id": rows[0]["id"] if rows else None, "last_id": rows[-1]["id"] if rows else None}
        return json_response({"object": "list", "data": rows, "has_more": False, **ends})

    @routes.get("/v1/models/<path:name>")
    async def openai_model_one(name: str) -> Response:
        caller("use")
        full = node.resolve_model(name)
        for model in node.models().get("models", []):
            if model["name"] == full:
                return json_response(openai_model(model))
        return json_response(openai_model({"name": full}))

    @routes.get("/models/<path:name>")
    async def model_one(name: str) -> Response:
        caller("use")
        full = node.resolve_model(name)
        row = next(
            (model for model in node.models().get("models", []) if model["name"] == full), {"name": full}
        )
        return json_response({**await node.model_metadata(full), **row})

    def view(path: str, method: str) -> None:
        async def answer() -> Response:
            caller("use")
            return json_response(getattr(node, method)())

        routes.add_url_rule(path, method, answer, methods=["GET"])

    @routes.get("/sessions/<request_id>/trace")
    async def trace(request_id: str) -> Response:
        """For Perfetto or chrome://tracing."""
        caller("use")
        answer = json_response(node.trace(request_id))
        answer.headers["Content-Disposition"] = 'attachment; filename="p2pnode-trace.json"'
        return answer

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
    """A row of OpenAI's list and of Anthropic's at once: each reads the names it knows."""
    added_s = int(model.get("added_ms", 0)) // 1000
    return {
        "id": model["name"],
        "object": "model",
        "type": "model",
        "display_name": str(model.get("title") or model["name"]),
        "lifecycle": "active",
        "created": added_s,
        "created_at": datetime.fromtimestamp(added_s, UTC).isoformat().replace("+00:00", "Z"),
        "owned_by": "p2pnode",
        "p2pnode": dict(model),
    }


def mesh_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("mesh", __name__)
    node = context.node

    @routes.post("/plan")
    async def plan() -> Response:
        return await answer_plan(context, "auto")

    @routes.post("/invites")
    async def invites() -> Response:
        caller("admin")
        asked = parse(InviteRequest, await body())
        base = ""
        if request.args.get("link") in ("1", "true"):
            port = (request.scope["server"] or (None, None))[1] or 0
            addresses = [str(address) for address in node.status().get("addresses", ())]
            base = page_base(context.security.host, port, addresses)
        made = await node.invite(
            uses=asked.uses, expires_s=asked.expires_s, role=asked.role, label=asked.label
        )
        if base:
            made = {**made, "link": f"{base}/invite/{made['invite_id']}#{made['ticket']}"}
        if request.args.get("qr") in ("1", "true"):
            made = {**made, "qr": qr_svg(str(made.get("link") or made["ticket"]))}
        return json_response(made, 201)

    @routes.get("/log/<path:query>")
    async def log_query(query: str) -> Response:
        caller("use")
        return json_response(node.log_query(query, query_arguments(request.args)))

    @routes.post("/command/<name>")
    async def command(name: str) -> Response:
        """With `?stream=true`: `transfer` events while it works, its answer as the last one."""
        caller("admin")
        given = await arguments()
        work = node.command(name, given)
        if request.args.get("stream") not in ("1", "true"):
            return json_response(await work)
        model = str(given.get("model", ""))
        return stream_response(watched(context, work, "transfer", lambda: node.transfer(model), "done"))

    @routes.post("/settings")
    async def change_settings() -> Response:
        caller("admin")
        return json_response(await node.command("set", await arguments()))

    return routes


async def answer_plan(context: ApiContext, mode: Mode) -> Response:
    """POST takes JSON, GET a query; only POST applies. With `stream`: `loading` events, the plan as the last one."""
    node = context.node
    if request.method == "GET":
        asked = plan_from_query({"mode": mode, **query_arguments(request.args)})
    else:
        given = await body()
        asked = parse(PlanRequest, given)
        if asked.mode == "auto" and b'"mode"' not in given:
            asked.mode = mode
    is_file = asked.model is not None and ("/" in asked.model or asked.model.endswith(".gguf"))
    caller("admin" if asked.apply or is_file else "use")
    wanted = plain(asked)
    if not wanted.pop("stream", False):
        return json_response(await node.plan(wanted))
    model = asked.model if is_file else node.resolve_model(asked.model)
    look = partial(node.loading, str(model))
    return stream_response(watched(context, node.plan(wanted), "loading", look, "plan"))


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
    if (engine := query.pop("engine", None)) is not None:
        query["engine"] = dict(word.partition("=")[::2] for word in str(engine).split())
    try:
        return msgspec.convert(query, PlanRequest)
    except msgspec.ValidationError as error:
        raise RequestError(str(error)) from None
