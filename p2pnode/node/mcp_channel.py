"""Ways to an MCP server (Model Context Protocol): JSON-RPC lines of a process, or HTTP posts.

A server is a program the operator chose, and still not trusted with this node's memory or time: messages are
bounded, silence ends, and a process is ended with its whole group.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from p2pnode import limits
from p2pnode.compute.child_process import start_whole, to_the_end
from p2pnode.errors import ToolFailed

Message = dict[str, Any]
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TERM", "SHELL", "USER", "LOGNAME")
_TERM_GRACE_S = 2.0


class Channel(Protocol):
    @property
    def alive(self) -> bool: ...

    async def ask(self, message: Message) -> Message:
        """The response to a request; raises ToolFailed when there will be none."""
        ...

    async def tell(self, message: Message) -> None: ...

    async def close(self) -> None: ...


class ProcessChannel:
    """One JSON document a line over a child's stdin and stdout; its stderr is kept for when it fails."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self._name = name
        self._waiting: dict[Any, asyncio.Future[Message]] = {}
        self._words = b""
        self._lost: ToolFailed | None = None
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._listen())]

    @classmethod
    async def start(cls, name: str, command: Sequence[str], environment: Mapping[str, str]) -> ProcessChannel:
        """Only what programs need of this node's environment is passed on: it may hold keys."""
        passed = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        try:
            process = await start_whole(
                asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    env={**passed, **environment},
                    limit=limits.MCP_MESSAGE_BYTES_MAX,
                    process_group=0,
                )
            )
        except OSError as error:
            raise ToolFailed(f"the tool server {name} cannot be started: {error.strerror or error}") from None
        return cls(process, name)

    @property
    def alive(self) -> bool:
        return self._lost is None

    async def ask(self, message: Message) -> Message:
        if self._lost is not None:
            raise self._lost
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[message["id"]] = answer
        try:
            await self.tell(message)
            return await answer
        finally:
            self._waiting.pop(message["id"], None)

    async def tell(self, message: Message) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")
            await self._process.stdin.drain()
        except (ConnectionError, RuntimeError):
            raise self._lost or ToolFailed(f"the tool server {self._name} has gone") from None

    async def _read(self) -> None:
        assert self._process.stdout is not None
        reason = "ended"
        try:
            while line := await self._process.stdout.readline():
                await self._take(line)
        except ValueError:
            reason = f"sent a message of more than {limits.MCP_MESSAGE_BYTES_MAX} bytes"
        except ToolFailed as error:
            reason = error.message
        await asyncio.wait({self._tasks[1]}, timeout=_TERM_GRACE_S if reason == "ended" else 0)
        words = self._words.decode(errors="replace").strip().rpartition("\n")[2][-300:]
        self._lose(ToolFailed(f"the tool server {self._name} {reason}{f': {words}' if words else ''}"))

    async def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            message = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError):
            return  # some servers print words of their own on stdout: not ours to fail for
        if not isinstance(message, dict):
            return
        if "method" in message:
            if "id" in message:
                await self.tell(answer_of(message))
            return
        waiting = self._waiting.get(message.get("id"))
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while words := await self._process.stderr.read(4096):
            self._words = (self._words + words)[-limits.MCP_STDERR_BYTES_KEPT_MAX :]

    def _lose(self, error: ToolFailed) -> None:
        self._lost = self._lost or error
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    async def close(self) -> None:
        """Closing stdin asks it to end; its group is ended when it does not. Safe to call again."""
        self._lose(ToolFailed(f"the tool server {self._name} was ended"))
        assert self._process.stdin is not None
        self._process.stdin.close()
        await to_the_end(self._ended(), hurry=lambda: self._signal(signal.SIGKILL))

    async def _ended(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # A process counts as ended once its pipes are empty, and whoever fills them waits for a reader.
        emptying = [asyncio.ensure_future(_emptied(p)) for p in (self._process.stdout, self._process.stderr)]
        for sign in (None, signal.SIGTERM, signal.SIGKILL):
            if sign is not None:
                self._signal(sign)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TERM_GRACE_S):
                    await self._process.wait()
                break
        self._signal(signal.SIGKILL)  # what it left behind
        _, left = await asyncio.wait(emptying, timeout=_TERM_GRACE_S)
        for task in left:  # a process that left its group holds the other end
            task.cancel()

    def _signal(self, sign: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, sign)


async def _emptied(pipe: asyncio.StreamReader | None) -> None:
    assert pipe is not None
    while await pipe.read(limits.MCP_MESSAGE_BYTES_MAX):
        pass


class HttpChannel:
    """Streamable HTTP: each message is a POST; the answer is JSON, or server-sent events with the response in them."""

    def __init__(self, name: str, url: str, headers: Mapping[str, str], timeout_s: float) -> None:
        self._name = name
        self._url = urlsplit(url)
        self._headers = dict(headers)
        self._timeout_s = timeout_s
        self._session = ""
        self.version = ""
        self.alive = True

    async def ask(self, message: Message) -> Message:
        return await asyncio.to_thread(self._post, message)

    async def tell(self, message: Message) -> None:
        await asyncio.to_thread(self._post, message)

    def _post(self, message: Message) -> Message:
        host, port = self._url.hostname or "", self._url.port
        connection: http.client.HTTPConnection
        if self._url.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            **({"Mcp-Session-Id": self._session} if self._session else {}),
            **({"MCP-Protocol-Version": self.version} if self.version else {}),
            **self._headers,
        }
        path = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        try:
            connection.request("POST", path, body=msgspec.json.encode(message), headers=headers)
            response = connection.getresponse()
            self._session = response.headers.get("Mcp-Session-Id") or self._session
            if response.status >= 400:
                raise ToolFailed(f"the tool server {self._name} answered with status {response.status}")
            if "id" not in message:
                return {}
            if response.headers.get_content_type() == "text/event-stream":
                return self._from_events(response, message["id"])
            return self._response(response.read(limits.MCP_MESSAGE_BYTES_MAX + 1))
        except (OSError, http.client.HTTPException) as error:
            raise ToolFailed(f"the tool server {self._name} does not answer: {error}") from None
        finally:
            connection.close()

    def _response(self, raw: bytes) -> Message:
        if len(raw) > limits.MCP_MESSAGE_BYTES_MAX:
            raise ToolFailed(f"the tool server {self._name} sent more than is read")
        try:
            message = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise ToolFailed(f"the tool server {self._name} sent what is no JSON-RPC message")
        return message

    def _from_events(self, response: http.client.HTTPResponse, identity: Any) -> Message:
        data, read = [], 0
        while line := response.readline(limits.MCP_MESSAGE_BYTES_MAX + 1):
            read += len(line)
            if read > limits.MCP_MESSAGE_BYTES_MAX:
                break
            text = line.rstrip(b"\r\n")
            if text.startswith(b"data:"):
                data.append(text[5:].removeprefix(b" "))
            elif not text and data:
                message, data = self._response(b"\n".join(data)), []
                if message.get("id") == identity and "method" not in message:
                    return message
        raise ToolFailed(f"the tool server {self._name} ended its answer without a response")

    async def close(self) -> None:
        """Nothing is held open between calls."""


def answer_of(request: Message) -> Message:
    """What a server asks of us: whether we are there, and nothing else."""
    head: Message = {"jsonrpc": "2.0", "id": request["id"]}
    if request["method"] == "ping":
        return {**head, "result": {}}
    return {**head, "error": {"code": -32601, "message": "this client does not do that"}}
