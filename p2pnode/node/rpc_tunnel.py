"""`/p2pnode/rpc/2`: llama.cpp's RPC, which has no authentication, carried between two loopback sockets.

A worker runs `rpc-server` as a supervised child on its own loopback, one for each plan: such a server speaks with one
client at a time, and lets the next one wait without a word. The head listens on its own loopback and pumps each TCP
connection through one authenticated stream, which begins with the plan's name; llama.cpp sees nothing but 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from p2pnode import limits
from p2pnode.compute.rpc import LOOPBACK, RpcServer, build_id
from p2pnode.errors import EngineIncompatible, NotFound, P2PNodeError, RemoteProtocolError, RequestError
from p2pnode.node.calls import ProgressCallback
from p2pnode.node.links import Links
from p2pnode.node.processes import Processes
from p2pnode.transport import messages
from p2pnode.transport.port import Stream, Transport
from p2pnode.units import PeerId

RPC = "/p2pnode/rpc/2"
Key = tuple[PeerId, str]
"""The other device, and the plan."""


@dataclass(slots=True)
class _Worker:
    server: RpcServer
    streams: int = 0
    alone_since_s: float | None = None
    """When it was first found without a stream: llama.cpp keeps one open as long as it needs the worker."""

    @property
    def is_up(self) -> bool:
        return self.server.exit_code is None


class RpcTunnel:
    """Both sides: workers that serve heads, and the head's local ends."""

    def __init__(
        self,
        *,
        transport: Transport,
        links: Links,
        threads: int,
        check_head: Callable[[PeerId], None],
        processes: Processes,
    ) -> None:
        self._processes = processes
        self._check_head = check_head
        self._links = links
        self._threads = threads
        self._workers: dict[Key, _Worker] = {}
        self._turn = asyncio.Lock()
        """Workers start and end one at a time: two requests at once would start two of one plan."""
        self._listeners: dict[Key, asyncio.Server] = {}
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
    async def open(self, peer: PeerId, plan_id: str) -> str:
        """A worker's endpoint as this machine's llama.cpp can reach it: HOST:PORT on loopback.

        Raises: EngineIncompatible when the two llama.cpp builds differ, and what the worker answers.
        """
        wish = {"build": await self.build(), "plan": plan_id}
        answer = await self._links.call(peer, "rpc.start", wish)
        if answer.get("build") != await self.build():
            raise EngineIncompatible(f"{self._links.name_of(peer)} runs another build of llama.cpp")
        key = peer, plan_id
        if key not in self._listeners:
            self._listeners[key] = await asyncio.start_server(self._accepting(key), LOOPBACK, 0)
        port = self._listeners[key].sockets[0].getsockname()[1]
        return f"{LOOPBACK}:{port}"

    def _accepting(self, key: Key) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                stream = await self._stream(key)
                if stream is not None:
                    await pump(stream, reader, writer)
            except (P2PNodeError, TimeoutError):
                return  # llama.cpp sees its connection end; its process is supervised
            finally:
                writer.close()

        return accept

    async def _stream(self, key: Key) -> Stream | None:
        peer, plan_id = key
        connection = self._links.connection_to(peer)
        if connection is None:
            return None
        stream = await connection.open_stream(RPC)
        try:
            async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
                await messages.ask(stream, messages.Call(method="rpc", arguments={"plan": plan_id}))
        except BaseException:
            stream.reset()
            raise
        return stream

    async def shut(self, peer: PeerId, plan_id: str) -> None:
        """A plan needs this worker no more: end our listener and its server."""
        listener = self._listeners.pop((peer, plan_id), None)
        if listener is not None:
            listener.close()
        with contextlib.suppress(P2PNodeError):
            await self._links.call(peer, "rpc.stop", {"plan": plan_id})

    # --- worker --------------------------------------------------------------------------------------
    async def _start(self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback) -> dict[str, Any]:
        self._check_head(peer)
        if arguments.get("build") != await self.build():
            raise EngineIncompatible(
                "the two devices run different builds of llama.cpp, between which its RPC does not work",
                hint="use pipeline or tensor mode, or the same version on both",
            )
        key = peer, _plan_of(arguments)
        async with self._turn:
            self._workers = {of: worker for of, worker in self._workers.items() if worker.is_up}
            if key not in self._workers:
                if len(self._workers) >= limits.RPC_SERVERS_MAX:
                    raise RequestError(
                        f"this device serves llama.cpp's RPC to {limits.RPC_SERVERS_MAX} plans already",
                        hint="end one of them, or use pipeline mode",
                    )
                server = await self._processes.start(lambda: RpcServer.start(threads=self._threads))
                self._workers[key] = _Worker(server)
        return {"build": await self.build()}

    async def _stop(self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback) -> dict[str, Any]:
        return {"stopped": await self._end((peer, _plan_of(arguments)))}

    async def _end(self, key: Key) -> bool:
        async with self._turn:
            worker = self._workers.pop(key, None)
            if worker is not None:
                await worker.server.close()
        return worker is not None

    async def _serve(self, stream: Stream) -> None:
        async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
            call = await messages.receive_message(stream)
            try:
                worker = self._worker(stream.peer_id, call)
            except P2PNodeError as error:
                await messages.send_message(stream, messages.refusal(error))
                await stream.close_write()
                return
            await messages.send_message(stream, messages.Answer(data={}))
        worker.streams += 1
        try:
            reader, writer = await asyncio.open_connection(LOOPBACK, worker.server.port)
            try:
                await pump(stream, reader, writer)
            finally:
                writer.close()
        finally:
            worker.streams -= 1

    def _worker(self, peer: PeerId, call: messages.AnyMessage) -> _Worker:
        if not isinstance(call, messages.Call) or call.method != "rpc":
            raise RemoteProtocolError("a stream of llama.cpp's RPC begins with its plan")
        worker = self._workers.get((peer, _plan_of(call.arguments)))
        if worker is None or not worker.is_up:
            raise NotFound("no RPC worker runs here for this plan")
        return worker

    async def end_orphans(self, now_s: float) -> None:
        """End workers that no head uses any more: it was switched off, or started anew without this plan."""
        for key, worker in list(self._workers.items()):
            if worker.streams:
                worker.alone_since_s = None
            elif worker.alone_since_s is None:
                worker.alone_since_s = now_s
            elif now_s - worker.alone_since_s > limits.HOSTED_ALONE_S_MAX:
                await self._end(key)

    async def close(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        for key in list(self._workers):
            await self._end(key)


def _plan_of(arguments: Mapping[str, Any]) -> str:
    plan_id = arguments.get("plan")
    if not isinstance(plan_id, str) or not 0 < len(plan_id) <= limits.PLAN_TEXT_CHARS_MAX:
        raise RemoteProtocolError("llama.cpp's RPC is served to plans, which have names")
    return plan_id


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
