"""Tools of other programs for agents, by the Model Context Protocol; which programs, the operator's file says.

The file has the shape that desktop clients share: `{"mcpServers": {NAME: {"command": ..., "args": [...], "env": {}} or
{"url": ...}}}`. A server is started when its tools are first wanted, kept, and started again when it died.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from p2pnode import __version__, limits
from p2pnode.errors import ConfigError, NotFound, P2PNodeError, ToolFailed
from p2pnode.node.mcp_channel import Channel, HttpChannel, Message, ProcessChannel
from p2pnode.node.processes import Processes

T = TypeVar("T")
PROTOCOL = "2025-06-18"
_NAME = re.compile(r"^[A-Za-z0-9_-]{1,32}$")
_FILE_BYTES_MAX = 1 << 20
Called = Callable[[dict[str, Any]], Awaitable[None]]


class ServerEntry(msgspec.Struct, frozen=True):
    """One server of the operator's file; keys of other programs are left alone."""

    command: str = ""
    args: list[str] = []
    env: dict[str, str] = {}
    url: str = ""
    headers: dict[str, str] = {}
    scope: Literal["use", "admin"] = "admin"
    """Whose requests may use its tools: by default only those that may change everything."""
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = limits.MCP_CALL_S_MAX


class _File(msgspec.Struct, frozen=True):
    servers: dict[str, ServerEntry] = msgspec.field(name="mcpServers", default_factory=dict)


def read_file(path: Path) -> dict[str, ServerEntry]:
    """The servers an operator named; ConfigError for a file that is not of this shape."""
    try:
        raw = path.read_bytes()[:_FILE_BYTES_MAX]
        found = msgspec.json.decode(raw, type=_File).servers
    except (OSError, msgspec.DecodeError) as error:
        hint = 'it looks like {"mcpServers": {"files": {"command": "mcp-server-files", "args": ["/srv"]}}}'
        raise ConfigError(f"the file of tool servers {path} cannot be read: {error}", hint=hint) from None
    if len(found) > limits.MCP_SERVERS_MAX:
        raise ConfigError(f"{path} names {len(found)} tool servers, at most {limits.MCP_SERVERS_MAX}")
    for name, entry in found.items():
        if not _NAME.match(name):
            raise ConfigError(f"{name[:40]!r} cannot name a tool server", hint="letters, digits, - and _")
        if bool(entry.command) == bool(entry.url):
            raise ConfigError(f"the tool server {name} needs either a command or a url")
        if entry.url and not re.match(r"^https?://[^/]", entry.url):
            raise ConfigError(f"the url of the tool server {name} is not http:// or https://")
    return found


class Server:
    """One tool server, started at most once at a time."""

    def __init__(self, name: str, entry: ServerEntry, processes: Processes) -> None:
        self._processes = processes
        self.name = name
        self.entry = entry
        self._channel: Channel | None = None
        self._ids = itertools.count(1)
        self._lock = asyncio.Lock()
        self._tools: list[dict[str, Any]] = []

    async def tools(self) -> list[dict[str, Any]]:
        """[{"name", "description", "input_schema"}], asked once a start."""
        await self._ready()
        return self._tools

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """The result as text, cut to what a prompt takes, and whether the tool says that it failed."""
        channel = await self._ready()
        params = {"name": tool, "arguments": dict(arguments)}
        identity = next(self._ids)
        try:
            result = await self._within(
                self.entry.timeout_s, self._request(channel, "tools/call", params, identity)
            )
        except ToolFailed as error:
            if error.details.get("timed_out"):
                cancelled = {"requestId": identity, "reason": "it took too long"}
                await self._tell(channel, "notifications/cancelled", cancelled)
            elif not error.details.get("said"):
                await self._drop(channel)
            raise
        return text_of(result)[: limits.AGENT_RESULT_CHARS_MAX], result.get("isError") is True

    async def _ready(self) -> Channel:
        async with self._lock:
            if self._channel is not None and not self._channel.alive:
                await self._drop(self._channel)
            if self._channel is None:
                channel = await self._open()
                try:
                    self._tools = await self._within(limits.MCP_START_S_MAX, self._greet(channel))
                except BaseException:
                    await channel.close()
                    raise
                self._channel = channel
            return self._channel

    async def _open(self) -> Channel:
        entry = self.entry
        if entry.url:
            return HttpChannel(self.name, entry.url, entry.headers, entry.timeout_s)
        command = [entry.command, *entry.args]
        return await self._processes.start(lambda: ProcessChannel.start(self.name, command, entry.env))

    async def _greet(self, channel: Channel) -> list[dict[str, Any]]:
        about = {"name": "p2pnode", "version": __version__}
        hello = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": about}
        answer = await self._request(channel, "initialize", hello)
        if isinstance(channel, HttpChannel):
            channel.version = str(answer.get("protocolVersion", PROTOCOL))
        await self._tell(channel, "notifications/initialized", {})
        found: list[dict[str, Any]] = []
        cursor: Any = None
        while len(found) < limits.MCP_TOOLS_MAX:
            page = await self._request(channel, "tools/list", {} if cursor is None else {"cursor": cursor})
            rows = page.get("tools")
            found += [row for row in map(tool_of, rows if isinstance(rows, list) else []) if row is not None]
            before, cursor = cursor, page.get("nextCursor")
            if cursor is None or cursor == before:
                break
        return found[: limits.MCP_TOOLS_MAX]

    async def _request(
        self, channel: Channel, method: str, params: Message, identity: int | None = None
    ) -> Message:
        number = next(self._ids) if identity is None else identity
        answer = await channel.ask({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        error, result = answer.get("error"), answer.get("result")
        if isinstance(error, dict):
            raise ToolFailed(f"{self.name} says: {str(error.get('message', 'no reason'))[:300]}", said=True)
        if not isinstance(result, dict):
            raise ToolFailed(f"the tool server {self.name} answered {method} with neither result nor error")
        return result

    async def _tell(self, channel: Channel, method: str, params: Message) -> None:
        await channel.tell({"jsonrpc": "2.0", "method": method, **({"params": params} if params else {})})

    async def _within(self, timeout_s: float, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(timeout_s):
                return await work
        except TimeoutError:
            raise ToolFailed(
                f"the tool server {self.name} did not answer within {timeout_s:g} s", timed_out=True
            ) from None

    async def _drop(self, channel: Channel) -> None:
        if self._channel is channel:
            self._channel = None
        await channel.close()

    async def close(self) -> None:
        if self._channel is not None:
            await self._drop(self._channel)


class Tools:
    """All tool servers of this node, and the record of what they were used for."""

    def __init__(self, servers: Mapping[str, ServerEntry], called: Called) -> None:
        self._processes = Processes()
        self._servers = {name: Server(name, entry, self._processes) for name, entry in servers.items()}
        self._called = called

    async def view(self) -> dict[str, Any]:
        """{"servers": [{"name", "scope", "tools": [...], "error"}]}; one that fails does not hide the others."""
        return {"servers": list(await asyncio.gather(*map(self._one, self._servers.values())))}

    async def _one(self, server: Server) -> dict[str, Any]:
        about: dict[str, Any] = {"name": server.name, "scope": server.entry.scope, "tools": [], "error": ""}
        try:
            about["tools"] = await server.tools()
        except P2PNodeError as error:
            about["error"] = error.message
        return about

    async def call(
        self, server: str, tool: str, arguments: Mapping[str, Any], *, request_id: str
    ) -> dict[str, Any]:
        """{"text", "is_error"}; recorded either way. Raises NotFound and ToolFailed."""
        found = self._servers.get(server)
        if found is None:
            raise NotFound(f"there is no tool server {server[:40]!r}")
        begun_s, outcome, reason = time.monotonic(), "ok", ""
        try:
            text, is_error = await found.call(tool, arguments)
            outcome = "error" if is_error else "ok"
            reason = text[:500] if is_error else ""
        except P2PNodeError as error:
            outcome, reason = error.code, error.message[:500]
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            about = {
                "server": server, "tool": tool[:128], "request_id": request_id, "outcome": outcome, "reason": reason,
                "arguments": arguments, "duration_ms": int((time.monotonic() - begun_s) * 1000),
            }  # fmt: skip
            await asyncio.shield(self._called(about))
        return {"text": text, "is_error": is_error}

    async def close(self) -> None:
        """Also those that are being started, or greeted, for somebody who still waits."""
        await self._processes.close()
        await asyncio.gather(*(server.close() for server in self._servers.values()))


def tool_of(row: Any) -> dict[str, Any] | None:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or not row["name"]:
        return None
    schema = row.get("inputSchema")
    return {
        "name": row["name"],
        "description": str(row.get("description") or row.get("title") or "")[:2000],
        "input_schema": schema if isinstance(schema, dict) else {"type": "object"},
    }


def text_of(result: Mapping[str, Any]) -> str:
    """What a model can read of a result: texts as they are, other kinds by name."""
    parts = []
    content = result.get("content")
    for item in content if isinstance(content, list) else []:
        if not isinstance(item, dict):
            continue
        resource = item.get("resource")
        if item.get("type") == "text":
            parts.append(str(item.get("text", "")))
        elif isinstance(resource, dict) and "text" in resource:
            parts.append(str(resource["text"]))
        elif item.get("type") == "resource_link":
            parts.append(str(item.get("uri", "")))
        else:
            parts.append(f"[{item.get('type', 'something')} that is not text]")
    if not parts and "structuredContent" in result:
        return msgspec.json.encode(result["structuredContent"]).decode()
    return "\n".join(parts)
