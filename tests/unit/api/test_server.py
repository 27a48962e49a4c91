"""The real server: ports, stopping while someone reads."""

from __future__ import annotations

import asyncio

import pytest

from p2pnode.api.app import create_app
from p2pnode.api.server import ApiServer
from p2pnode.errors import ConfigError, PortTaken
from tests.kit.fake_node import FakeNode


async def started(node: FakeNode) -> ApiServer:
    closing = asyncio.Event()
    server = ApiServer("127.0.0.1:0", closing)
    await server.start(create_app(node, closing=closing), await server.bind())
    return server


async def test_port_taken() -> None:
    """A second server on the same port is refused with a hint."""
    first = ApiServer("127.0.0.1:0", asyncio.Event())
    listener = await first.bind()
    try:
        with pytest.raises(PortTaken) as caught:
            await ApiServer(f"127.0.0.1:{first.port}", asyncio.Event()).bind()
        assert "--api" in caught.value.hint
    finally:
        listener.close()


async def test_unknown_address() -> None:
    """A host that has no address is a configuration error."""
    with pytest.raises(ConfigError):
        await ApiServer("no.such.host.invalid:1", asyncio.Event()).bind()


@pytest.mark.parametrize("path", ["/api/live", "/v1/chat/completions"])
async def test_stop_ends_streams(path: str) -> None:
    """Stopping ends every stream, and the work behind it, within moments."""
    node = FakeNode()
    node.hold.clear()
    server = await started(node)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = b'{"stream": true, "messages": [{"role": "user", "content": "hi"}]}'
    method = "GET" if path == "/api/live" else "POST"
    sent = b"" if method == "GET" else body
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(sent)}\r\n\r\n"
    writer.write(head.encode() + sent)
    await asyncio.wait_for(reader.readuntil(b"data: "), 5)
    assert node.running == 1
    await asyncio.wait_for(server.stop(), 5)
    rest = await asyncio.wait_for(reader.read(), 5)
    assert node.running == 0
    if method == "POST":
        assert b"the node is stopping" in rest
    writer.close()


async def test_stop_twice() -> None:
    """Stopping again does nothing."""
    server = await started(FakeNode())
    await server.stop()
    await server.stop()


async def test_url_of_any_address() -> None:
    """The printed address can be clicked on, whatever is bound."""
    assert ApiServer("0.0.0.0:9480", asyncio.Event()).url == "http://127.0.0.1:9480"
    assert ApiServer("[::]:9480", asyncio.Event()).url == "http://[::1]:9480"
