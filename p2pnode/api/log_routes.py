"""The record in C2SP's static layout (tlog-tiles), for tlog clients, mirrors and `fsck` tools of other people."""

from __future__ import annotations

import re

from quart import Blueprint, Response, request

from p2pnode.api.context import ApiContext, caller
from p2pnode.api.envelope import json_response
from p2pnode.errors import NotFound

_NUMBER = re.compile(r"(?:x\d{3}/)*\d{3}")
TILE_WIDTH = 256


def tile_number(path: str) -> int:
    """`x001/x234/067` is 1234067; raises NotFound for anything that is not the one spelling."""
    if not _NUMBER.fullmatch(path) or path.startswith("x000"):
        raise NotFound(f"{path[:40]!r} is no tile number", hint="tlog-tiles writes 1234067 as x001/x234/067")
    return int(path.replace("x", "").replace("/", ""))


def log_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("tlog", __name__)

    def ask(name: str, **arguments: int) -> dict[str, object]:
        caller("use")
        answer: dict[str, object] = context.node.log_query(name, arguments)
        return answer

    @routes.get("/log/checkpoint")
    async def checkpoint() -> Response:
        answer = ask("checkpoint")
        if request.headers.get("Accept", "").startswith("application/json"):
            return json_response(answer)
        note = str(answer["checkpoint"])
        return Response(note, content_type="text/plain; charset=utf-8")

    @routes.get("/log/tile/<int:level>/<path:number>")
    async def tile(level: int, number: str) -> Response:
        number, width = _width(number)
        hashes = bytes.fromhex(str(ask("tile", level=level, index=tile_number(number))["hashes"]))
        return _tile(hashes, 32, width)

    @routes.get("/log/tile/entries/<path:number>")
    async def entries(number: str) -> Response:
        number, width = _width(number)
        raw = ask("bundle", index=tile_number(number), width=width)["entries"]
        assert isinstance(raw, list)
        if len(raw) < width:
            raise NotFound("this bundle is not complete yet", hint="ask for its partial form: .p/WIDTH")
        body = b"".join(len(entry).to_bytes(2, "big") + entry for entry in map(bytes.fromhex, raw))
        return Response(body, content_type="application/octet-stream")

    return routes


def _width(number: str) -> tuple[str, int]:
    """Partial tiles are asked for as `N.p/W`."""
    name, marker, width = number.partition(".p/")
    if not marker:
        return name, TILE_WIDTH
    if not width.isdecimal() or not 0 < int(width) < TILE_WIDTH:
        raise NotFound("a partial tile has a width of 1 to 255")
    return name, int(width)


def _tile(data: bytes, item_bytes: int, width: int) -> Response:
    if len(data) < width * item_bytes:
        raise NotFound("this tile is not complete yet", hint="ask for its partial form: .p/WIDTH")
    return Response(data[: width * item_bytes], content_type="application/octet-stream")
