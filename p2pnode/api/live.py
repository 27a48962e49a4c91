"""GET /api/live: one stream of log events and telemetry for a panel."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from quart import Blueprint, Response, request

from p2pnode.api.context import ApiContext, caller
from p2pnode.api.envelope import condition_of, envelope, json_bytes
from p2pnode.api.sse import HEARTBEAT, sse_data, stream_response, until_closed
from p2pnode.errors import Busy, RequestError
from p2pnode.limits import API_LIVE_READERS_MAX


def live_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("live", __name__)

    @routes.get("/api/live")
    async def live() -> Response:
        caller("use")
        last = request.headers.get("Last-Event-ID") or request.args.get("after")
        if last is not None and not (last.removeprefix("-").isdecimal() and len(last) < 19):
            raise RequestError("Last-Event-ID is a log index", param="Last-Event-ID")
        if context.live_readers >= API_LIVE_READERS_MAX:
            raise Busy("too many live readers", hint="close a panel")
        return stream_response(feed(None if last is None else int(last)))

    async def feed(after: int | None) -> AsyncGenerator[bytes, None]:
        context.live_readers += 1
        items = until_closed(context.node.live(after), context.closing)
        try:
            yield b"retry: 2000\n\n"
            async for item in items:
                if item is None:
                    yield HEARTBEAT
                    continue
                index = item.get("index")
                event_id = str(index) if isinstance(index, int) else None
                yield sse_data(json_bytes(item), event_id=event_id)
        except Exception as error:
            yield sse_data(json_bytes(envelope(condition_of(error))), event="error")
        finally:
            context.live_readers -= 1
            await items.aclose()

    return routes
