"""`/p2pnode/reduce/1`: partial sums between two ranks of a tensor group, carried where lanes do not get through.

Each engine has one end of a socketpair and believes it speaks with the other rank; the nodes carry the bytes
between their ends over QUIC. That is slower than a lane by the way through two nodes, but goes wherever they
reach each other.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Mapping
from typing import Any

from p2pnode import limits
from p2pnode.compute.engine_protocol import StreamToRank
from p2pnode.errors import NotFound, PeerUnreachable, RemoteProtocolError
from p2pnode.node.calls import ProgressCallback
from p2pnode.node.hosted_stage import UNIT, HostedStage
from p2pnode.node.hosting import Hosting
from p2pnode.node.links import Links
from p2pnode.node.orders import RETURN
from p2pnode.node.rpc_tunnel import pump
from p2pnode.node.tasks import Tasks
from p2pnode.transport import messages
from p2pnode.transport.port import Stream, Transport
from p2pnode.units import PeerId

REDUCE = "/p2pnode/reduce/1"
_TOKEN_PREFIX = b"p2pnode-reduce-v1:"

Arrival = tuple[Stream, "asyncio.Future[None]"]
"""A stream that the lower rank opened, and what its handler waits for."""


class ReduceStreams:
    def __init__(self, *, hosting: Hosting, links: Links, transport: Transport, tasks: Tasks) -> None:
        self._hosting = hosting
        self._links = links
        self._tasks = tasks
        self._expected: dict[tuple[PeerId, str], asyncio.Future[Arrival]] = {}
        self._news = asyncio.Event()
        links.serve("stage.carry", self._carry)
        transport.handle(REDUCE, self._serve)

    # --- asked by the head ---------------------------------------------------------------------------
    async def _carry(self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback) -> dict[str, Any]:
        """Connect this rank by streams; all ranks of a group are asked at about the same time."""
        plan_id, number = str(arguments.get("plan_id")), arguments.get("slot")
        hosted = self._hosting.stages.get((plan_id, number if isinstance(number, int) else RETURN))
        if hosted is None or hosted.order.head != peer:
            raise NotFound("this device holds no such rank")
        ends = arguments.get("ends")
        if not isinstance(ends, list) or len(ends) >= limits.RANKS_MAX:
            raise RemoteProtocolError("the ends of a group are a short list")
        try:
            wanted = [(int(end["rank"]), PeerId(str(end["peer"])), _token(end["secret"])) for end in ends]
        except (KeyError, TypeError, ValueError):
            raise RemoteProtocolError("an end of a group that cannot be read") from None
        await self._connect(hosted, wanted)
        return {}

    async def _connect(self, hosted: HostedStage, wanted: list[tuple[int, PeerId, str]]) -> None:
        ways: list[StreamToRank] = []
        try:
            async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
                arrivals = await asyncio.gather(
                    *(self._stream(hosted.order.rank, rank, peer, token) for rank, peer, token in wanted)
                )
                for (rank, peer, _), (stream, ended) in zip(wanted, arrivals, strict=True):
                    ours, theirs = socket.socketpair()
                    ways.append(StreamToRank(rank, theirs))
                    self._tasks.spawn(f"reduce {peer[-6:]}", _carry_bytes(stream, ours, ended))
                unit = hosted.engine.unit(UNIT)
                await hosted.engine.client.link(unit, ways, half=hosted.sends_halves)
        finally:
            for way in ways:
                way.stream.close()  # the engine has its own copy

    async def _stream(self, mine: int, rank: int, peer: PeerId, token: str) -> Arrival:
        """The lower rank opens; the other waits for it."""
        if mine < rank:
            return await self._open(peer, token), asyncio.get_running_loop().create_future()
        key = (peer, token)
        expected = self._expected[key] = asyncio.get_running_loop().create_future()
        self._news.set()
        self._news = asyncio.Event()
        try:
            arrived: Arrival = await expected
            return arrived
        finally:
            del self._expected[key]

    async def _open(self, peer: PeerId, token: str) -> Stream:
        connection = self._links.connection_to(peer)
        if connection is None:
            raise PeerUnreachable(f"{self._links.name_of(peer)} is not reachable from here", tried=[])
        stream = await connection.open_stream(REDUCE)
        try:
            await messages.ask(stream, messages.Call(method="reduce", arguments={"token": token}))
        except BaseException:
            stream.reset()
            raise
        return stream

    # --- opened by another rank ----------------------------------------------------------------------
    async def _serve(self, stream: Stream) -> None:
        async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
            call = await messages.receive_message(stream)
            if not isinstance(call, messages.Call) or call.method != "reduce":
                raise RemoteProtocolError("a stream between ranks begins with reduce")
            # The head asks all ranks at once: the other may be here before the head is.
            key = (stream.peer_id, str(call.arguments.get("token")))
            while (expected := self._expected.get(key)) is None or expected.done():
                await self._news.wait()
            await messages.send_message(stream, messages.Answer(data={}))
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not expected.done():
            expected.set_result((stream, ended))
            await ended


def _token(secret: Any) -> str:
    """Names the pair of ranks without telling the secret of their lane."""
    return hashlib.sha256(_TOKEN_PREFIX + bytes(secret)).hexdigest()


async def _carry_bytes(stream: Stream, ours: socket.socket, ended: asyncio.Future[None]) -> None:
    """Until either engine closes its end, or the way between the nodes breaks."""
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await asyncio.open_connection(sock=ours)
        await pump(stream, reader, writer)
    finally:
        if writer is None:
            ours.close()
        else:
            writer.close()
        stream.reset()
        if not ended.done():
            ended.set_result(None)
