"""One HTTP/1.1 exchange with an external server: a request, a head, lines of a body; every size and silence bounded."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from p2pnode import limits
from p2pnode.errors import EngineUnavailable
from p2pnode.server_address import BackendAddress

_BROKEN = (OSError, EOFError, ValueError, asyncio.LimitOverrunError, ssl.SSLError)


class Response:
    """A head that was read; the body comes in pieces."""

    def __init__(self, reader: asyncio.StreamReader, status: int, headers: Mapping[str, str]) -> None:
        self._reader = reader
        self.status = status
        self.headers = headers

    async def _pieces(self) -> AsyncIterator[bytes]:
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            while size := await self._chunk_size():
                while size:
                    piece = await self._some(min(size, limits.BACKEND_READ_BYTES))
                    size -= len(piece)
                    yield piece
                await _readline(self._reader)
            return
        left = int(self.headers.get("content-length", -1))
        while left:
            piece = await self._some(
                limits.BACKEND_READ_BYTES if left < 0 else min(left, limits.BACKEND_READ_BYTES)
            )
            if not piece and left < 0:
                return
            left -= len(piece) if left > 0 else 0
            yield piece

    async def _some(self, count: int) -> bytes:
        async with asyncio.timeout(limits.BACKEND_SILENCE_S_MAX):
            piece = await self._reader.read(count)
        if not piece and ("content-length" in self.headers or "transfer-encoding" in self.headers):
            raise EOFError("it ended in the middle")
        return piece

    async def _chunk_size(self) -> int:
        line = await _readline(self._reader)
        size = int(line.partition(b";")[0].strip() or b"-", 16)
        if size < 0:
            raise ValueError("a chunk of negative size")
        return size

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """Without their ends; EngineUnavailable when the other side goes, falls silent or never ends a line."""
        with _as_conditions():
            rest = b""
            async for piece in self._pieces():
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    yield line.rstrip(b"\r")
                if len(rest) > limits.BACKEND_LINE_BYTES_MAX:
                    raise ValueError("a line without end")
            if rest:
                yield rest

    async def body(self) -> bytes:
        """All of it, within the bound."""
        with _as_conditions():
            out = bytearray()
            async for piece in self._pieces():
                out += piece
                if len(out) > limits.BACKEND_BODY_BYTES_MAX:
                    raise ValueError("an answer without end")
            return bytes(out)


@contextmanager
def _as_conditions() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise EngineUnavailable("the external server fell silent", hint="is it loading a model?") from None
    except _BROKEN as error:
        raise EngineUnavailable(f"the external server went away: {error}") from None


@asynccontextmanager
async def exchange(
    address: BackendAddress, method: str, path: str, document: Any = None, *, head_s: float
) -> AsyncIterator[Response]:
    """Ask, and read the answer inside; leaving closes the connection, which ends the work over there."""
    writer: asyncio.StreamWriter | None = None
    try:
        with _as_conditions():
            async with asyncio.timeout(limits.BACKEND_CONNECT_S_MAX):
                reader, writer = await asyncio.open_connection(
                    address.host,
                    address.port,
                    limit=limits.BACKEND_LINE_BYTES_MAX,
                    ssl=ssl.create_default_context() if address.secure else None,
                )
            writer.write(_head(address, method, path, document))
            async with asyncio.timeout(head_s):
                await writer.drain()
                response = await _read_head(reader)
        yield response
    finally:
        if writer is not None:
            writer.close()
            with suppress(*_BROKEN):
                await writer.wait_closed()


def _head(address: BackendAddress, method: str, path: str, document: Any) -> bytes:
    body = b"" if document is None else json.dumps(document).encode()
    host = f"[{address.host}]" if ":" in address.host else address.host
    lines = [
        f"{method} {address.path}{path} HTTP/1.1",
        f"Host: {host}:{address.port}",
        "Connection: close",
        "Accept: application/json, text/event-stream",
        "User-Agent: p2pnode",
    ]
    if address.key:
        lines.append(f"Authorization: Bearer {address.key}")
    if document is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


async def _readline(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\n")


async def _read_head(reader: asyncio.StreamReader) -> Response:
    version, _, rest = (await _readline(reader)).partition(b" ")
    if not version.startswith(b"HTTP/1."):
        raise ValueError("it speaks no HTTP")
    status = int(rest[:3])
    headers: dict[str, str] = {}
    for _ in range(limits.BACKEND_HEADERS_MAX):
        line = (await _readline(reader)).strip()
        if not line:
            return Response(reader, status, headers)
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    raise ValueError("too many headers")
