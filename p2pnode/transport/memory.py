"""The transport in memory: many nodes in one process, with seeded latency, loss, partitions and slow readers.

Tests and the simulator run on it; time is the event loop's, so a loop with virtual time makes it instant.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from p2pnode import limits
from p2pnode.errors import (
    ConnectionLost,
    IdentityMismatch,
    P2PNodeError,
    PeerTimeout,
    PeerUnreachable,
    RemoteProtocolError,
    StreamReset,
)
from p2pnode.identity import Identity
from p2pnode.transport import multiaddr, ping
from p2pnode.transport.identify import Identify
from p2pnode.transport.memory_pipe import Link, Pipe
from p2pnode.transport.multistream import NOT_AVAILABLE
from p2pnode.transport.port import Buffer, ConnectionStats
from p2pnode.transport.routed import RoutedTransport
from p2pnode.units import PeerId


class MemoryStream:
    """Implements the Stream port over two pipes."""

    def __init__(self, connection: MemoryConnection, protocol: str, incoming: Pipe, outgoing: Pipe) -> None:
        self.protocol = protocol
        self._connection = connection
        self._incoming = incoming
        self._outgoing = outgoing

    @property
    def peer_id(self) -> PeerId:
        return self._connection.peer_id

    @property
    def connection(self) -> MemoryConnection:
        return self._connection

    @property
    def is_over(self) -> bool:
        return self._incoming.is_over and self._outgoing.is_over

    async def write(self, *chunks: Buffer) -> None:
        data = b"".join(bytes(memoryview(chunk).cast("B")) for chunk in chunks)
        self._connection.count(sent=len(data))
        await self._outgoing.write(data)

    async def read(self, size_max: int) -> bytes:
        data = await self._incoming.read(size_max)
        self._connection.count(received=len(data))
        return data

    async def read_exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        missing = size
        while missing:
            data = await self.read(missing)
            if not data:
                raise RemoteProtocolError(
                    f"the peer ended {self.protocol} after {size - missing} of {size} bytes",
                    peer=self.peer_id,
                )
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    async def close_write(self) -> None:
        self._outgoing.close()

    def reset(self, code: int = 0) -> None:
        self._incoming.abort(code)
        self._outgoing.abort(code)

    def finish_reading(self) -> None:
        """The handler is done: what still comes is dropped."""
        self._incoming.discard()

    def fail(self, error: P2PNodeError) -> None:
        self._incoming.fail(error)
        self._outgoing.fail(error)


class MemoryConnection:
    """Implements the Connection port; `other` is the same connection as the peer sees it."""

    def __init__(
        self, transport: MemoryTransport, peer: MemoryTransport, link: Link, *, is_outbound: bool
    ) -> None:
        self.is_outbound = is_outbound
        self.started_at = asyncio.get_running_loop().time()
        self.error: P2PNodeError | None = None
        self.identified: Identify | None = None
        self.link = link
        self.other: MemoryConnection = self
        self._transport = transport
        self._peer = peer
        self._streams: list[MemoryStream] = []
        self._bytes_sent = 0
        self._bytes_received = 0

    @property
    def peer_id(self) -> PeerId:
        return self._peer.peer_id

    @property
    def remote_multiaddr(self) -> str:
        return self._peer.address

    @property
    def observed_multiaddr(self) -> str | None:
        return None if self.identified is None else self.identified.observed_multiaddr

    @property
    def is_closed(self) -> bool:
        return self.error is not None

    def count(self, *, sent: int = 0, received: int = 0) -> None:
        self._bytes_sent += sent
        self._bytes_received += received

    def stats(self) -> ConnectionStats:
        self._streams = [stream for stream in self._streams if not stream.is_over]
        return ConnectionStats(
            rtt_s=2 * self.link.latency_s,
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
            streams_open=len(self._streams),
            datagram_bytes=limits.DATAGRAM_BYTES_MAX,
            path="memory",
        )

    async def open_stream(self, protocol: str, *, timeout_s: float | None = None) -> MemoryStream:
        timeout_s = limits.NEGOTIATION_TIMEOUT_S if timeout_s is None else timeout_s
        request, answer = Pipe(self.link), Pipe(self.link)
        stream = MemoryStream(self, protocol, answer, request)
        self._add(stream)
        try:
            async with asyncio.timeout(timeout_s):
                # The proposal and its answer travel the link like everything else.
                await request.write(b"?")
                await request.read(1)
                accepted = self._peer.router.accepts(self._transport.peer_id, protocol)
                await answer.write(b"y" if accepted else b"n")
                await answer.read(1)
        except TimeoutError as error:
            stream.reset()
            raise PeerTimeout(f"{self.peer_id} did not answer {protocol} within {timeout_s:g} s") from error
        except BaseException:
            stream.reset()
            raise
        if not accepted:
            stream.reset()
            raise RemoteProtocolError(
                f"the peer does not speak {protocol} (or not to this node)", reason=NOT_AVAILABLE
            )
        self._peer.serve(self.other.adopt(protocol, request, answer))
        return stream

    def adopt(self, protocol: str, incoming: Pipe, outgoing: Pipe) -> MemoryStream:
        stream = MemoryStream(self, protocol, incoming, outgoing)
        self._add(stream)
        return stream

    def _add(self, stream: MemoryStream) -> None:
        if self.error is not None:
            raise self.error
        self._streams = [other for other in self._streams if not other.is_over]
        self._streams.append(stream)

    async def ping(self, *, timeout_s: float | None = None) -> float:
        timeout_s = limits.PING_TIMEOUT_S if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                stream = await self.open_stream(ping.PROTOCOL)
                clock = asyncio.get_running_loop().time
                return await ping.measure(stream, self._transport.random_bytes(ping.PAYLOAD_BYTES), clock)
        except TimeoutError as error:
            raise PeerTimeout(f"{self.peer_id} did not answer a ping within {timeout_s:g} s") from error

    def nudge(self) -> None:
        asyncio.get_running_loop().call_later(2 * self.link.latency_s, self._nudged)

    def _nudged(self) -> None:
        if self.error is None and not self.link.is_cut:
            self.count(received=1)

    async def close(self, code: int = 0, reason: str = "") -> None:
        self.end(f"closed by this node{': ' + reason if reason else ''}", code)
        self.other.end(reason or "no reason given", code)

    def end(self, reason: str, code: int) -> None:
        if self.error is not None:
            return
        self.error = ConnectionLost(
            f"the connection ended: {reason}", peer=self.peer_id, code=code, reason=reason
        )
        for stream in self._streams:
            stream.fail(self.error)
        self._streams.clear()
        self._transport.ended(self)


class MemoryNetwork:
    """Where memory transports live. `seed` decides every fault."""

    def __init__(self, seed: int = 0, *, idle_timeout_s: float = limits.IDLE_TIMEOUT_S) -> None:
        self.rng = random.Random(seed)  # noqa: S311 (seeded faults, no secret)
        self.idle_timeout_s = idle_timeout_s
        self._nodes: dict[str, MemoryTransport] = {}
        self._links: dict[frozenset[PeerId], Link] = {}
        self.closed: set[str] = set()
        """Addresses that answer nobody who is not connected, as behind a firewall."""

    def transport(self, identity: Identity, *, agent: str = "p2pnode") -> MemoryTransport:
        """A node of this network, not started yet."""
        address = f"/ip4/10.{len(self._nodes) >> 8}.{len(self._nodes) & 255}.1/udp/4001/quic-v1"
        node = self._nodes[address] = MemoryTransport(self, identity, address, agent)
        return node

    def link(self, one: PeerId, other: PeerId) -> Link:
        """The path between two nodes; set its latency, jitter, loss and rate before or during use."""
        key = frozenset((one, other))
        if key not in self._links:
            self._links[key] = Link(rng=random.Random(self.rng.random()))  # noqa: S311 (seeded faults)
        return self._links[key]

    def at(self, address: str) -> MemoryTransport | None:
        return self._nodes.get(address)

    def partition(self, one: PeerId, other: PeerId) -> None:
        """Nothing passes; connections die after the idle timeout unless `heal` comes first."""
        link = self.link(one, other)
        link.is_cut = True
        loop = asyncio.get_running_loop()
        for node in self._nodes.values():
            for connection in node.connections():
                if connection.link is link:
                    loop.call_later(self.idle_timeout_s, self._expire, connection)

    def heal(self, one: PeerId, other: PeerId) -> None:
        self.link(one, other).heal()

    @staticmethod
    def _expire(connection: MemoryConnection) -> None:
        if connection.link.is_cut:
            connection.end("the peer went silent", 1)


class MemoryTransport(RoutedTransport[MemoryConnection]):
    """Implements the Transport port."""

    def __init__(self, network: MemoryNetwork, identity: Identity, address: str, agent: str) -> None:
        super().__init__(identity, agent)
        self.address = address
        self._network = network
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_up = False
        self.random_bytes: Callable[[int], bytes] = network.rng.randbytes

    @property
    def is_up(self) -> bool:
        return self._is_up

    @property
    def listen_multiaddrs(self) -> Sequence[str]:
        return [self.address] if self._is_up else []

    def counters(self) -> dict[str, int]:
        return {"connections": len(self.connections()), "gate_refused": self.router.refused_count}

    async def start(self) -> None:
        self._is_up = True

    async def close(self) -> None:
        self._is_up = False
        for connection in self.connections():
            await connection.close(0x1006, "the node is stopping")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def dial(
        self, multiaddrs: Sequence[str], peer_id: PeerId, *, timeout_s: float | None = None
    ) -> MemoryConnection:
        if not self._is_up:
            raise ConnectionLost("this node is stopping")
        if peer_id == self.peer_id:
            raise PeerUnreachable("this is the node's own peer id", tried=[])
        known = self._peers.best(peer_id)
        if known is not None:
            return known
        tried: list[list[str]] = []
        for text in multiaddrs:
            peer = self._network.at(multiaddr.without_peer_id(text))
            if peer is None or self._trouble_at(text):
                tried.append([text, "no answer"])
                continue
            if peer.peer_id != peer_id:
                raise IdentityMismatch(
                    f"expected {peer_id}, but {peer.peer_id} answers at this address",
                    tried=[*tried, [text, "another peer"]],
                )
            link = self._network.link(self.peer_id, peer_id)
            try:
                async with asyncio.timeout(limits.DIAL_TIMEOUT_S if timeout_s is None else timeout_s):
                    await asyncio.sleep(2 * link.latency_s)
            except TimeoutError:
                tried.append([text, "no answer in time"])
                continue
            return self._peers.best(peer_id) or self._connect(peer, link)
        raise PeerUnreachable(f"{peer_id} cannot be reached", tried=tried, peer=peer_id)

    async def probe(self, multiaddrs: Sequence[str], peer_id: PeerId) -> list[list[str]]:
        del peer_id  # who answers is not looked at
        return [[text, self._trouble_at(text)] for text in multiaddrs]

    def _trouble_at(self, text: str) -> str:
        peer = self._network.at(multiaddr.without_peer_id(text))
        if peer is None or not peer.is_up or self._network.link(self.peer_id, peer.peer_id).is_cut:
            return "no answer"
        return "no answer" if text in self._network.closed else ""

    def _connect(self, peer: MemoryTransport, link: Link) -> MemoryConnection:
        own = MemoryConnection(self, peer, link, is_outbound=True)
        theirs = MemoryConnection(peer, self, link, is_outbound=False)
        own.other, theirs.other = theirs, own
        for transport, connection in ((self, own), (peer, theirs)):
            transport.established(connection)
        return own

    def established(self, connection: MemoryConnection) -> None:
        self._peers.add(connection.peer_id, connection)
        self.router.notify(connection, True)
        self._spawn(self._ask(connection))

    def ended(self, connection: MemoryConnection) -> None:
        self._peers.remove(connection.peer_id, connection)
        self.router.notify(connection, False)

    def serve(self, stream: MemoryStream) -> None:
        self._spawn(self._serve(stream))

    async def _serve(self, stream: MemoryStream) -> None:
        await self.router.serve(stream)
        stream.finish_reading()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, connection: MemoryConnection) -> None:
        try:
            connection.identified = await self.identify.ask(connection)
        except (ConnectionLost, StreamReset, PeerTimeout, RemoteProtocolError):
            # A peer that cannot tell about itself is still a peer.
            return
        self.identify.learned(connection, connection.identified)
