"""The short ways do what aioquic does: same bytes, same refusals, under any frames a peer may send."""

from __future__ import annotations

import random

import pytest
from aioquic.quic import events
from aioquic.quic.connection import QuicConnectionState
from aioquic.quic.packet_builder import QuicDeliveryState
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.transport.quic_core import QuicCore
from p2pnode.transport.quic_fast import FastQuicCore
from p2pnode.transport.quic_fast_packet import decode_varint, encode_varint
from tests.kit.quic_pair import CLIENT, SERVER, Pair, opened


@given(st.integers(0, (1 << 62) - 1), st.binary(max_size=3))
def test_varints_round_trip(value: int, rest: bytes) -> None:
    data = encode_varint(value)
    assert decode_varint(b"x" + data + rest, 1) == (value, 1 + len(data))
    with pytest.raises(IndexError):
        decode_varint(data[:-1], 0)


def stream_frame(
    stream_id: int, offset: int, data: bytes, *, fin: bool = False, length: int | None = None
) -> bytes:
    size = len(data) if length is None else length
    return (
        bytes((0x0E | fin,)) + encode_varint(stream_id) + encode_varint(offset) + encode_varint(size) + data
    )


OFFSET = 5
WINDOW = limits.STREAM_WINDOW_BYTES

PACKETS = {
    "nothing": [b""],
    "padding_only": [bytes(30)],
    "in_order": [stream_frame(0, OFFSET, b"abc")],
    "two_frames": [stream_frame(0, OFFSET, b"abc") + stream_frame(0, OFFSET + 3, b"def")],
    "ping_after_data": [stream_frame(0, OFFSET, b"abc") + b"\x01"],
    "data_after_padding": [b"\0\0" + stream_frame(0, OFFSET, b"abc")],
    "no_length": [b"\x0c" + encode_varint(0) + encode_varint(OFFSET) + b"to the end"],
    "no_offset_new_stream": [b"\x0a" + encode_varint(4) + encode_varint(3) + b"abc"],
    "gap_then_filled": [stream_frame(0, OFFSET + 3, b"def"), stream_frame(0, OFFSET, b"abc")],
    "overlap": [stream_frame(0, OFFSET, b"abc"), stream_frame(0, OFFSET - 2, b"loabcdef")],
    "duplicate": [stream_frame(0, OFFSET, b"abc"), stream_frame(0, OFFSET, b"abc")],
    "empty_frame": [stream_frame(0, OFFSET, b"")],
    "fin": [stream_frame(0, OFFSET, b"abc", fin=True)],
    "fin_alone": [stream_frame(0, OFFSET, b"", fin=True)],
    "data_after_fin": [stream_frame(0, OFFSET, b"abc", fin=True), stream_frame(0, OFFSET + 3, b"x")],
    "fin_moves": [stream_frame(0, OFFSET, b"abc", fin=True), stream_frame(0, OFFSET, b"ab", fin=True)],
    "length_beyond_packet": [stream_frame(0, OFFSET, b"abc", length=4)],
    "length_huge": [stream_frame(0, OFFSET, b"abc", length=(1 << 62) - 1)],
    "offset_huge": [stream_frame(0, (1 << 62) - 1, b"abc")],
    "beyond_stream_window": [stream_frame(0, WINDOW - 1, b"abc")],
    "beyond_connection_window": [
        stream_frame(stream_id, WINDOW - 100, bytes(100)) for stream_id in (0, 4, 8)
    ],
    "too_many_streams": [stream_frame(4 * limits.STREAMS_PER_CONNECTION_MAX, 0, b"x")],
    "our_stream": [stream_frame(1, 0, b"x")],
    "our_unidirectional_stream": [stream_frame(3, 0, b"x")],
    "unidirectional_stream": [stream_frame(2, 0, b"x")],
    "truncated_stream_id": [b"\x0e\x40"],
    "truncated_offset": [b"\x0e\x00\x80\x00"],
    "truncated_length": [b"\x0e\x00\x05"],
    "unknown_frame": [stream_frame(0, OFFSET, b"abc") + b"\x3f\x00"],
    "frame_type_not_minimal": [b"\x40\x0e\x00\x05\x01a"],
    "ack_of_nothing_sent": [b"\x02\x7f\x00\x00\x00"],
    "ack_below_zero": [b"\x02\x01\x00\x00\x05"],
    "ack_with_gaps": [b"\x02\x05\x00\x01\x00\x00\x00"],
    "ack_gap_below_zero": [b"\x02\x05\x00\x01\x00\x3f\x3f"],
    "ack_truncated": [b"\x02\x05\x00"],
    "ack_many_ranges": [b"\x02\x7f\xff\x00\x40\x64\x00" + b"\0\0" * 100],
    "ack_ecn": [b"\x03\x00\x00\x00\x00\x00\x00\x00"],
    "reset": [b"\x04\x00\x07" + encode_varint(OFFSET)],
    "reset_below_received": [b"\x04\x00\x07\x01"],
    "stop_sending": [b"\x05\x00\x07"],
    "max_data": [b"\x10\x80\xff\xff\xff"],
    "handshake_done_from_client": [b"\x1e"],
    "new_token_from_client": [b"\x07\x01\x00"],
    "crypto": [b"\x06\x00\x04abcd"],
    "path_challenge": [b"\x1a12345678"],
    "retire_unknown_id": [b"\x19\x3f"],
    "close": [b"\x1d\x00\x02no"],
    "datagram": [b"\x31\x03abc"],
}


def outcome(core: type[QuicCore], packets: list[bytes]) -> tuple[object, ...]:
    pair = opened(core)
    for frames in packets:
        pair.inject(frames)
    seen = pair.server_events()
    closing = pair.server.closing
    if closing is None:
        pair.server.settle_received() if isinstance(pair.server, FastQuicCore) else None
    stream = pair.server._streams.get(0)
    return (
        [repr(event) for event in seen if not isinstance(event, events.ConnectionIdIssued)],
        closing,
        pair.server._local_max_data.used,
        None if stream is None else (stream.receiver.highest_offset, stream.receiver._buffer_start),
        [(r.start, r.stop) for r in pair.server._spaces[_one_rtt()].ack_queue] if closing is None else None,
    )


def _one_rtt() -> object:
    from aioquic import tls

    return tls.Epoch.ONE_RTT


@pytest.mark.parametrize("case", PACKETS)
def test_both_ways_agree(case: str) -> None:
    """Events, errors, flow control and acknowledgements are the same with and without the short way."""
    assert outcome(FastQuicCore, PACKETS[case]) == outcome(QuicCore, PACKETS[case])


@settings(max_examples=25)
@given(st.integers(0, 1 << 32))
def test_both_ways_agree_on_mutations(seed: int) -> None:
    rng = random.Random(seed)
    packets = []
    for _ in range(rng.randrange(1, 6)):
        frames = bytearray(
            b"".join(rng.choice(PACKETS[rng.choice(list(PACKETS))]) for _ in range(rng.randrange(1, 4)))
        )
        for _ in range(rng.randrange(3)):
            if frames:
                frames[rng.randrange(len(frames))] = rng.randrange(256)
        packets.append(bytes(frames[:1000]) or b"\0")
    assert outcome(FastQuicCore, packets) == outcome(QuicCore, packets)


@pytest.mark.slow
def test_a_hundred_thousand_mutated_packets() -> None:
    """No sequence of frames makes the machine raise; what ends it is an error with a name."""
    rng = random.Random(1)
    pair = opened(FastQuicCore)
    kinds = [packet for packets in PACKETS.values() for packet in packets]
    for index in range(100_000):
        frames = bytearray(rng.choice(kinds) or b"\0")
        for _ in range(rng.randrange(4)):
            frames[rng.randrange(len(frames))] = rng.randrange(256)
        pair.inject(bytes(frames))
        if pair.server.closing is not None:
            if pair.server._state is not QuicConnectionState.CONNECTED:
                pair = opened(FastQuicCore)
                continue
            # Take the error back rather than make a new handshake for each.
            pair.server._close_event, pair.server._close_pending = None, False
        if index % 50 == 0:
            pair.server.datagrams_to_send(pair.now)


@pytest.mark.parametrize("core", [QuicCore, FastQuicCore])
@pytest.mark.parametrize("seed", range(6))
def test_transfer_over_a_lossy_wire(core: type[QuicCore], seed: int) -> None:
    """Sans-I/O: datagrams are lost, doubled and swapped; both directions arrive whole."""
    rng = random.Random(seed)
    pair = opened(core)
    data = rng.randbytes(120_000)
    pair.client.send_stream_data(0, data, end_stream=True)
    pair.server.send_stream_data(0, data[::-1], end_stream=True)
    got: dict[QuicCore, bytearray] = {pair.client: bytearray(), pair.server: bytearray()}
    for core_ in got:
        if isinstance(core_, FastQuicCore):
            core_.sink = lambda _stream_id, piece, into=got[core_]: bool(into.extend(piece) or True)
    addresses = {pair.client: ("192.0.2.2", 2), pair.server: ("192.0.2.1", 1)}
    for _ in range(3000):
        pair.now += 0.01
        wire = []
        for sender, receiver in ((pair.client, pair.server), (pair.server, pair.client)):
            at = sender.get_timer()
            if at is not None and at <= pair.now:
                sender.handle_timer(pair.now)
            wire += [(receiver, datagram) for datagram, _ in sender.datagrams_to_send(pair.now)]
        rng.shuffle(wire)
        for receiver, datagram in wire:
            for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 2))):
                receiver.receive_datagram(datagram, addresses[receiver], pair.now)
        for core_, into in got.items():
            while (event := core_.next_event()) is not None:
                if isinstance(event, events.StreamDataReceived):
                    into += event.data
        if all(len(into) == len(data) for into in got.values()):
            break
    assert bytes(got[pair.server]) == data
    assert bytes(got[pair.client]) == data[::-1]


def test_key_updates_go_through() -> None:
    pair = opened(FastQuicCore)
    for _ in range(3):
        pair.client.request_key_update()
        pair.client.send_stream_data(0, b"x" * 3000)
        pair.roundtrip()
        received = [event for event in pair.server_events() if isinstance(event, events.StreamDataReceived)]
        assert sum(len(event.data) for event in received) == 3000


def test_bytes_in_flight_return_to_zero() -> None:
    """Bookkeeping of the short way adds up: nothing stays in flight, nothing stays in the send buffer."""
    pair = opened(FastQuicCore)
    client = pair.client
    assert isinstance(client, FastQuicCore)
    before = client.packets_fast
    client.send_stream_data(0, bytes(200_000))
    pair.roundtrip(400)
    assert client.packets_fast > before
    assert client._loss.bytes_in_flight == 0
    assert client._streams[0].sender._buffer_start == 5 + 200_000
    assert client.unsent_bytes(0) == 0
    assert pair.server._streams[0].receiver.highest_offset == 5 + 200_000


@pytest.mark.parametrize("core", [QuicCore, FastQuicCore])
def test_connection_ids_are_known_before_the_peer_may_use_them(core: type[QuicCore]) -> None:
    """quinn switches at once: a route that is late looks like a connection that is gone."""
    pair = Pair(core)
    told: list[bytes] = []
    pair.server.on_connection_id = told.append
    pair.client.change_connection_id()
    pair.client.send_ping(1)
    for data, _ in pair.client.datagrams_to_send(pair.now):
        pair.server.receive_datagram(data, ("192.0.2.1", 1), pair.now)
    assert told == [host_id.cid for host_id in pair.server._host_cids if not host_id.was_sent]
    assert len(told) == 1


@pytest.mark.parametrize("blocked_by", ["pacer", "window", "nothing"])
def test_a_retransmission_that_has_to_wait_waits(blocked_by: str) -> None:
    """Lost data goes aioquic's way; while that is held up, the two ways do not call each other for ever."""
    pair = opened(FastQuicCore)
    client = pair.client
    assert isinstance(client, FastQuicCore)
    client.send_stream_data(0, bytes(10_000))
    sent = [data for data, _ in client.datagrams_to_send(pair.now)]
    stream = client._streams[0]
    assert client._quiet
    stream.sender.on_data_delivery(QuicDeliveryState.LOST, 5, 1000, False)
    client._control.lost_since_pass = True
    if blocked_by == "pacer":
        client._pacer.update_rate(congestion_window=10_000, smoothed_rtt=1.0)
        client._pacer._tokens_bytes, client._pacer._filled_at = -10_000.0, pair.now
    elif blocked_by == "window":
        client._control.bytes_in_flight = client._control.congestion_window
    pair.server._spaces[_one_rtt()].ack_queue.add(900_000, 900_001)
    again = [data for data, _ in client.datagrams_to_send(pair.now)]
    assert bool(again) == (blocked_by == "nothing")
    assert (client._pacing_at is not None) == (blocked_by == "pacer")
    assert client.get_timer() is not None
    client._control.bytes_in_flight = 0
    client._pacer._tokens_bytes = 1e9
    again += [data for data, _ in client.datagrams_to_send(pair.now)]
    assert again
    for data in [*again, *sent]:
        pair.server.receive_datagram(data, ("192.0.2.1", 1), pair.now)
    received = [event for event in pair.server_events() if isinstance(event, events.StreamDataReceived)]
    assert sum(len(event.data) for event in received) == 10_000


@pytest.mark.parametrize("core", [QuicCore, FastQuicCore])
def test_an_answer_takes_the_acknowledgement_along(core: type[QuicCore]) -> None:
    """A message and its answer are two packets, not four: nothing waits for an acknowledgement's timer."""
    pair = opened(core)
    pair.server.send_stream_data(0, b"first answer")
    pair.roundtrip()
    while pair.client.next_event() is not None:
        pass
    before = pair.client._packet_number, pair.server._packet_number
    for _ in range(20):
        pair.now += 0.0002
        for sender, receiver, address in (
            (pair.client, pair.server, CLIENT),
            (pair.server, pair.client, SERVER),
        ):
            sender.send_stream_data(0, b"message")
            (packet,) = sender.datagrams_to_send(pair.now)
            receiver.receive_datagram(packet[0], address, pair.now)
            while receiver.next_event() is not None:
                pass
    assert (pair.client._packet_number, pair.server._packet_number) == (before[0] + 20, before[1] + 20)
    assert pair.client._loss._cc.bytes_in_flight == 0  # the last answer told
