"""libp2p over QUIC v1: the transport of a real node.

One UDP socket per listen address serves dialling and listening, so that NAT mappings are shared. The event
loop reads datagrams in batches; each connection answers a batch once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from aioquic.quic.connection import NetworkAddress

from p2pnode import limits
from p2pnode.errors import ConnectionLost, P2PNodeError, PeerUnreachable, StreamReset
from p2pnode.identity import Identity
from p2pnode.transport import quic_probe
from p2pnode.transport.credentials import make_credentials
from p2pnode.transport.dnsaddr import TxtLookup, system_txt
from p2pnode.transport.quic_acceptor import Acceptor, Verdict
from p2pnode.transport.quic_connection import QuicPeerConnection
from p2pnode.transport.quic_core import QuicCore
from p2pnode.transport.quic_dialer import Dialer
from p2pnode.transport.quic_fast import FastQuicCore
from p2pnode.transport.quic_path import probe_sizes
from p2pnode.transport.quic_resets import StatelessResets
from p2pnode.transport.quic_socket import UdpSocket
from p2pnode.transport.quic_sockets import UdpSockets
from p2pnode.transport.quic_stream import QuicPeerStream
from p2pnode.transport.routed import RoutedTransport
from p2pnode.transport.router import RESET_PROTOCOL_VIOLATION
from p2pnode.units import PeerId

DEFAULT_LISTEN = ("/ip4/0.0.0.0/udp/4001/quic-v1", "/ip6/::/udp/4001/quic-v1")

CLOSE_SUPPLANTED, CLOSE_SHUTDOWN = 0x1004, 0x1006
"""libp2p/specs, branch error-codes."""

SUPPLANTED_GRACE_S, SUPPLANTED_S_MAX = 1.0, 3600.0
"""Streams opened on the connection that loses get this long to end; of two dialled at the same time, where both are
known to work, as long as the second says: a plan made in that moment has its streams there."""

logger = logging.getLogger(__name__)


class QuicTransport(RoutedTransport[QuicPeerConnection]):
    """Implements the Transport port. `unix_time` judges certificates, `random_bytes` fills pings."""

    def __init__(
        self,
        identity: Identity,
        listen: Sequence[str] = DEFAULT_LISTEN,
        *,
        agent: str = "p2pnode",
        idle_timeout_s: float = limits.IDLE_TIMEOUT_S,
        datagram_bytes_max: int = limits.DATAGRAM_BYTES_MAX,
        core: type[QuicCore] = FastQuicCore,
        unix_time: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        super().__init__(identity, agent)
        self.random_bytes = random_bytes
        self.acceptor = Acceptor(random_bytes)
        self.sockets = UdpSockets(listen, self._readable)
        self._idle_timeout_s = idle_timeout_s
        self._core = core
        self.probe_sizes = probe_sizes(datagram_bytes_max)
        self._credentials = make_credentials(identity, unix_time)
        self.resets: StatelessResets[QuicPeerConnection] = StatelessResets(self._credentials, random_bytes)
        self._routes: dict[bytes, QuicPeerConnection] = {}
        self._connections: set[QuicPeerConnection] = set()
        self._touched: dict[QuicPeerConnection, None] = {}
        self._dials: dict[PeerId, asyncio.Task[QuicPeerConnection]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.lookup_txt: TxtLookup = system_txt
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- port --------------------------------------------------------------------------------------
    @property
    def listen_multiaddrs(self) -> Sequence[str]:
        return self.sockets.multiaddrs

    def counters(self) -> dict[str, int]:
        """For metrics: datagrams, refusals by reason, what the gate refused, resets sent."""
        counted = {f"refused_{reason}": count for reason, count in sorted(self.acceptor.refused.items())}
        return {
            **self.sockets.counters(),
            "connections": len(self._connections),
            "handshakes": self.acceptor.half_open,
            "gate_refused": self.router.refused_count,
            "resets_sent": self.resets.sent_count,
            **self.router.moved_counters(),
            **counted,
        }

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.sockets.open()

    async def dial(
        self, multiaddrs: Sequence[str], peer_id: PeerId, *, timeout_s: float | None = None
    ) -> QuicPeerConnection:
        if self._closed:
            raise ConnectionLost("this node is stopping")
        if peer_id == self.peer_id:
            raise PeerUnreachable("this is the node's own peer id", tried=[])
        known = self._peers.best(peer_id)
        if known is not None:
            return known
        task = self._dials.get(peer_id)
        if task is None:
            assert self._loop is not None, "dial on a transport that is not started"
            timeout_s = limits.DIAL_TIMEOUT_S if timeout_s is None else timeout_s
            task = self._loop.create_task(
                Dialer(peer_id, self._begin_dial, timeout_s, self.lookup_txt).run(multiaddrs)
            )
            self._dials[peer_id] = task
            task.add_done_callback(lambda done: self._dial_done(peer_id, done))
        # Several callers share one dial; one that gives up does not take it from the others.
        return await asyncio.shield(task)

    async def probe(self, multiaddrs: Sequence[str], peer_id: PeerId) -> list[list[str]]:
        dialer = Dialer(peer_id, self._begin_dial, limits.PROBE_TIMEOUT_S, self.lookup_txt)
        try:
            async with asyncio.timeout(limits.PROBE_TIMEOUT_S):
                targets = await dialer.resolve_all(multiaddrs)
        except TimeoutError:
            return [*dialer.tried, ["", "the names of its addresses do not resolve in time"]]
        reasons = await asyncio.gather(*(quic_probe.probe(family, to) for _, family, to in targets))
        return [[text, reason] for (text, _, _), reason in zip(targets, reasons, strict=True)] + dialer.tried

    async def close(self) -> None:
        self._closed = True
        for task in list(self._dials.values()):
            task.cancel()
        for connection in list(self._connections):
            connection.close_now(CLOSE_SHUTDOWN, "the node is stopping")
        tasks = [*self._dials.values(), *self._tasks]
        for own in self._tasks:
            own.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.sockets.close()

    # --- datagrams ---------------------------------------------------------------------------------
    def _readable(self, udp: UdpSocket) -> None:
        udp.receive_batch(self._on_datagram)
        touched, self._touched = self._touched, {}
        for connection in touched:
            connection.process()
            connection.sending.flush_after_batch()

    def _on_datagram(self, udp: UdpSocket, data: bytes, address: NetworkAddress) -> None:
        if len(data) < 21:
            return
        destination = data[6 : 6 + data[5]] if data[0] & 0x80 else data[1:9]
        connection = self._routes.get(destination)
        assert self._loop is not None
        now = self._loop.time()
        if connection is None:
            connection = self._unknown(udp, data, address, now)
            if connection is None:
                return
        connection.sending.socket = udp
        connection.receive(data, address, now)
        if not connection.is_established and not connection.is_outbound and connection.core.is_fresh:
            # Nothing in the first datagram could be decrypted: garbage keeps no memory.
            self.acceptor.count("undecryptable")
            connection.abandon()
            return
        self._touched[connection] = None

    def _unknown(
        self, udp: UdpSocket, data: bytes, address: NetworkAddress, now: float
    ) -> QuicPeerConnection | None:
        """A datagram of no connection: the first of a new one, or from or about one that is over."""
        if data[0] & 0x80:
            return self._accept(udp, data, address, now)
        forgotten = self.resets.match(data)
        if forgotten is not None:
            forgotten.forgotten_by_peer()
        elif (answer := self.resets.answer(data, now)) is not None:
            udp.send_batch([(answer, address)])
        return None

    def _accept(
        self, udp: UdpSocket, data: bytes, address: NetworkAddress, now: float
    ) -> QuicPeerConnection | None:
        if self._closed or udp not in self.sockets.listening:
            return None
        decision = self.acceptor.judge(data, address, now)
        if decision.verdict is Verdict.ANSWER:
            udp.send_batch([(decision.reply, address)])
        if decision.verdict is not Verdict.ACCEPT:
            return None
        core = self._core(
            self._credentials,
            self._credentials.configuration(is_client=False, idle_timeout_s=self._idle_timeout_s),
            original_destination_connection_id=decision.original_destination,
            retry_source_connection_id=decision.retry_source,
        )
        connection = self._new_connection(core, udp, address, is_outbound=False)
        self.add_route(decision.destination, connection)
        self.acceptor.begun(address, now)
        connection.expect_handshake_within(limits.HANDSHAKE_TIMEOUT_S)
        return connection

    def _begin_dial(
        self, family: socket.AddressFamily, address: NetworkAddress, peer_id: PeerId
    ) -> QuicPeerConnection:
        assert self._loop is not None
        udp = self.sockets.reaching(family, address)
        core = self._core(
            self._credentials,
            self._credentials.configuration(is_client=True, idle_timeout_s=self._idle_timeout_s),
            expected_peer=peer_id,
        )
        connection = self._new_connection(core, udp, address, is_outbound=True)
        core.connect(address, now=self._loop.time())
        connection.sending.flush()
        return connection

    def _new_connection(
        self, core: QuicCore, udp: UdpSocket, address: NetworkAddress, *, is_outbound: bool
    ) -> QuicPeerConnection:
        assert self._loop is not None
        connection = QuicPeerConnection(
            self, core, udp, address, is_outbound=is_outbound, started_at=self._loop.time()
        )
        self._connections.add(connection)
        self.add_route(core.host_cid, connection)
        return connection

    def _dial_done(self, peer_id: PeerId, task: asyncio.Task[QuicPeerConnection]) -> None:
        self._dials.pop(peer_id, None)
        if not task.cancelled():
            # Seen here as well, for the case that every caller gave up before.
            task.exception()

    # --- called by connections (Host) --------------------------------------------------------------
    def add_route(self, connection_id: bytes, connection: QuicPeerConnection) -> None:
        self._routes[connection_id] = connection
        connection.routes.add(connection_id)

    def drop_route(self, connection_id: bytes) -> None:
        connection = self._routes.pop(connection_id, None)
        if connection is not None:
            connection.routes.discard(connection_id)

    def accepts(self, peer_id: PeerId, protocol: str) -> bool:
        return self.router.accepts(peer_id, protocol)

    def moved(self, protocol: str) -> list[int]:
        return self.router.moved_by(protocol)

    def serve(self, connection: QuicPeerConnection, stream: QuicPeerStream) -> None:
        self._spawn(self._serve(connection, stream))

    def established(self, connection: QuicPeerConnection) -> None:
        assert self._loop is not None
        if not connection.is_outbound:
            self.acceptor.completed(connection.address, self._loop.time())
        self.resets.watch(connection.core.peer_reset_token, connection)
        for place, loser in enumerate(self._peers.add(connection.peer_id, connection)):
            # One at most: nobody shall hold many by dialling again and again.
            is_kept = place == 0 and self._peers.are_simultaneous(connection.peer_id, loser)
            until = self._loop.time() + (SUPPLANTED_S_MAX if is_kept else 0.0)
            self._loop.call_later(SUPPLANTED_GRACE_S, self._end_supplanted, loser, until)
        self.router.notify(connection, True)
        self._spawn(self._identify(connection))

    def _end_supplanted(self, loser: QuicPeerConnection, until: float) -> None:
        """What was asked on it is answered first: nobody knew yet that it would lose."""
        assert self._loop is not None
        if loser.stats().streams_open and self._loop.time() < until and not loser.is_closed:
            self._loop.call_later(SUPPLANTED_GRACE_S, self._end_supplanted, loser, until)
        else:
            loser.close_now(CLOSE_SUPPLANTED, "another connection is used")

    def ended(self, connection: QuicPeerConnection) -> None:
        self._connections.discard(connection)
        for connection_id in list(connection.routes):
            self._routes.pop(connection_id, None)
        connection.routes.clear()
        self.resets.forget(connection)
        if not connection.is_outbound:
            assert self._loop is not None
            self.acceptor.ended(connection.address, self._loop.time(), was_complete=connection.is_established)
            if not connection.is_established and connection.core.closing is not None:
                self.acceptor.count("handshake")
        if connection.is_established:
            self._peers.remove(connection.peer_id, connection)
            self.router.notify(connection, False)

    # --- tasks -------------------------------------------------------------------------------------
    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None
        if self._closed:
            coroutine.close()
            return
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: QuicPeerConnection, stream: QuicPeerStream) -> None:
        try:
            async with asyncio.timeout(limits.NEGOTIATION_TIMEOUT_S):
                agreed = await connection.negotiate_inbound(stream)
        except TimeoutError:
            stream.reset(RESET_PROTOCOL_VIOLATION)
            return
        except (StreamReset, ConnectionLost):
            stream.reset()
            return
        except P2PNodeError as error:
            logger.info("negotiation with %s failed: %s", connection.peer_id, error)
            stream.reset(RESET_PROTOCOL_VIOLATION)
            return
        if not agreed:
            stream.reset()
            return
        await self.router.serve(stream)
        stream.finish_reading()

    async def _identify(self, connection: QuicPeerConnection) -> None:
        try:
            connection.identified = await self.identify.ask(connection)
        except P2PNodeError as error:
            # A peer that cannot tell about itself is still a peer.
            logger.info("identify with %s failed: %s", connection.peer_id, error)
            return
        self.identify.learned(connection, connection.identified)
