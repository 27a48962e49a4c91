"""Our MCP client against servers made with the protocol's official Python package.

Run by `tests/interop/run.py`, which installs that package beside us.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

from p2pnode.node.mcp import ServerEntry, Tools

OFFICIAL = str(Path(__file__).resolve().parents[2] / ".interop" / "mcp" / "bin" / "python")
SERVER = """
import sys
from mcp.server.mcpserver import MCPServer
server = MCPServer("official")

@server.tool()
def add(a: int, b: int) -> int:
    "Adds two numbers."
    return a + b

@server.tool()
def fail() -> str:
    raise ValueError("as asked")

server.run(**({"transport": "stdio"} if sys.argv[1] == "stdio" else
    {"transport": "streamable-http", "host": "127.0.0.1", "port": int(sys.argv[2])}))
"""


async def check(name: str, entry: ServerEntry) -> None:
    called: list[dict[str, Any]] = []

    async def remember(about: dict[str, Any]) -> None:
        called.append(about)

    tools = Tools({name: entry}, remember)
    try:
        (server,) = (await tools.view())["servers"]
        assert not server["error"], server["error"]
        assert [tool["name"] for tool in server["tools"]] == ["add", "fail"], server
        assert (await tools.call(name, "add", {"a": 2, "b": 40}, request_id="r"))["text"] == "42"
        assert (await tools.call(name, "fail", {}, request_id="r"))["is_error"]
        assert (await tools.call(name, "add", {"a": "x"}, request_id="r"))["is_error"]
        assert [about["outcome"] for about in called] == ["ok", "error", "error"]
    finally:
        await tools.close()
    print(f"mcp over {name}: tools listed, called, failures told")


async def over_http(python: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        python, "-c", SERVER, "http", str(port), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            while b"running on" not in (await process.stderr.readline()):
                pass
        await check("http", ServerEntry(url=f"http://127.0.0.1:{port}/mcp"))
    finally:
        process.kill()
        await process.wait()


def test_stdio() -> None:
    asyncio.run(check("stdio", ServerEntry(command=OFFICIAL, args=["-c", SERVER, "stdio"])))


def test_http() -> None:
    asyncio.run(over_http(OFFICIAL))
