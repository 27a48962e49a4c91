"""The HTTP face of a node: routes, who may use them, one error envelope."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

from quart import Quart, Response, g, request

from p2pnode.api.agent import agent_routes
from p2pnode.api.anthropic import anthropic_routes
from p2pnode.api.chat import chat_routes
from p2pnode.api.completions import completion_routes
from p2pnode.api.console import console_routes
from p2pnode.api.context import ApiContext, caller
from p2pnode.api.embeddings import embedding_routes
from p2pnode.api.envelope import envelope, error_response, json_response
from p2pnode.api.infer import infer_routes
from p2pnode.api.invite_page import invite_page_routes
from p2pnode.api.key_routes import key_routes
from p2pnode.api.live import live_routes
from p2pnode.api.log_routes import log_routes
from p2pnode.api.mesh import mesh_routes, view_routes
from p2pnode.api.metrics import CONTENT_TYPE, ApiMetrics
from p2pnode.api.modes import mode_routes
from p2pnode.api.ollama import ollama_routes
from p2pnode.api.ollama_lines import failure
from p2pnode.api.openapi import document
from p2pnode.api.panel import POLICY, file_server, find_panel, panel_routes
from p2pnode.api.responses import responses_routes
from p2pnode.api.security import ApiSecurity
from p2pnode.api.traced import HEADER, begin
from p2pnode.facade import NodeFacade
from p2pnode.limits import (
    API_BODY_BYTES_MAX,
    API_BODY_TIMEOUT_S,
    API_LOADING_WAIT_S,
    API_RESPONSE_TIMEOUT_S,
)
from p2pnode.tracing import OFF, Tracing

_OPEN_PREFIXES = ("/web/", "/invite/")
_OPEN_PATHS = ("/", "/health", "/favicon.ico")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def create_app(
    node: NodeFacade,
    security: ApiSecurity | None = None,
    *,
    closing: asyncio.Event | None = None,
    panel: Path | None = None,
    loading_wait_s: float = API_LOADING_WAIT_S,
    tracing: Tracing = OFF,
) -> Quart:
    """The application for one node; `closing` set ends every stream; requests wait `loading_wait_s` for a model."""
    metrics = ApiMetrics(node)
    context = ApiContext(
        node, security or ApiSecurity(), metrics, closing or asyncio.Event(), loading_wait_s=loading_wait_s
    )
    app = Quart(__name__, static_folder=None, template_folder=None)
    app.config.update(
        MAX_CONTENT_LENGTH=API_BODY_BYTES_MAX,
        BODY_TIMEOUT=API_BODY_TIMEOUT_S,
        RESPONSE_TIMEOUT=API_RESPONSE_TIMEOUT_S,
        PROPAGATE_EXCEPTIONS=False,
    )
    app.extensions["p2pnode"] = context
    app.url_map.merge_slashes = False
    serve = file_server(panel or find_panel())
    for routes in (
        view_routes(context),
        completion_routes(context),
        chat_routes(context),
        embedding_routes(context),
        responses_routes(context),
        ollama_routes(context),
        anthropic_routes(context),
        infer_routes(context),
        agent_routes(context),
        mesh_routes(context),
        mode_routes(context),
        console_routes(context),
        key_routes(context),
        live_routes(context),
        log_routes(context),
        panel_routes(serve),
        invite_page_routes(context, serve),
    ):
        app.register_blueprint(routes)

    @app.get("/openapi.json")
    async def openapi() -> Response:
        caller("use")
        return json_response(document(app))

    @app.get("/metrics")
    async def scrape() -> Response:
        caller("use")
        await node.count()
        return Response(metrics.text(), content_type=CONTENT_TYPE)

    _guard_requests(app, context, tracing)

    @app.errorhandler(Exception)
    async def failed(error: Exception) -> Response:
        # What no route has is answered in the form of those who ask there: Ollama's clients try many addresses.
        return error_response(
            error, failure if request.path.startswith("/api/") and request.path != "/api/live" else envelope
        )

    return app


def _guard_requests(app: Quart, context: ApiContext, tracing: Tracing) -> None:
    """Who asks, before a request; what a browser may do with the answer, and how long it took, after it."""
    guarded, metrics = context.security, context.metrics

    @app.before_request
    async def guard() -> None:
        g.caller = g.span = None
        g.begun_s = time.perf_counter()
        guarded.check_host(request.headers.get("Host", ""))
        is_open = request.path in _OPEN_PATHS or request.path.startswith(_OPEN_PREFIXES)
        guarded.check_origin(request.headers, navigable=is_open and request.method in _SAFE_METHODS)
        if is_open:
            return
        remote = request.remote_addr or ""
        shown, now_s = request.headers.get("Authorization", ""), time.monotonic()
        if not shown and (key := request.headers.get("X-Api-Key")):  # where Anthropic's clients show theirs
            shown = f"Bearer {key}"
        if guarded.verify_jwt is None:
            known = guarded.authenticate(shown, remote, now_s)
        else:  # may fetch keys: not on the loop
            known = await asyncio.to_thread(guarded.authenticate, shown, remote, now_s)
        g.caller = None if known is None else replace(known, address=remote)
        route = request.url_rule.rule if request.url_rule is not None else "none"
        g.span = begin(tracing, request.method, route, request.headers.get(HEADER, ""))

    @app.after_request
    async def protect(response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule is not None else "none"
        metrics.requests.labels(route, str(response.status_code)).inc()
        metrics.seconds.labels(route).observe(time.perf_counter() - g.begun_s)
        headers = response.headers
        if g.span is not None and g.span.traceparent:
            headers[HEADER] = g.span.traceparent
            g.span.answered(response.status_code)
        headers["X-Content-Type-Options"] = "nosniff"
        headers["X-Frame-Options"] = "DENY"
        headers["Referrer-Policy"] = "no-referrer"
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
        headers["Cross-Origin-Opener-Policy"] = "same-origin"
        headers["Content-Security-Policy"] = POLICY
        headers.setdefault("Cache-Control", "no-store")
        return response
