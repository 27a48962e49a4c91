"""The congestion window on a simulated link: it fills it, and leaves no long queue in front of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from p2pnode import limits
from p2pnode.transport import quic_congestion as qc
from p2pnode.transport.quic_congestion import BurstPacer, CappedReno, StandingQueue

SIZE = 1452


@dataclass
class Packet:
    sent_time: float
    sent_bytes: int = SIZE


def fill(
    control: CappedReno, *, rate_bytes_s: float, rtt_s: float, seconds: float, start: float = 100.0
) -> float:
    """A sender that always has data, a link with an endless queue -> the last round trip."""
    now, free_at, rtt = start, start, rtt_s
    travelling: list[tuple[float, Packet]] = []
    while now < start + seconds:
        while control.bytes_in_flight + SIZE <= control.congestion_window:
            packet = Packet(now)
            control.on_packet_sent(packet=packet)
            free_at = max(free_at, now) + SIZE / rate_bytes_s
            travelling.append((free_at + rtt_s, packet))
        at, packet = travelling.pop(0)
        now = max(now, at)
        rtt = now - packet.sent_time
        control.on_rtt_measurement(now=now, rtt=rtt)
        control.on_packet_acked(now=now, packet=packet)
    for _, packet in travelling:
        control.on_packets_expired(packets=[packet])
    return rtt


@pytest.mark.parametrize("rate_mbit", [20, 100, 300])
@pytest.mark.parametrize("rtt_ms", [2, 20, 80])
def test_the_link_is_filled_and_the_queue_is_short(rate_mbit: int, rtt_ms: int) -> None:
    """Without the limit a window of 4 MiB would stand 1.6 s before 20 Mbit/s."""
    rate, rtt = rate_mbit * 125_000.0, rtt_ms / 1e3
    control = CappedReno(max_datagram_size=SIZE)
    last = fill(control, rate_bytes_s=rate, rtt_s=rtt, seconds=8)
    assert last < rtt + max(qc.QUEUE_S_MAX, qc.WINDOW_BYTES_STANDING / rate) + 0.03
    assert control.congestion_window >= min(rate * rtt, limits.CONGESTION_WINDOW_BYTES_MAX) * 0.9


def test_a_fast_link_reaches_the_cap() -> None:
    control = CappedReno(max_datagram_size=SIZE)
    fill(control, rate_bytes_s=2e9, rtt_s=0.001, seconds=0.2)
    assert control.congestion_window == limits.CONGESTION_WINDOW_BYTES_MAX


def test_a_queue_of_others_leaves_a_window() -> None:
    control = CappedReno(max_datagram_size=SIZE)
    control.congestion_window = 1_000_000
    control.on_rtt_measurement(now=0.0, rtt=0.01)
    for tick in range(1, 60):
        control.on_rtt_measurement(now=tick / 10, rtt=0.5)
    assert control.congestion_window == qc.WINDOW_BYTES_STANDING


def test_jitter_is_no_queue() -> None:
    """One short round trip in each interval shows that nothing stands."""
    queue = StandingQueue()
    for tick in range(500):
        queue.measure(tick / 100, 0.005 if tick % 5 == 0 else 0.2)
    assert queue.delay_s == 0.0


def test_a_longer_route_is_believed_after_a_while() -> None:
    queue = StandingQueue()
    for tick in range(100):
        queue.measure(tick / 10, 0.01)
    for tick in range(100, 350):
        queue.measure(tick / 10, 0.15)
    assert queue.delay_s == 0.0


def test_loss_halves_and_acknowledgements_grow() -> None:
    control = CappedReno(max_datagram_size=SIZE)
    control.congestion_window, control.ssthresh = 100_000, 100_000
    for _ in range(70):
        control.on_packet_sent(packet=Packet(1.0))
    for _ in range(69):
        control.on_packet_acked(now=2.0, packet=Packet(1.0))
    assert control.congestion_window == 100_000 + SIZE
    control.on_packets_lost(now=3.0, packets=[Packet(1.0)])
    assert control.congestion_window == (100_000 + SIZE) // 2
    assert control.bytes_in_flight == 0
    assert control.lost_since_pass
    control.on_packet_sent(packet=Packet(2.0))
    control.on_packet_acked(now=4.0, packet=Packet(2.0))
    assert control.congestion_window == (100_000 + SIZE) // 2


def test_the_pacer_lets_bursts_through_and_then_paces() -> None:
    pacer = BurstPacer(max_datagram_size=SIZE)
    assert pacer.next_send_time(0.0) is None
    pacer.update_rate(congestion_window=100_000, smoothed_rtt=0.1)
    sent = 0
    while pacer.next_send_time(0.0) is None:
        pacer.update_after_send(0.0)
        sent += 1
    assert sent == qc.BURST_DATAGRAMS
    at = pacer.next_send_time(0.0)
    assert at == pytest.approx(SIZE / (qc.PACING_GAIN * 1e6))
    assert pacer.next_send_time(0.01) is None
    pacer.set_datagram_size(9000)
    assert pacer.next_send_time(10.0) is None
