"""Congestion control and pacing for links from loopback to the far side of the world.

aioquic's Reno never stops growing where nothing is lost and its pacer then sends one packet at a time; here the
window is capped, stops growing where packets stand in a queue, and the pacer lets a burst through. The controller
also counts losses of large datagrams, from which a path that stopped carrying them is recognised (RFC 8899 section
4.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from aioquic.quic.congestion.base import register_congestion_control
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.recovery import QuicPacketPacer

from p2pnode import limits

NAME = "p2pnode-capped"

BLACK_HOLE_LOSSES = 4
"""RFC 8899 MAX_PROBES is 3; one more, since these are ordinary packets that congestion may drop."""

PACING_GAIN = 1.25
"""RFC 9002 section 7.7 recommends N = 1.25."""

QUEUE_S_GROW_MAX, QUEUE_S_MAX = 0.03, 0.06
"""Above the first the window stays, above the second it shrinks: a model that is copied must not delay tokens."""

QUEUE_INTERVAL_S = 0.1
"""CoDel's interval (RFC 8289): a queue that empties within it is a burst, not a standing one."""

RTT_MEMORY_S = 10.0
"""How long the shortest round trip is believed; routes change."""

WINDOW_BYTES_STANDING = 512 * 1024
"""Below this, queues do not count: a peer that is busy looks like one, and a smaller window would starve it."""

BURST_DATAGRAMS = 64
BURST_S = 0.002
"""A flush may send what the path takes in two milliseconds: timers of event loops are no finer than one."""


class StandingQueue:
    """How long packets wait on the path, without the bursts: least round trip now less least ever (of late)."""

    __slots__ = ("_ends_at", "_epoch_at", "_least", "_least_before", "_least_now", "delay_s")

    def __init__(self) -> None:
        self.delay_s = 0.0
        self._least = self._least_before = self._least_now = math.inf
        self._epoch_at = self._ends_at = 0.0

    def measure(self, now: float, rtt: float) -> bool:
        """True once an interval, when `delay_s` is new."""
        if now >= self._epoch_at:
            self._epoch_at = now + RTT_MEMORY_S
            self._least_before, self._least = self._least, math.inf
        self._least = min(self._least, rtt)
        self._least_now = min(self._least_now, rtt)
        if now < self._ends_at:
            return False
        self.delay_s = self._least_now - min(self._least, self._least_before)
        self._ends_at = now + max(QUEUE_INTERVAL_S, self._least_now)
        self._least_now = math.inf
        return True


class CappedReno(RenoCongestionControl):
    """NewReno with a largest window, which grows no queue that others would wait in."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self.queue = StandingQueue()
        self.large_lost = 0
        """Datagrams above the minimum size lost since one was acknowledged."""
        self.lost_since_pass = False
        """Something has to be sent again; cleared by whoever looked after it."""
        self.unusual_acked = False
        """A packet of aioquic's own making was acknowledged, not one of the short way."""

    def set_datagram_size(self, size: int) -> None:
        self._max_datagram_size = size
        self.large_lost = 0

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:  # noqa: ARG002 (aioquic's)
        """NewReno's, once for each packet and therefore without a call further up."""
        if packet.__class__ is QuicSentPacket:
            self.unusual_acked = True
        self.on_bytes_acked(packet.sent_bytes, packet)

    def on_bytes_acked(self, size: int, packet: QuicSentPacket) -> None:
        """`size` bytes of packets up to and including `packet`."""
        self.bytes_in_flight -= size
        if packet.sent_bytes > limits.DATAGRAM_BYTES_MIN:
            self.large_lost = 0
        window = self.congestion_window
        if window >= limits.CONGESTION_WINDOW_BYTES_MAX:
            self.congestion_window = limits.CONGESTION_WINDOW_BYTES_MAX
            return
        if self.queue.delay_s > QUEUE_S_GROW_MAX and window >= WINDOW_BYTES_STANDING:
            return
        assert packet.sent_time is not None
        if packet.sent_time <= self._congestion_recovery_start_time:
            return
        if self.ssthresh is None or window < self.ssthresh:
            self.congestion_window = window + size
            return
        self._congestion_stash += size
        if self._congestion_stash >= window:
            self._congestion_stash -= window
            self.congestion_window = window + self._max_datagram_size

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        super().on_rtt_measurement(now=now, rtt=rtt)
        if self.queue.measure(now, rtt) and self.queue.delay_s > QUEUE_S_MAX:
            shrunk = max(self.congestion_window * 3 // 4, WINDOW_BYTES_STANDING)
            if shrunk < self.congestion_window:
                self.congestion_window = self.ssthresh = shrunk

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        lost = list(packets)
        super().on_packets_lost(now=now, packets=lost)
        self._count(lost)

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        expired = list(packets)
        super().on_packets_expired(packets=expired)
        self._count(expired)

    def _count(self, packets: Iterable[QuicSentPacket]) -> None:
        self.lost_since_pass = True
        self.large_lost += sum(packet.sent_bytes > limits.DATAGRAM_BYTES_MIN for packet in packets)

    @property
    def black_hole(self) -> bool:
        """Whether the path seems to swallow large datagrams."""
        return self.large_lost >= BLACK_HOLE_LOSSES


class BurstPacer(QuicPacketPacer):
    """Leaky bucket that allows bursts; on short paths it is never the limit."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._tokens_bytes = float(BURST_DATAGRAMS * max_datagram_size)
        self._burst_bytes = self._tokens_bytes
        self._rate_bytes_s = 0.0
        self._filled_at = 0.0

    def set_datagram_size(self, size: int) -> None:
        self._max_datagram_size = size
        self._burst_bytes = max(float(BURST_DATAGRAMS * size), self._rate_bytes_s * BURST_S)

    def next_send_time(self, now: float) -> float | None:  # type: ignore[override]
        # aioquic's annotation says float, its code and its callers say None for "now".
        if self._rate_bytes_s == 0.0 or self._tokens_bytes > 0.0:
            return None
        self._fill(now)
        if self._tokens_bytes > 0.0:
            return None
        return now + (self._max_datagram_size - self._tokens_bytes) / self._rate_bytes_s

    def update_after_send(self, now: float) -> None:  # noqa: ARG002 (aioquic's signature)
        self._tokens_bytes -= self._max_datagram_size

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        self._rate_bytes_s = PACING_GAIN * congestion_window / max(smoothed_rtt, 1e-6)
        self._burst_bytes = max(
            float(BURST_DATAGRAMS * self._max_datagram_size), self._rate_bytes_s * BURST_S
        )

    def _fill(self, now: float) -> None:
        elapsed = now - self._filled_at
        self._tokens_bytes = min(self._tokens_bytes + elapsed * self._rate_bytes_s, self._burst_bytes)
        self._filled_at = now


register_congestion_control(NAME, CappedReno)
