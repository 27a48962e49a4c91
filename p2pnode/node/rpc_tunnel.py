"""`/p2pnode/rpc/1`: llama.cpp's RPC, which has no authentication, carried between two loopback sockets.

A worker runs `rpc-server` as a supervised child on its own loopback. The head listens on its own loopback
and pumps each TCP connection through one authenticated stream; llama.cpp sees nothing but 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from p2pnode import limits
from p2pnode.compute.rpc import LOOPBACK, RpcServer, build_id
from p2pnode.errors import EngineIncompatible, P2PNodeError, RequestError
from p2pnode.node.links import Links, ProgressCallback
from p2pnode.transport.port import Stream, Transport
from p2pnode.units import PeerId

RPC = "/p2pnode/rpc/1"


class RpcTunnel:
    """Both sides: workers that serve heads, and the head's local ends."""

    def __init__(
        self, *, transport: Transport, links: Links, threads: int, check_head: Callable[[PeerId], None]
    ) -> None:
        self._check_head = check_head
        self._links = links
        self._threads = threads
        self._servers: dict[PeerId, RpcServer] = {}
        self._listeners: dict[PeerId, asyncio.Server] = {}
        self._build = ""
        links.serve("rpc.start", self._start)
        links.serve("rpc.stop", self._stop)
        transport.handle(RPC, self._serve)

    async def build(self) -> str:
        """Names this machine's llama.cpp libraries; hashed once, in a thread."""
        if not self._build:
            self._build = await asyncio.to_thread(build_id)
        return self._build

    # --- head ----------------------------------------------------------------------------------------
    async def open(self, peer: PeerId) -> str:
        """A worker's endpoint as this machine's llama.cpp can reach it: HOST:PORT on loopback.

        Raises: EngineIncompatible when the two llama.cpp builds differ, and what the worker answers.
        """
        answer = await self._links.call(peer, "rpc.start", {"build": await self.build()})
        if answer.get("build") != await self.build():
            raise EngineIncompatible(f"{self._links.name_of(peer)} runs another build of llama.cpp")
        if peer not in self._listeners:
            self._listeners[peer] = await asyncio.start_server(self._accepting(peer), LOOPBACK, 0)
        port = self._listeners[peer].sockets[0].getsockname()[1]
        return f"{LOOPBACK}:{port}"

    def _accepting(
        self, peer: PeerId
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            link = self._links.links.get(peer)
            try:
                if link is not None and link.connection is not None and link.is_up:
                    await pump(await link.connection.open_stream(RPC), reader, writer)
            except P2PNodeError:
                return  # llama.cpp sees its connection end; its process is supervised
            finally:
                writer.close()

        return accept

    async def shut(self, peer: PeerId) -> None:
        """No more of this worker: end our listener and its server."""
        listener = self._listeners.pop(peer, None)
        if listener is not None:
            listener.close()
        with contextlib.suppress(P2PNodeError):
            await self._links.call(peer, "rpc.stop", {})

    # --- worker --------------------------------------------------------------------------------------
    async def _start(self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback) -> dict[str, Any]:
        self._check_head(peer)
        if arguments.get("build") != await self.build():
            raise EngineIncompatible(
                "the two devices run different builds of llama.cpp, between which its RPC does not work",
                hint="use pipeline or tensor mode, or the same version on both",
            )
        server = self._servers.get(peer)
        if server is None or server.exit_code is not None:
            if len(self._servers) >= limits.RPC_SERVERS_MAX:
                raise RequestError("this device serves llama.cpp's RPC to enough heads already")
            self._servers[peer] = await RpcServer.start(threads=self._threads)
        return {"build": await self.build()}

    async def _stop(self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback) -> dict[str, Any]:
        del arguments
        server = self._servers.pop(peer, None)
        if server is not None:
            await server.close()
        return {"stopped": server is not None}

    async def _serve(self, stream: Stream) -> None:
        server = self._servers.get(stream.peer_id)
        if server is None or server.exit_code is not None:
            raise RequestError("no RPC worker runs here for this head")
        reader, writer = await asyncio.open_connection(LOOPBACK, server.port)
        try:
            await pump(stream, reader, writer)
        finally:
            writer.close()

    async def close(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        for server in self._servers.values():
            await server.close()
        self._servers.clear()


async def pump(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes both ways until either side ends; each waits for the other, so nothing piles up."""

    async def inward() -> None:
        while data := await stream.read(limits.RPC_PIECE_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def outward() -> None:
        while data := await reader.read(limits.RPC_PIECE_BYTES):
            await stream.write(data)
        await stream.close_write()

    ways = [asyncio.ensure_future(inward()), asyncio.ensure_future(outward())]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        stream.reset()
