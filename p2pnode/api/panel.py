"""The panel's files, with a policy that lets a page load nothing from anywhere else."""

from __future__ import annotations

import mimetypes
import sys
from collections.abc import Callable
from pathlib import Path

from quart import Blueprint, Response, request
from werkzeug.security import safe_join

from p2pnode.errors import NotFound

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}


def find_panel() -> Path | None:
    """The web folder: beside the package in a checkout, or where a wheel puts it."""
    checkout = Path(__file__).resolve().parents[2]
    for folder in (checkout / "web", Path(sys.prefix) / "share" / "p2pnode" / "web"):
        if (folder / "index.html").is_file():
            return folder
    return None


Serve = Callable[[str], Response]


def file_server(folder: Path | None) -> Serve:
    """A file of the web folder as an answer; NotFound for what it has not."""

    def serve(name: str) -> Response:
        path = safe_join(str(folder), name) if folder is not None else None
        file = Path(path) if path is not None else None
        if file is None or not file.is_file():
            raise NotFound("the panel has no such file")
        content = file.read_bytes()
        kind = _TYPES.get(file.suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        response = Response(content, content_type=kind)
        response.set_etag(f"{file.stat().st_mtime_ns:x}-{len(content):x}")
        response.headers["Cache-Control"] = "no-cache"
        return response

    return serve


def panel_routes(serve: Serve) -> Blueprint:
    routes = Blueprint("panel", __name__)

    @routes.get("/")
    async def index() -> Response:
        return await serve("index.html").make_conditional(request)

    @routes.get("/web/<path:name>")
    async def asset(name: str) -> Response:
        return await serve(name).make_conditional(request)

    @routes.get("/favicon.ico")
    async def favicon() -> Response:
        return await serve("icon.svg").make_conditional(request)

    return routes
