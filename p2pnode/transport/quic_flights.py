"""When datagrams of aioquic's making leave, and cheaper forms of what it does for each packet.

A message of several packets is sent while its rest is still being built, so that both sides work at once; an
acknowledgement rides with the answer; nothing is built when there is nothing to say. The packets stay aioquic's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aioquic import tls
from aioquic._crypto import HeaderProtection
from aioquic.quic.connection import NetworkAddress, QuicConnection
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import K_GRANULARITY

from p2pnode.transport import quic_congestion

PRIVATE_NAMES = {
    "aioquic.quic.connection.QuicConnection": (
        "_close_event",
        "_configuration",
        "_cryptos",
        "_handshake_confirmed",
        "_idle_timeout",
        "_loss",
        "_max_datagram_size",
        "_network_paths",
        "_remote_max_idle_timeout",
        "_spaces",
        "_streams_queue",
    ),
    "aioquic.quic.recovery.QuicPacketRecovery": (
        "_cc",
        "_pacer",
        "_rtt_initialized",
        "_rtt_smoothed",
        "_rtt_variance",
    ),
    "aioquic.quic.packet_builder.QuicPacketBuilder": ("_datagrams",),
    "aioquic._crypto.HeaderProtection": ("_encryptor", "_is_chacha20", "_mask"),
}
"""Names of aioquic's inside that are touched here."""

FLIGHT_DATAGRAMS_FIRST = 1
"""Sent while the others are built: its receiver wakes and reads meanwhile. With 1, 2 and 3 a round trip of 8 KiB took
0.40, 0.44 and 0.46 ms (cores awake, `bench.transport --only "API 1452,plain core 1452" --parts 8192`)."""


class ShortHeaderProtection(HeaderProtection):
    """aioquic's copies whole packets to change three bytes; this one does not, for the usual short header.

    It takes the keyed cipher over; whatever has another header goes aioquic's way (RFC 9001 section 5.4).
    """

    def __init__(self, other: HeaderProtection) -> None:
        self._is_chacha20, self._encryptor = other._is_chacha20, other._encryptor

    def apply(self, plain_header: bytes, protected_payload: bytes) -> bytes:
        first = plain_header[0]
        if first & 0x83 != 1:
            return super().apply(plain_header, protected_payload)
        mask = self._mask(protected_payload[2:18])
        return b"%c%b%c%c%b" % (
            first ^ mask[0] & 0x1F,
            plain_header[1:-2],
            plain_header[-2] ^ mask[1],
            plain_header[-1] ^ mask[2],
            protected_payload,
        )

    def remove(self, packet: bytes, pn_offset: int) -> tuple[bytes, int]:
        sample = packet[pn_offset + 4 : pn_offset + 20]
        if packet[0] & 0x80 or len(sample) < 16:
            return super().remove(packet, pn_offset)
        mask = self._mask(sample)
        first = packet[0] ^ mask[0] & 0x1F
        if first & 3 != 1:
            return super().remove(packet, pn_offset)
        high, low = packet[pn_offset] ^ mask[1], packet[pn_offset + 1] ^ mask[2]
        return b"%c%b%c%c" % (first, packet[1:pn_offset], high, low), high << 8 | low


class FlightCore(QuicConnection):
    """aioquic's connection with our congestion control, sending in flights."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.send_early: Callable[[list[tuple[bytes, NetworkAddress]]], None] | None = None
        """Sends datagrams of a pass that is still going on; the pass gives back the others."""
        self._gone_count = self._flight_datagrams = 0
        self._is_protection_short = False
        self._pacer = quic_congestion.BurstPacer(max_datagram_size=self._max_datagram_size)
        self._loss._pacer = self._pacer
        control = self._loss._cc
        assert isinstance(control, quic_congestion.CappedReno)
        self._control = control

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """aioquic lets an acknowledgement wait for its time even when data leaves before; here it goes along.

        Without that each message on an open stream costs both sides a packet and a timer of its own.
        """
        space = self._spaces[tls.Epoch.ONE_RTT]
        at = space.ack_at
        if at is not None and at > now and self._handshake_confirmed and self._has_data():
            space.ack_at = now
        self._control.lost_since_pass = False
        if self._handshake_confirmed and not self._is_protection_short:
            self._shorten_protection()
        self._gone_count, self._flight_datagrams = 0, FLIGHT_DATAGRAMS_FIRST
        datagrams = super().datagrams_to_send(now)
        return datagrams[self._gone_count :]

    def _shorten_protection(self) -> None:
        """Once for a connection: updates of its keys leave header protection as it is."""
        self._is_protection_short = True
        pair = self._cryptos[tls.Epoch.ONE_RTT]
        for context in (pair.send, pair.recv):
            assert context.hp is not None
            context.hp = ShortHeaderProtection(context.hp)

    def _send_what_is_ready(self, builder: QuicPacketBuilder) -> None:
        """Called before each packet of a pass is begun. Flights double, which leaves long runs their few system
        calls; a datagram that is not full is the last of its data and leaves at once."""
        ready, gone = builder._datagrams, self._gone_count
        count = len(ready) - gone
        if count == 0 or (count < self._flight_datagrams and len(ready[-1]) >= self._max_datagram_size):
            return
        path = self._network_paths[0]
        if self.send_early is not None and self._handshake_confirmed and path.is_validated:
            address = path.addr
            self._gone_count, self._flight_datagrams = len(ready), self._flight_datagrams * 2
            self.send_early([(datagram, address) for datagram in ready[gone:]])

    def can_wait(self, now: float) -> bool:
        """After a batch of datagrams: whether an acknowledgement is all there is to say, and not due yet.

        Its timer or the answer that a reader is about to write says it soon enough, and saves a pass.
        """
        at = self._spaces[tls.Epoch.ONE_RTT].ack_at
        return (
            at is not None
            and at > now
            and self._handshake_confirmed
            and self._close_event is None
            and len(self._network_paths) == 1
            and not self._control.lost_since_pass
            and not self._has_data()
        )

    def _has_data(self) -> bool:
        return any(not stream.sender.buffer_is_empty for stream in self._streams_queue)

    def _idle_timeout(self) -> float:
        """aioquic's, in one call instead of three: it asks for each packet that comes."""
        loss = self._loss
        if not loss._rtt_initialized:
            return super()._idle_timeout()
        own, of_peer = self._configuration.idle_timeout, self._remote_max_idle_timeout
        if of_peer is not None and of_peer < own:
            own = of_peer
        probe = loss._rtt_smoothed + max(4 * loss._rtt_variance, K_GRANULARITY) + loss.max_ack_delay
        return max(own, 3 * probe)
