"""One authenticated connection: events of the QUIC machine become streams; what it writes leaves by `quic_sending`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from aioquic.quic import events
from aioquic.quic.connection import NetworkAddress

from p2pnode import limits
from p2pnode.errors import ConnectionLost, P2PNodeError, PeerTimeout, StreamReset
from p2pnode.transport import multiaddr, ping
from p2pnode.transport.identify import Identify
from p2pnode.transport.negotiation import agree_inbound, agree_outbound
from p2pnode.transport.port import ConnectionStats
from p2pnode.transport.quic_core import QuicCore
from p2pnode.transport.quic_fast import FastQuicCore
from p2pnode.transport.quic_path import PathProber
from p2pnode.transport.quic_sending import Sending
from p2pnode.transport.quic_socket import UdpSocket
from p2pnode.transport.quic_stream import QuicPeerStream
from p2pnode.transport.quic_stream_ids import PeerStreamIds
from p2pnode.units import PeerId

CRYPTO_ERROR_FIRST, CRYPTO_ERROR_END = 0x100, 0x200
"""RFC 9000 section 20.1: TLS alerts as QUIC errors."""


logger = logging.getLogger(__name__)


class Host(Protocol):
    """What a connection needs of its transport."""

    random_bytes: Callable[[int], bytes]
    probe_sizes: tuple[int, ...]

    def add_route(self, connection_id: bytes, connection: QuicPeerConnection) -> None: ...
    def drop_route(self, connection_id: bytes) -> None: ...
    def accepts(self, peer_id: PeerId, protocol: str) -> bool: ...
    def moved(self, protocol: str) -> list[int]: ...
    def serve(self, connection: QuicPeerConnection, stream: QuicPeerStream) -> None: ...
    def established(self, connection: QuicPeerConnection) -> None: ...
    def ended(self, connection: QuicPeerConnection) -> None: ...


class QuicPeerConnection:
    """Implements the Connection port over a QuicCore; driven by datagrams, timers and writers."""

    def __init__(
        self,
        host: Host,
        core: QuicCore,
        udp: UdpSocket,
        address: NetworkAddress,
        *,
        is_outbound: bool,
        started_at: float,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.core = core
        self.is_outbound = is_outbound
        self.started_at = started_at
        self.established: asyncio.Future[None] = self.loop.create_future()
        self.is_established = False
        self.error: P2PNodeError | None = None
        self.identified: Identify | None = None
        """What the peer said of itself, once it did."""
        self.address = address
        """Where the connection began; the peer may have moved since."""
        self.routes: set[bytes] = set()
        self._host = host
        self._streams: dict[int, QuicPeerStream] = {}
        self._peer_ids = PeerStreamIds(is_client=is_outbound)
        self._stream_room: asyncio.Future[None] | None = None
        self._bytes_received = 0
        self.sending = Sending(core, udp, broke=self._sending_broke, timer_fired=self._timer_fired)
        core.on_connection_id = lambda connection_id: host.add_route(connection_id, self)
        if isinstance(core, FastQuicCore):
            core.sink = self._feed
        self._handshake_timer: asyncio.TimerHandle | None = None
        self._path = PathProber(core, self.sending, host.probe_sizes)

    # --- port --------------------------------------------------------------------------------------
    @property
    def peer_id(self) -> PeerId:
        assert self.core.peer is not None, "the peer is known once the handshake is done"
        return self.core.peer.peer_id

    @property
    def remote_multiaddr(self) -> str:
        host, port = (self.core.get_peer_address() or self.address)[:2]
        return multiaddr.from_socket_address(host, port)

    @property
    def observed_multiaddr(self) -> str | None:
        """How the peer sees this node (identify), without /p2p."""
        return None if self.identified is None else self.identified.observed_multiaddr

    @property
    def is_closed(self) -> bool:
        return self.error is not None

    def stats(self) -> ConnectionStats:
        return ConnectionStats(
            rtt_s=self.core.rtt_s,
            bytes_sent=self.sending.bytes_sent,
            bytes_received=self._bytes_received,
            streams_open=len(self._streams),
            datagram_bytes=self.core.datagram_bytes,
        )

    async def open_stream(self, protocol: str, *, timeout_s: float | None = None) -> QuicPeerStream:
        timeout_s = limits.NEGOTIATION_TIMEOUT_S if timeout_s is None else timeout_s
        stream: QuicPeerStream | None = None
        try:
            async with asyncio.timeout(timeout_s):
                stream = await self._new_stream()
                await agree_outbound(stream, protocol)
                stream.moved = self._host.moved(protocol)
                return stream
        except TimeoutError as error:
            if stream is not None:
                stream.reset()
            raise PeerTimeout(
                f"{self.peer_id} did not answer {protocol} within {timeout_s:g} s", peer=self.peer_id
            ) from error
        except BaseException:
            if stream is not None:
                stream.reset()
            raise

    async def ping(self, *, timeout_s: float | None = None) -> float:
        timeout_s = limits.PING_TIMEOUT_S if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                stream = await self.open_stream(ping.PROTOCOL, timeout_s=timeout_s)
                return await ping.measure(stream, self._host.random_bytes(ping.PAYLOAD_BYTES), self.loop.time)
        except TimeoutError as error:
            raise PeerTimeout(f"{self.peer_id} did not answer a ping within {timeout_s:g} s") from error

    def nudge(self) -> None:
        self.sending.nudge()

    async def close(self, code: int = 0, reason: str = "") -> None:
        self.close_now(code, reason)

    def close_now(self, code: int = 0, reason: str = "") -> None:
        """Tell the peer, once, and end; nothing is waited for."""
        if self.error is None:
            self.core.close(error_code=code, reason_phrase=reason)
            self.sending.flush()
            self._end(f"closed by this node{': ' + reason if reason else ''}", code)

    # --- streams -----------------------------------------------------------------------------------
    async def _new_stream(self) -> QuicPeerStream:
        while True:
            if self.error is not None:
                raise self.error
            stream_id = self.core.open_stream_id()
            if stream_id is not None:
                stream = self._streams[stream_id] = QuicPeerStream(self, stream_id)
                return stream
            if self._stream_room is None:
                self._stream_room = self.loop.create_future()
            await asyncio.shield(self._stream_room)

    async def negotiate_inbound(self, stream: QuicPeerStream) -> bool:
        """Agree on a protocol; False when the peer gave up first."""
        if not await agree_inbound(stream, lambda protocol: self._host.accepts(self.peer_id, protocol)):
            return False
        stream.moved = self._host.moved(stream.protocol)
        return True

    def consumed(self, stream_id: int, size: int) -> None:
        if self.core.consume(stream_id, size):
            self.sending.flush_soon()

    def forget_if_finished(self, stream: QuicPeerStream) -> None:
        if stream.is_finished:
            self._streams.pop(stream.stream_id, None)

    def expect_handshake_within(self, timeout_s: float) -> None:
        self._handshake_timer = self.loop.call_later(
            timeout_s, self.close_now, 0, "the handshake took too long"
        )

    # --- driven by the transport -------------------------------------------------------------------
    def receive(self, data: bytes, address: NetworkAddress, now: float) -> None:
        self._bytes_received += len(data)
        try:
            self.core.receive_datagram(data, address, now)
        except Exception:
            # A packet that the core trips over costs its sender the connection, and nobody else theirs.
            logger.exception("a packet from %s broke its connection", address)
            self.abandon("a packet could not be handled")

    def _feed(self, stream_id: int, data: bytes) -> bool:
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        stream.feed(data, False)
        return True

    def process(self) -> None:
        """Turn what the machine learned into bytes for readers and news for the transport."""
        core = self.core
        while (event := core.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                stream = self._streams.get(event.stream_id)
                if stream is None:
                    stream = self._inbound(event.stream_id)
                    if stream is None:
                        self._discard(event)
                        continue
                stream.feed(event.data, event.end_stream)
                if event.end_stream:
                    core.end_of_reading(event.stream_id, was_reset=False)
                    self.forget_if_finished(stream)
            else:
                self._process_rare(event)
        if core.handshake_confirmed and not self.is_established and core.closing is None:
            self._establish()
        if core.closing is not None and self.error is None:
            self._ended_by_peer(*core.closing)
        if core.probe_results:
            self._path.judge_probes()
        if self._stream_room is not None:
            room, self._stream_room = self._stream_room, None
            room.set_result(None)

    def _process_rare(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamReset):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                stream.fail(
                    StreamReset(f"the peer reset {stream.protocol or 'a stream'}", code=event.error_code)
                )
                self.core.abort_stream(event.stream_id, event.error_code)
                self.forget_if_finished(stream)
            self.core.end_of_reading(event.stream_id, was_reset=True)
        elif isinstance(event, events.StopSendingReceived):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                stream.stop_writing()
                self.forget_if_finished(stream)
        elif isinstance(event, events.ConnectionIdRetired):
            self._host.drop_route(event.connection_id)

    def _inbound(self, stream_id: int) -> QuicPeerStream | None:
        """A stream the peer just opened; None for late bytes of one that is over."""
        if not self._peer_ids.opens(stream_id):
            return None
        self.core.accept_stream(stream_id)
        stream = self._streams[stream_id] = QuicPeerStream(self, stream_id)
        self._host.serve(self, stream)
        return stream

    def _discard(self, event: events.StreamDataReceived) -> None:
        self.consumed(event.stream_id, len(event.data))
        if event.end_stream:
            self.core.end_of_reading(event.stream_id, was_reset=False)

    def _timer_fired(self) -> None:
        self.process()
        self._path.judge_losses()

    def _sending_broke(self) -> None:
        """As for packets that come: one connection, not the loop."""
        logger.exception("sending to %s broke its connection", self.address)
        self.abandon("its next packet could not be built")

    def _establish(self) -> None:
        self.is_established = True
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        if not self.established.done():
            self.established.set_result(None)
        self.sending.keep_alive()
        self._host.established(self)
        self._path.probe()

    # --- the end -----------------------------------------------------------------------------------
    def _ended_by_peer(self, code: int, reason: str, is_transport_error: bool) -> None:
        if is_transport_error and reason == "Idle timeout":
            self._end("the peer went silent", code)
            return
        # A close of our own making (a refused handshake) still has to be sent.
        self.sending.flush()
        said = reason or (f"error 0x{code:x}" if code else "no reason given")
        self._end(said, code)

    def forgotten_by_peer(self) -> None:
        """A stateless reset: nothing of this connection is known on the other side."""
        self.process()
        if self.error is None:
            self._end("the peer restarted, or gave the connection up", 0)

    def abandon(self, reason: str = "nothing in the first datagram could be read") -> None:
        """Drop the connection without a word to the peer."""
        self._end(reason, 0)

    def _end(self, reason: str, code: int) -> None:
        if self.error is not None:
            return
        peer = self.core.peer.peer_id if self.core.peer is not None else None
        self.error = ConnectionLost(f"the connection ended: {reason}", peer=peer, code=code, reason=reason)
        self.sending.stop()
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        self._path.stop()
        if not self.established.done():
            self.established.set_exception(self.error)
            self.established.exception()
        if self._stream_room is not None and not self._stream_room.done():
            self._stream_room.set_result(None)
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream.fail(self.error)
        self._host.ended(self)
