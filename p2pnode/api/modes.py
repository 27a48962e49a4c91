"""The modes' own addresses: /pipeline/*, /tensor/*, /billing/topup. Each is a short name for a general one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from quart import Blueprint, Response, request

from p2pnode.api.context import ApiContext, body, caller
from p2pnode.api.envelope import json_response
from p2pnode.api.infer import answer_infer
from p2pnode.api.mesh import answer_plan, arguments, query_arguments

_COMMANDS = {
    "/billing/topup": "topup",
    "/pipeline/clear": "pipeline_clear",
    "/tensor/rpc/start": "tensor_rpc_start",
    "/tensor/rpc/stop": "tensor_rpc_stop",
}

_BINARY = {"/pipeline/forward": "pipeline_forward", "/tensor/allreduce": "tensor_allreduce"}
FRAME_TYPE = "application/vnd.p2pnode.frame"


def mode_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("modes", __name__)
    node = context.node

    @routes.route("/pipeline/plan", methods=["GET", "POST"])
    async def pipeline_plan() -> Response:
        return await answer_plan(context, "pipeline")

    @routes.route("/tensor/plan", methods=["GET", "POST"])
    async def tensor_plan() -> Response:
        return await answer_plan(context, "tensor")

    @routes.post("/pipeline/infer")
    async def pipeline_infer() -> Response:
        return await answer_infer(context, mode="pipeline")

    @routes.post("/tensor/infer")
    async def tensor_infer() -> Response:
        return await answer_infer(context, mode="tensor")

    @routes.get("/tensor/status")
    async def tensor_status() -> Response:
        caller("use")
        plans = [
            plan for plan in node.plans().get("plans", []) if str(plan.get("mode", "")).startswith("tensor")
        ]
        sessions = [
            row
            for row in node.sessions().get("sessions", [])
            if str(row.get("mode", "")).startswith("tensor")
        ]
        return json_response({"plans": plans, "sessions": sessions})

    def command(name: str) -> Callable[[], Awaitable[Response]]:
        async def answer() -> Response:
            caller("admin")
            return json_response(await node.command(name, await arguments()))

        return answer

    def binary(name: str) -> Callable[[], Awaitable[Response]]:
        """Frames in, a frame out; plan and stage are in the query."""

        async def answer() -> Response:
            caller("admin")
            asked = {**query_arguments(request.args), "frame": await body()}
            done = await node.command(name, asked)
            return Response(done["frame"], content_type=FRAME_TYPE)

        return answer

    for path, name in _BINARY.items():
        routes.add_url_rule(path, name, binary(name), methods=["POST"])
    for path, name in _COMMANDS.items():
        routes.add_url_rule(path, name, command(name), methods=["POST"])
    return routes
