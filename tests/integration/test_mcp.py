"""Tools of other programs: real server processes over stdio and HTTP, in an agent's loop and in the record."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from p2pnode.api.app import create_app
from p2pnode.api.security import ApiSecurity
from p2pnode.errors import ConfigError, NotFound, ToolFailed
from p2pnode.node.faces import Faces
from p2pnode.node.mcp import ServerEntry, Tools, read_file
from tests.kit.fake_node import FakeNode
from tests.kit.mcp_server import TOOLS
from tests.kit.node_here import node_here
from tests.unit.api.conftest import LoopbackClient

SERVER = str(Path(__file__).resolve().parents[1] / "kit" / "mcp_server.py")
STDIO = ServerEntry(command=sys.executable, args=[SERVER, "stdio"])


class World:
    def __init__(self, **servers: ServerEntry) -> None:
        self.called: list[dict[str, Any]] = []
        self.tools = Tools(servers, self._remember)

    async def _remember(self, about: dict[str, Any]) -> None:
        self.called.append(about)

    async def call(self, tool: str, server: str = "kit", **arguments: Any) -> dict[str, Any]:
        return await self.tools.call(server, tool, arguments, request_id="agent-1")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World(kit=STDIO)
    yield world
    await world.tools.close()


async def test_tools_are_listed_and_called(world: World) -> None:
    """All pages of the list; texts as they are, other kinds by name; noise and the server's own questions are borne."""
    (server,) = (await world.tools.view())["servers"]
    assert [tool["name"] for tool in server["tools"]] == list(TOOLS)
    assert (server["scope"], server["error"]) == ("admin", "")
    assert await world.call("echo", text="hé") == {
        "text": "echo: hé\n[image that is not text]",
        "is_error": False,
    }
    assert (await world.call("noise"))["text"] == "noise"
    assert (await world.call("ping"))["text"] == "ping"
    assert [about["outcome"] for about in world.called] == ["ok"] * 3


async def test_results_and_failures_are_bounded_and_recorded(world: World) -> None:
    assert len((await world.call("big"))["text"]) == 16_384
    assert await world.call("fail") == {"text": "the disk is on fire", "is_error": True}
    with pytest.raises(ToolFailed, match="no such tool"):
        await world.call("refuse")
    with pytest.raises(NotFound):
        await world.call("echo", server="other")
    assert [(about["outcome"], about["reason"]) for about in world.called] == [
        ("ok", ""),
        ("error", "the disk is on fire"),
        ("tool_failed", "kit says: no such tool"),
    ]


async def test_a_server_that_dies_is_started_again(world: World) -> None:
    """Its last words are told; the next call finds a new process. One that floods is ended."""
    with pytest.raises(ToolFailed, match="ended: the last words"):
        await world.call("exit")
    assert (await world.call("echo", text=1))["is_error"] is False
    with pytest.raises(ToolFailed, match="more than 4194304 bytes"):
        await world.call("flood")
    assert (await world.call("echo", text=1))["is_error"] is False


async def test_a_slow_tool_does_not_hold_the_loop() -> None:
    """It is given up after the operator's time, and the server serves on."""
    world = World(kit=ServerEntry(command=sys.executable, args=[SERVER, "stdio"], timeout_s=0.2))
    try:
        await world.tools.view()
        with pytest.raises(ToolFailed, match=r"within 0\.2 s"):
            await world.call("slow")
        assert world.called[-1]["outcome"] == "tool_failed"
    finally:
        await world.tools.close()


async def test_only_what_a_program_needs_is_inherited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    names = json.loads((await world.call("environment"))["text"])
    assert "PATH" in names
    assert "HF_TOKEN" not in names


async def test_a_server_that_does_not_start_hides_no_other() -> None:
    world = World(
        none=ServerEntry(command="/no/such/program"), bad=ServerEntry(command="/bin/false"), kit=STDIO
    )
    try:
        rows = {row["name"]: row for row in (await world.tools.view())["servers"]}
        assert "cannot be started" in rows["none"]["error"]
        assert rows["bad"]["error"]
        assert len(rows["kit"]["tools"]) == len(TOOLS)
    finally:
        await world.tools.close()


@pytest.fixture
def http_port() -> Iterator[int]:
    server = subprocess.Popen([sys.executable, SERVER, "http"], stdout=subprocess.PIPE)
    assert server.stdout is not None
    yield int(server.stdout.readline())
    server.kill()
    server.wait()
    server.stdout.close()


async def test_over_http(http_port: int) -> None:
    """Session and version headers, JSON and server-sent events; a refused session is an error with its status."""
    world = World(
        kit=ServerEntry(url=f"http://127.0.0.1:{http_port}/mcp"),
        gone=ServerEntry(url="http://127.0.0.1:1/mcp"),
    )
    rows = {row["name"]: row for row in (await world.tools.view())["servers"]}
    assert len(rows["kit"]["tools"]) == len(TOOLS)
    assert "does not answer" in rows["gone"]["error"]
    assert (await world.call("echo", text="hi"))["text"].startswith("echo: hi")
    with pytest.raises(ToolFailed, match="no such tool"):
        await world.call("refuse")


def test_the_file_of_servers(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"files": {"command": "x", "type": "stdio"}}, "theme": "dark"}))
    assert read_file(path) == {"files": ServerEntry(command="x")}
    wrong: list[Any] = [
        "no json", {"mcpServers": {"a": {}}}, {"mcpServers": {"a b": {"command": "x"}}}, {"mcpServers": [1]},
        {"mcpServers": {"a": {"command": "x", "url": "http://y"}}}, {"mcpServers": {"a": {"url": "file:///etc"}}},
        {"mcpServers": {"a": {"command": "x", "timeout_s": 0}}},
        {"mcpServers": {"a": {"command": "x", "scope": "all"}}},
        {"mcpServers": {f"a{n}": {"command": "x"} for n in range(33)}},
    ]  # fmt: skip
    for content in wrong:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(ConfigError):
            read_file(path)
    with pytest.raises(ConfigError):
        read_file(tmp_path / "none.json")


class AgentNode(FakeNode):
    """The fake node's words with real tool servers."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    async def tools(self) -> dict[str, Any]:
        return await self.world.tools.view()

    async def call_tool(self, server: str, tool: str, arguments: Any, *, request_id: str) -> dict[str, Any]:
        return await self.world.tools.call(server, tool, arguments, request_id=request_id)


def written(tool: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': tool, 'arguments': arguments})}</tool_call>"


def client_of(node: Any, security: ApiSecurity | None = None) -> Any:
    app = create_app(node, security)
    app.test_client_class = LoopbackClient
    return app.test_client()


async def run(client: Any, body: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    ask = {"messages": [{"role": "user", "content": "do it"}], **body}
    raw = (await (await client.post("/agent/stream", json=ask, **more)).get_data()).decode()
    return [json.loads(part[6:]) for part in raw.split("\n\n") if part.startswith("data: {")]


async def test_an_agent_uses_them(world: World) -> None:
    """The model is told of them, its calls reach the process, failures come back as text it can work with."""
    node = AgentNode(world)
    node.replies = {
        1: written("kit__echo", text="tea") + written("kit__fail") + written("kit__exit"),
        2: written("kit__echo", text="again"),
        3: "Done.",
    }
    events = await run(client_of(node), {"builtin": []})
    results = [(event["result"], event["is_error"]) for event in events if event["type"] == "tool_result"]
    assert results == [
        ("echo: tea\n[image that is not text]", False),
        ("the disk is on fire", True),
        ("error: the tool server kit ended: the last words", True),
        ("echo: again\n[image that is not text]", False),
    ]
    assert events[-1]["finish_reason"] == "stop"
    assert "kit__echo" in str(node.requests[0].prompt)
    assert {about["request_id"] for about in world.called} == {node.requests[0].request_id.rpartition("-")[0]}


async def test_an_agent_that_calls_in_a_circle_is_bounded(world: World) -> None:
    node = AgentNode(world)
    node.replies = {1: written("kit__echo") * 40, 2: "Done."}
    events = await run(client_of(node), {"max_tokens": 10_000})
    assert sum(event["type"] == "tool_result" for event in events) == 16


async def test_who_may_use_them(world: World) -> None:
    """By default only an admin's agents have them; naming one that is not allowed, or not there, is refused."""
    security = ApiSecurity(host="0.0.0.0")
    _, use = security.keys.create("use", "use", 1)
    _, admin = security.keys.create("admin", "admin", 2)
    client = client_of(AgentNode(world), security)
    asked = {"headers": {"Authorization": f"Bearer {use}"}}
    document = await (await client.get("/agent/tools", **asked)).get_json()
    assert (document["servers"], len(document["builtin"])) == ([], 6)
    ask = {"messages": [{"role": "user", "content": "hi"}]}
    assert (await client.post("/agent/stream", json=ask | {"mcp": ["kit"]}, **asked)).status_code == 403
    assert (await client.post("/agent/stream", json=ask | {"mcp": ["other"]}, **asked)).status_code == 400
    events = await run(client, {}, **asked)
    assert events[-1]["finish_reason"] == "stop"
    asked = {"headers": {"Authorization": f"Bearer {admin}"}}
    document = await (await client.get("/agent/tools", **asked)).get_json()
    assert len(document["servers"][0]["tools"]) == len(TOOLS)


async def test_a_node_records_them_and_leaves_no_process(tmp_path: Path) -> None:
    """Each call is a fact that tells the outcome and commits to the arguments; the server ends with the node."""
    path = tmp_path / "mcp.json"
    path.write_text(
        json.dumps({"mcpServers": {"kit": {"command": sys.executable, "args": [SERVER, "stdio"]}}})
    )
    async with node_here(tmp_path / "node", mcp=path) as node:
        faces = Faces(node)
        answer = await faces.call_tool("kit", "echo", {"text": "secret"}, request_id="agent-7")
        assert answer["text"].startswith("echo: secret")
        with pytest.raises(ToolFailed):
            await faces.call_tool("kit", "exit", {}, request_id="agent-7")
        entries = faces.log_query("entries", {"limit": 100})["entries"]
        facts = [entry["data"] for entry in entries if entry["type"] == "ToolCalled"]
        assert [(f["server"], f["tool"], f["outcome"]) for f in facts] == [
            ("kit", "echo", "ok"),
            ("kit", "exit", "tool_failed"),
        ]
        assert "secret" not in json.dumps(facts)
        await faces.tools()
        pid = node.tools._servers["kit"]._channel._process.pid  # type: ignore[union-attr]
        assert pid in psutil.pids()
    assert pid not in psutil.pids()
