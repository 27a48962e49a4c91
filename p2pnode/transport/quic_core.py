"""One QUIC connection as a value machine: aioquic's, with what libp2p and back-pressure need added.

aioquic 1.7.2 has no public way to ask clients for a certificate, grows its receive windows when bytes
arrive instead of when they are read, and keeps its datagram size for ever. The names of its inside that are
touched for that are listed in `PRIVATE_NAMES`; a guard test fails when one is gone or means another thing.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable

from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    MAX_STREAM_DATA_FRAME_CAPACITY,
    NetworkAddress,
    QuicConnectionState,
)
from aioquic.quic.packet import (
    QuicFrameType,
    QuicPacketType,
    QuicProtocolVersion,
    pull_quic_transport_parameters,
)
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from p2pnode import limits
from p2pnode.transport.credentials import Credentials
from p2pnode.transport.quic_flights import FlightCore
from p2pnode.transport.tls import CertificateError, PeerCertificate, verify_certificates
from p2pnode.units import PeerId

PRIVATE_NAMES = {
    "aioquic.quic.connection.QuicConnection": (
        "_initialize",
        "_parse_transport_parameters",
        "_replenish_connection_ids",
        "_write_connection_limits",
        "_write_stream_limits",
        "_on_max_stream_data_delivery",
        "_flush_builder",
        "_close_event",
        "_close_pending",
        "_configuration",
        "_cryptos",
        "_handshake_confirmed",
        "_host_cids",
        "_is_client",
        "_local_max_data",
        "_local_max_streams_bidi",
        "_local_max_streams_uni",
        "_local_next_stream_id_bidi",
        "_loss",
        "_max_datagram_size",
        "_network_paths",
        "_packet_number",
        "_peer_cid",
        "_remote_max_idle_timeout",
        "_remote_max_streams_bidi",
        "_spin_bit",
        "_state",
        "_streams",
        "_version",
    ),
    "aioquic.tls.Context": (
        "_peer_certificate",
        "_request_client_certificate",
        "_server_handle_certificate",
        "_set_peer_certificate",
    ),
    "aioquic.quic.recovery.QuicPacketRecovery": ("_rtt_initialized", "_rtt_smoothed"),
    "aioquic.quic.stream.QuicStreamSender": ("_buffer_start", "_buffer_stop"),
    "aioquic.quic.packet_builder.QuicPacketBuilder": ("_packet",),
}
"""Every name with an underscore of aioquic that p2pnode touches."""

# aioquic reports each refused handshake as a warning; refusals are counted and told by the transport.
logging.getLogger("quic").setLevel(logging.CRITICAL)


class _CertificateRequired(tls.Alert):
    description = tls.AlertDescription.certificate_required


class QuicCore(FlightCore):
    """aioquic's connection with mutual libp2p TLS, consumption-driven windows and probed datagram sizes."""

    def __init__(
        self,
        credentials: Credentials,
        configuration: QuicConfiguration,
        *,
        expected_peer: PeerId | None = None,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        self.credentials = credentials
        if not self._is_client:
            self._host_cids[0].stateless_reset_token = credentials.reset_token(self.host_cid)
        self.expected_peer = expected_peer
        self.on_connection_id: Callable[[bytes], None] = lambda _connection_id: None
        """Told of each id the peer may use from now on, before the peer is."""
        self.peer: PeerCertificate | None = None
        self.mismatched_peer: PeerId | None = None
        self.peer_datagram_bytes_max = limits.DATAGRAM_BYTES_MIN
        self.probe_results: list[tuple[int, bool]] = []
        self._consumed_bytes = 0
        self._read_offsets: dict[int, int] = {}
        self._local_max_streams_bidi.value = limits.STREAMS_PER_CONNECTION_MAX
        self._local_max_streams_bidi.sent = limits.STREAMS_PER_CONNECTION_MAX
        # libp2p uses bidirectional streams only.
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = 0

    # --- handshake ---------------------------------------------------------------------------------
    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        context = self.tls
        context._request_client_certificate = not self._is_client
        set_peer_certificate = context._set_peer_certificate
        server_handle_certificate = context._server_handle_certificate

        def verify_peer_certificate(message: tls.Certificate) -> None:
            # Verified before aioquic parses it: what aioquic does not catch would end as a crash, not a refusal.
            self._verify([certificate for certificate, _extensions in message.certificates])
            set_peer_certificate(message)

        def require_client_certificate(buffer: Buffer) -> None:
            server_handle_certificate(buffer)
            if context._peer_certificate is None:
                raise _CertificateRequired("a libp2p client shows a certificate")

        # Replaced on this context alone: the check fails the handshake itself, before any stream exists.
        context._set_peer_certificate = verify_peer_certificate  # type: ignore[method-assign,assignment]
        context._server_handle_certificate = require_client_certificate  # type: ignore[method-assign,assignment]

    def _verify(self, chain: list[bytes]) -> None:
        now = datetime.datetime.fromtimestamp(self.credentials.unix_time(), datetime.UTC)
        try:
            peer = verify_certificates(chain, now)
        except CertificateError as error:
            raise tls.AlertBadCertificate(str(error)) from error
        if self.expected_peer is not None and peer.peer_id != self.expected_peer:
            self.mismatched_peer = peer.peer_id
            raise tls.AlertBadCertificate(f"expected {self.expected_peer}, this is {peer.peer_id}")
        self.peer = peer

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket=from_session_ticket)
        announced = pull_quic_transport_parameters(Buffer(data=data)).max_udp_payload_size
        if announced is None:
            announced = 65_527
        self.peer_datagram_bytes_max = max(limits.DATAGRAM_BYTES_MIN, announced)

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        for connection_id in self._host_cids:
            if not connection_id.was_sent:
                connection_id.stateless_reset_token = self.credentials.reset_token(connection_id.cid)
                self.on_connection_id(connection_id.cid)

    @property
    def peer_reset_token(self) -> bytes:
        """What the peer would end a packet with after it forgot the connection; b"" when it told none."""
        return self._peer_cid.stateless_reset_token

    @property
    def handshake_confirmed(self) -> bool:
        """Both sides know that both sides accepted."""
        return self._handshake_confirmed

    @property
    def is_fresh(self) -> bool:
        """A server that has not yet seen one packet it could decrypt."""
        return self._state is QuicConnectionState.FIRSTFLIGHT

    @property
    def closing(self) -> tuple[int, str, bool] | None:
        """(code, reason, is a transport error) as soon as an end is decided, by us or the peer."""
        event = self._close_event
        if event is None:
            return None
        return event.error_code, event.reason_phrase, event.frame_type is not None

    @property
    def idle_timeout_s(self) -> float:
        own = self._configuration.idle_timeout
        return own if self._remote_max_idle_timeout is None else min(own, self._remote_max_idle_timeout)

    @property
    def rtt_s(self) -> float:
        return self._loss._rtt_smoothed if self._loss._rtt_initialized else self._configuration.initial_rtt

    # --- streams -----------------------------------------------------------------------------------
    def open_stream_id(self) -> int | None:
        """Id of a new stream of ours; None while the peer allows no more."""
        stream_id = self._local_next_stream_id_bidi
        if stream_id // 4 >= self._remote_max_streams_bidi:
            return None
        self.send_stream_data(stream_id, b"")
        self._read_offsets[stream_id] = 0
        return stream_id

    def accept_stream(self, stream_id: int) -> None:
        self._read_offsets[stream_id] = 0

    def unsent_bytes(self, stream_id: int) -> int:
        """Written but never yet on the wire."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    def abort_stream(self, stream_id: int, code: int) -> None:
        """RESET_STREAM and STOP_SENDING, for whatever is left of the stream."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self.reset_stream(stream_id, code)
            self.stop_reading(stream_id, code)

    def stop_reading(self, stream_id: int, code: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            self.stop_stream(stream_id, code)

    # --- receive windows: grown when bytes are read ------------------------------------------------
    def consume(self, stream_id: int, size: int) -> bool:
        """`size` bytes were read; True when the peer should be told soon."""
        self._consumed_bytes += size
        due = self._local_max_data.value - self._consumed_bytes <= limits.CONNECTION_WINDOW_BYTES // 2
        offset = self._read_offsets.get(stream_id)
        if offset is None:
            return due
        offset += size
        self._read_offsets[stream_id] = offset
        stream = self._streams.get(stream_id)
        if stream is not None and stream.max_stream_data_local - offset <= limits.STREAM_WINDOW_BYTES // 2:
            due = True
        return due

    def end_of_reading(self, stream_id: int, *, was_reset: bool) -> None:
        """The peer ended its side: no more windows; bytes that will never come count as read."""
        offset = self._read_offsets.pop(stream_id, None)
        stream = self._streams.get(stream_id)
        if was_reset and offset is not None and stream is not None:
            self._consumed_bytes += max(0, stream.receiver.highest_offset - offset)

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        self._send_what_is_ready(builder)
        limit = self._local_max_data
        if limit.value - self._consumed_bytes <= limits.CONNECTION_WINDOW_BYTES // 2:
            limit.value = self._consumed_bytes + limits.CONNECTION_WINDOW_BYTES
        streams = self._local_max_streams_bidi
        if limit.value == limit.sent and streams.value == streams.sent:
            return
        # aioquic doubles the limit once half of it was received; hiding the count switches that off.
        received, limit.used = limit.used, 0
        try:
            super()._write_connection_limits(builder, space)
        finally:
            limit.used = received

    def _write_stream_limits(
        self,
        builder: QuicPacketBuilder,
        space: QuicPacketSpace,  # noqa: ARG002 (aioquic's signature)
        stream: QuicStream,
    ) -> None:
        assert stream.stream_id is not None
        offset = self._read_offsets.get(stream.stream_id)
        if offset is None or stream.receiver.is_finished:
            return
        if stream.max_stream_data_local - offset <= limits.STREAM_WINDOW_BYTES // 2:
            stream.max_stream_data_local = offset + limits.STREAM_WINDOW_BYTES
        if stream.max_stream_data_local_sent != stream.max_stream_data_local:
            buffer = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
                handler=self._on_max_stream_data_delivery,
                handler_args=(stream,),
            )
            buffer.push_uint_var(stream.stream_id)
            buffer.push_uint_var(stream.max_stream_data_local)
            stream.max_stream_data_local_sent = stream.max_stream_data_local

    # --- datagram size -----------------------------------------------------------------------------
    @property
    def datagram_bytes(self) -> int:
        return self._max_datagram_size

    def set_datagram_bytes(self, size: int) -> None:
        size = max(
            limits.DATAGRAM_BYTES_MIN, min(size, self.peer_datagram_bytes_max, limits.DATAGRAM_BYTES_MAX)
        )
        self._max_datagram_size = size
        self._pacer.set_datagram_size(size)
        self._control.set_datagram_size(size)

    @property
    def path_swallows_datagrams(self) -> bool:
        return self._max_datagram_size > limits.DATAGRAM_BYTES_MIN and self._control.black_hole

    def probe_datagram(self, size: int, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """A padded PING of `size` bytes; `probe_results` later tells whether it arrived (RFC 8899)."""
        assert self._handshake_confirmed
        assert self.closing is None
        path = self._network_paths[0]
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            peer_cid=self._peer_cid.cid,
            version=self._version or QuicProtocolVersion.VERSION_1,
            is_client=self._is_client,
            max_datagram_size=size,
            packet_number=self._packet_number,
            spin_bit=self._spin_bit,
        )
        builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[tls.Epoch.ONE_RTT])
        buffer = builder.start_frame(QuicFrameType.PING, handler=self._on_probe, handler_args=(size,))
        buffer.push_bytes(bytes(builder.remaining_buffer_space))
        assert builder._packet is not None
        # A lost probe says something about the size, nothing about congestion (RFC 8899 section 3).
        builder._packet.in_flight = False
        return self._flush_builder(builder=builder, network_path=path, peer_cid=self._peer_cid.cid, now=now)

    def _on_probe(self, delivery: QuicDeliveryState, size: int) -> None:
        self.probe_results.append((size, delivery is QuicDeliveryState.ACKED))
