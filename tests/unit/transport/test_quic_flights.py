"""Messages leave in flights; the cheaper forms of what aioquic does for each packet do the same."""

from __future__ import annotations

import pytest
from aioquic import tls
from aioquic._crypto import CryptoError, HeaderProtection
from aioquic.quic import events
from aioquic.quic.connection import NetworkAddress, QuicConnection
from aioquic.quic.packet_builder import QuicDeliveryState
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.transport.quic_core import QuicCore
from p2pnode.transport.quic_fast import FastQuicCore
from p2pnode.transport.quic_flights import FLIGHT_DATAGRAMS_FIRST, ShortHeaderProtection
from tests.kit.quic_pair import CLIENT, opened

CIPHERS = {b"aes-128-ecb": 16, b"aes-256-ecb": 32, b"chacha20": 32}


@pytest.mark.parametrize("cipher", CIPHERS)
@given(first=st.integers(0, 255), cid=st.binary(max_size=20), payload=st.binary(min_size=20, max_size=60))
def test_header_protection_is_aioquics(cipher: bytes, first: int, cid: bytes, payload: bytes) -> None:
    theirs = HeaderProtection(cipher, bytes(range(CIPHERS[cipher])))
    ours = ShortHeaderProtection(theirs)
    head = bytes((first,)) + cid + b"\x01\x02\x03\x04"[: (first & 3) + 1]
    packet = theirs.apply(head, payload)
    assert ours.apply(head, payload) == packet
    assert ours.remove(packet, 1 + len(cid)) == theirs.remove(packet, 1 + len(cid))
    # Whatever comes from the network, not only what protection made.
    raw = head + payload
    assert ours.remove(raw, 1 + len(cid)) == theirs.remove(raw, 1 + len(cid))
    with pytest.raises(CryptoError):
        ours.remove(raw[: 1 + len(cid) + 19], 1 + len(cid))


@pytest.mark.parametrize("size", [100, 2000, 2400, 8192, 100_000])
def test_a_message_leaves_while_its_rest_is_built(size: int) -> None:
    pair = opened()
    client = pair.client
    flights: list[list[tuple[bytes, NetworkAddress]]] = []
    client.send_early = flights.append
    first = client._packet_number
    client._control.congestion_window = 1_000_000
    client.send_stream_data(0, bytes(size))
    left = client.datagrams_to_send(pair.now)
    packets = client._packet_number - first
    assert sum(map(len, flights)) + len(left) == packets
    early = [len(flight) for flight in flights]
    full = [FLIGHT_DATAGRAMS_FIRST << n for n in range(len(early))]
    # All but the last are full; the last is what was left.
    assert early[:-1] == full[: len(early) - 1]
    assert left == [], "what ends the data is not kept back"
    for flight in flights:
        for data, address in flight:
            assert address == client._network_paths[0].addr
            pair.server.receive_datagram(data, CLIENT, pair.now)
    received = [event for event in pair.server_events() if isinstance(event, events.StreamDataReceived)]
    assert sum(len(event.data) for event in received) == size
    pair.roundtrip()
    assert client._control.bytes_in_flight == 0, "early packets are known to loss recovery"


def test_nothing_leaves_early_before_the_handshake_is_confirmed() -> None:
    """What an address has not proved yet is counted at the end of a pass (anti-amplification)."""
    early: list[object] = []
    pair = opened()
    pair.server.send_early = early.append
    pair.server.send_stream_data(0, bytes(5000))
    pair.server._network_paths[0].is_validated = False
    pair.server._network_paths[0].bytes_received = 10_000
    assert len(pair.server.datagrams_to_send(pair.now)) > 2
    assert early == []


@pytest.mark.parametrize("core", [QuicCore, FastQuicCore])
def test_an_acknowledgement_alone_can_wait_for_its_time(core: type[QuicCore]) -> None:
    pair = opened(core)
    server = pair.server
    assert not server.can_wait(pair.now), "nothing came"
    pair.client.send_stream_data(0, b"more")
    for data, _ in pair.client.datagrams_to_send(pair.now):
        server.receive_datagram(data, CLIENT, pair.now)
    assert server.can_wait(pair.now)
    at = server._spaces[tls.Epoch.ONE_RTT].ack_at
    assert at is not None
    assert server.get_timer() == at, "and is not forgotten"
    assert not server.can_wait(at)
    server.send_stream_data(0, b"answer")
    assert not server.can_wait(pair.now), "data takes it along"
    assert len(server.datagrams_to_send(pair.now)) == 1
    assert server._spaces[tls.Epoch.ONE_RTT].ack_at is None


def test_lost_packets_and_an_end_do_not_wait() -> None:
    pair = opened()
    server = pair.server
    server.send_stream_data(0, b"answer")
    server.datagrams_to_send(pair.now)
    pair.client.send_stream_data(0, b"more")
    for data, _ in pair.client.datagrams_to_send(pair.now):
        server.receive_datagram(data, CLIENT, pair.now)
    assert server.can_wait(pair.now)
    server._streams[0].sender.on_data_delivery(QuicDeliveryState.LOST, 0, 6, False)
    assert not server.can_wait(pair.now)
    server.datagrams_to_send(pair.now)
    server.close()
    assert not server.can_wait(pair.now)


@given(
    rtt=st.floats(0.001, 60),
    variance=st.floats(0, 60),
    own=st.floats(1, 60),
    of_peer=st.none() | st.floats(1, 60),
)
def test_the_idle_limit_is_aioquics(rtt: float, variance: float, own: float, of_peer: float | None) -> None:
    core = PAIR.client
    loss = core._loss
    core._configuration.idle_timeout, core._remote_max_idle_timeout = own, of_peer
    loss._rtt_smoothed, loss._rtt_variance = rtt, variance
    for loss._rtt_initialized in (True, False):
        assert core._idle_timeout() == QuicConnection._idle_timeout(core)


PAIR = opened()
