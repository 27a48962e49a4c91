"""Serves the application inside the node's own loop; stops without waiting for anyone's stream."""

from __future__ import annotations

import asyncio
import logging
import socket

from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart

from p2pnode.config import parse_host_port
from p2pnode.errors import ConfigError, PortTaken
from p2pnode.limits import API_HEADER_BYTES_MAX

_GRACE_S = 2.0
_STOP_TIMEOUT_S = 8.0
_IDLE_READ_TIMEOUT_S = 60


class ApiServer:
    """One listening address. `closing` is the event given to create_app."""

    def __init__(self, address: str, closing: asyncio.Event) -> None:
        self._address = address
        self._closing = closing
        self._task: asyncio.Task[None] | None = None
        self.host, self.port = parse_host_port(address)

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 # to be clicked on
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    async def bind(self) -> socket.socket:
        """Take the port now, so that a taken one is known before anything else starts."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConfigError(
                f"cannot find the address {self._address}: {error.strerror or error}",
                hint="--api takes HOST:PORT or a port, for example 127.0.0.1:9480",
            ) from error
        family, kind, protocol, _, target = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(target)
            listener.listen(128)
        except OSError as error:
            listener.close()
            raise PortTaken(
                f"cannot listen on {self._address}: {error.strerror}",
                hint="another program uses this port; choose another with --api HOST:PORT",
            ) from error
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        return listener

    async def start(self, app: Quart, listener: socket.socket) -> None:
        config = Config()
        config.bind = [f"fd://{listener.detach()}"]
        config.accesslog = None
        config.errorlog = logging.getLogger("p2pnode.http")
        config.include_server_header = False
        config.graceful_timeout = _GRACE_S
        config.shutdown_timeout = _GRACE_S
        config.read_timeout = _IDLE_READ_TIMEOUT_S
        config.h11_max_incomplete_size = API_HEADER_BYTES_MAX
        self._task = asyncio.create_task(
            serve(app, config, shutdown_trigger=self._closing.wait, mode="asgi"), name="http-server"
        )

    async def stop(self) -> None:
        """End every stream, close the port; never longer than a few seconds."""
        self._closing.set()
        if self._task is None:
            return
        task, self._task = self._task, None
        done, _ = await asyncio.wait({task}, timeout=_STOP_TIMEOUT_S)
        if not done:
            task.cancel()
            await asyncio.wait({task}, timeout=_GRACE_S)
        if task.done() and not task.cancelled():
            task.exception()
