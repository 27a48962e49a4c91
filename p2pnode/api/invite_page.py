"""The page behind an invite's link: what this is, who invites, and the commands that join. Nobody needs a key for it.

The ticket stands after the `#` of the link, which browsers send to nobody; the server knows the invite's id, which
admits nobody. Without the id of an invite that is open now it tells nothing. Source: specs/02-invites.md#link
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from quart import Blueprint, Response, request

from p2pnode import __version__, limits
from p2pnode.api.context import ApiContext
from p2pnode.api.envelope import json_response
from p2pnode.api.package_archive import Archive
from p2pnode.api.panel import Serve
from p2pnode.api.security import RateLimiter
from p2pnode.errors import NotFound, RequestError
from p2pnode.network import path_of

_ID = re.compile(r"[0-9a-f]{32}")
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 # compared with, not bound


def page_base(listen_host: str, port: int, multiaddrs: Sequence[str]) -> str:
    """`http://HOST:PORT` under which others on the network open this API.

    Raises: RequestError with what must be opened first; nothing is opened from here.
    """
    if path_of(listen_host) == "loopback" or listen_host == "localhost":
        raise RequestError(
            f"the API listens on {listen_host} only, so no other device can open a page of it",
            hint=f"start the node with --api 0.0.0.0:{port} and let TCP port {port} through this machine's firewall; "
            "all but that page then needs a key: p2pnode keys create",
        )
    host = listen_host
    if listen_host in _EVERYWHERE:
        hosts = [parts[2] for parts in (address.split("/") for address in multiaddrs) if len(parts) > 2]
        near = [found for found in hosts if path_of(found) == "lan" and not _is_link_local(found)]
        if not near:
            raise RequestError(
                "this device has no address on a local network that a link could name",
                hint="name one: p2pnode join --api ADDRESS:PORT",
            )
        host = min(near, key=lambda found: ":" in found)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_link_local(host: str) -> bool:
    return ip_address(host).is_link_local


def invite_page_routes(context: ApiContext, serve: Serve) -> Blueprint:
    routes = Blueprint("invite", __name__)
    limiter = RateLimiter(limits.INVITE_PAGE_REQUESTS_PER_MINUTE, who="this address")
    archive = Archive()

    def open_invite(invite_id: str) -> dict[str, Any]:
        limiter.take(request.remote_addr or "", time.monotonic())
        if _ID.fullmatch(invite_id):
            for row in context.node.log_query("invites", {})["invites"]:
                if row["invite_id"] == invite_id and row["state"] == "open":
                    return dict(row)
        raise NotFound(
            "this invite is used up, expired or revoked, or there never was one",
            hint="ask for a new link: p2pnode invite --link",
        )

    @routes.get("/invite/<invite_id>")
    async def page(invite_id: str) -> Response:
        limiter.take(request.remote_addr or "", time.monotonic())
        if not _ID.fullmatch(invite_id):
            raise NotFound("this is no invite's link", hint="ask for a new one")
        response = await serve("invite.html").make_conditional(request)
        assert isinstance(response, Response)
        return response

    @routes.get("/invite/<invite_id>/about")
    async def about(invite_id: str) -> Response:
        invite = open_invite(invite_id)
        status = context.node.status()
        packed = await archive.packed()
        addresses = [str(address) for address in status.get("addresses", ())]
        near = [a for a in addresses if len(a.split("/")) > 2 and path_of(a.split("/")[2]) != "loopback"]
        return json_response(
            {
                "mesh": status["mesh"]["name"],
                "device": context.node.name,
                "peer_id": context.node.peer_id,
                "role": invite["role"],
                "expires_ms": invite["expires_ms"],
                "uses_left": invite["uses_left"],
                "version": __version__,
                "address": (near or addresses or [""])[0],
                "program": packed and {"sha256": packed.sha256, "size_bytes": packed.size_bytes},
            }
        )

    @routes.get("/invite/<invite_id>/p2pnode.tar.gz")
    async def program(invite_id: str) -> Response:
        open_invite(invite_id)
        packed = await archive.packed()
        if packed is None:
            raise NotFound("this device runs an installed program and has no source to give")
        response = Response(packed.pieces(), content_type="application/gzip")
        response.headers["Content-Length"] = str(packed.size_bytes)
        response.timeout = limits.INVITE_ARCHIVE_S_MAX
        return response

    return routes
