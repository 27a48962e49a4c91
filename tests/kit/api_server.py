"""A real HTTP server around a fake node, in a thread of its own, for clients that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import Any

from p2pnode.api.app import create_app
from p2pnode.api.security import ApiSecurity
from p2pnode.api.server import ApiServer
from p2pnode.facade import NodeFacade
from tests.kit.fake_node import FakeNode


class Stand:
    """What the server asks: whatever node stands here."""

    def __init__(self) -> None:
        self.node = FakeNode()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.node, name)


@contextmanager
def serving(
    node: NodeFacade,
    security: ApiSecurity | None = None,
    *,
    inside: AbstractAsyncContextManager[object] | None = None,
) -> Iterator[str]:
    """The server's URL; it is stopped, streams included, at the end. `inside` lives as long, in its loop."""
    ready = threading.Event()
    found: dict[str, object] = {}

    async def run() -> None:
        async with inside or nullcontext():
            await serve()

    async def serve() -> None:
        closing, done = asyncio.Event(), asyncio.Event()
        server = ApiServer("127.0.0.1:0", closing)
        listener = await server.bind()
        await server.start(create_app(node, security, closing=closing), listener)
        found.update(url=server.url, loop=asyncio.get_running_loop(), done=done)
        ready.set()
        await done.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="api-server")
    thread.start()
    assert ready.wait(20)
    try:
        yield str(found["url"])
    finally:
        loop, done = found["loop"], found["done"]
        assert isinstance(loop, asyncio.AbstractEventLoop)
        assert isinstance(done, asyncio.Event)
        loop.call_soon_threadsafe(done.set)
        thread.join(20)
        assert not thread.is_alive()
