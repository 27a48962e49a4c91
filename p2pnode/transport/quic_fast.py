"""The short way in: 1-RTT packets with in-order stream data and plain acknowledgements, read without aioquic's
parser. Anything else (other frames, gaps, ends, new streams, new paths, key updates) is given to aioquic, whole
or from the frame on that is not ordinary; the checks that protect memory are the same on both ways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aioquic import tls
from aioquic.quic import events
from aioquic.quic.connection import (
    NetworkAddress,
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.packet import decode_packet_number
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketSpace
from cryptography.exceptions import InvalidTag

from p2pnode.transport.quic_fast_packet import SentPacket, decode_varint
from p2pnode.transport.quic_fast_send import FastSendCore

_CID_END = 9
"""A short header is one byte and our connection id of eight."""

_IDLE_TOUCH_S = 0.25

Sink = Callable[[int, bytes], bool]
"""Takes bytes of a stream straight to its reader; False when they must go the long way."""


def _no_sink(_stream_id: int, _data: bytes) -> bool:
    return False


class FastQuicCore(FastSendCore):
    """Both short ways."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.sink: Sink = _no_sink
        self._idle_touched_at = 0.0
        self._run_start = self._run_end = 0
        """Packet numbers received in order and not yet noted, half-open."""

    def receive_datagram(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        if (
            not self._quiet
            or len(data) < _CID_END + 20
            or data[0] & 0xC0 != 0x40
            or data[1:_CID_END] != self.host_cid
            or self._network_paths[0].addr != addr
            or not self._receive_fast(data, now)
        ):
            self._quiet = False
            self.settle_received()
            super().receive_datagram(data, addr, now)

    def _receive_fast(self, data: bytes, now: float) -> bool:
        """False when nothing was done and aioquic should look at the packet."""
        space = self._short_space
        expected = space.expected_packet_number
        opened = self._unprotect(data, expected)
        if opened is None:
            return False
        number, plain = opened
        if plain is None:
            # As in aioquic: dropped, whoever sent it.
            return True
        is_next = number == expected == self._run_end
        if not is_next:
            self.settle_received()
            if number in space.received_packets:
                return True
        is_ack_eliciting = self._read_frames(plain, now)
        if self._state is not QuicConnectionState.CONNECTED or self._close_pending:
            return True
        if is_next:
            self._run_end = space.expected_packet_number = number + 1
        else:
            self._note_received(number)
        if number >= space.largest_received_packet:
            space.largest_received_packet = number
            space.largest_received_time = now
        self._ack_eliciting_sent_since_receipt = False
        if now - self._idle_touched_at > _IDLE_TOUCH_S:
            self._idle_touched_at = now
            self._close_at = now + self._idle_timeout()
        if is_ack_eliciting and space.ack_at is None:
            space.ack_at = now + self._ack_delay
        return True

    def _unprotect(self, data: bytes, expected: int) -> tuple[int, bytes | None] | None:
        """-> (packet number, frames); frames None when forged; None when aioquic should look (RFC 9001 section 5)."""
        crypto = self._short_crypto.recv
        aead, protection = crypto.aead, crypto.hp
        if aead is None or protection is None:
            return None
        mask = protection._mask(data[13:29])
        first = data[0] ^ mask[0] & 0x1F
        if first & 0x18 or (first & 4) >> 2 != crypto.key_phase:
            return None
        if first & 3 == 1:
            truncated = (data[9] << 8 | data[10]) ^ (mask[1] << 8 | mask[2])
            number = expected & ~0xFFFF | truncated
            if not -0x8000 < number - expected <= 0x8000:
                number = decode_packet_number(truncated, 16, expected)
            head = b"%c%b%c%c" % (first, data[1:_CID_END], truncated >> 8, truncated & 0xFF)
            payload = data[11:]
        else:
            size = (first & 3) + 1
            end = _CID_END + size
            truncated = int.from_bytes(data[_CID_END:end], "big") ^ int.from_bytes(mask[1 : 1 + size], "big")
            number = decode_packet_number(truncated, size * 8, expected)
            head = bytes((first,)) + data[1:_CID_END] + truncated.to_bytes(size, "big")
            payload = data[end:]
        try:
            return number, aead._aead.decrypt((aead._iv ^ number).to_bytes(12, "big"), payload, head)
        except InvalidTag:
            return number, None

    def _note_received(self, number: int) -> None:
        space = self._short_space
        if number >= space.expected_packet_number:
            space.expected_packet_number = number + 1
        space.ack_queue.add(number, number + 1)
        space.received_packets.add(number)
        if len(space.ack_queue) > MAX_ACK_RANGES:
            space.ack_queue.shift()
        self._run_start = self._run_end = space.expected_packet_number

    def settle_received(self) -> None:
        """Packets that came one after the other are noted together, before anyone looks at the notes."""
        start, end = self._run_start, self._run_end
        if start < end:
            space = self._short_space
            space.ack_queue.add(start, end)
            space.received_packets._received.update(range(start, end))
            space.received_packets.add(end - 1)
            if len(space.ack_queue) > MAX_ACK_RANGES:
                space.ack_queue.shift()
            self._run_start = end

    def opened_short_way(self) -> None:
        self._run_start = self._run_end = self._short_space.expected_packet_number

    def _read_frames(self, plain: bytes, now: float) -> bool:
        """Every frame of a packet -> whether it wants an acknowledgement."""
        index, end = 0, len(plain)
        is_ack_eliciting = False
        while index < end:
            kind = plain[index]
            after = 0
            if 0x08 <= kind <= 0x0F:
                after = self._read_stream(plain, index, kind)
                is_ack_eliciting = is_ack_eliciting or after > 0
            elif kind == 0x02:
                after = self._read_ack(plain, index, now)
            if after == 0:
                return self._read_rest(plain[index:], now) or is_ack_eliciting
            index = after
        # A packet without frames is an error that aioquic names.
        return self._read_rest(plain, now) if end == 0 else is_ack_eliciting

    def _read_rest(self, frames: bytes, now: float) -> bool:
        self._quiet = False
        self.settle_received()
        context = QuicReceiveContext(
            epoch=tls.Epoch.ONE_RTT,
            host_cid=self.host_cid,
            network_path=self._network_paths[0],
            quic_logger_frames=None,
            time=now,
            version=self._version,
        )
        try:
            is_ack_eliciting, _ = self._payload_received(context, frames)
        except QuicConnectionError as error:
            self.close(
                error_code=error.error_code, frame_type=error.frame_type, reason_phrase=error.reason_phrase
            )
            return False
        return is_ack_eliciting

    def _read_stream(self, plain: bytes, index: int, kind: int) -> int:
        """In-order data of a known stream within its windows -> index after the frame; else 0."""
        try:
            stream_id = plain[index + 1]
            index += 2
            if stream_id >= 0x40:
                stream_id, index = decode_varint(plain, index - 1)
            offset = 0
            if kind & 4:
                first = plain[index]
                if first >> 6 == 2 and index + 4 <= len(plain):
                    offset = int.from_bytes(plain[index : index + 4], "big") & 0x3FFF_FFFF
                    index += 4
                else:
                    offset, index = decode_varint(plain, index)
            if kind & 2:
                size, index = decode_varint(plain, index)
            else:
                size = len(plain) - index
        except IndexError:
            return 0
        stream = self._streams.get(stream_id)
        stop = index + size
        if stream is None or kind & 1 or not size or stop > len(plain):
            return 0
        receiver = stream.receiver
        end = offset + size
        limit = self._local_max_data
        new = end - receiver.highest_offset
        if (
            offset != receiver._buffer_start
            or receiver._buffer
            or receiver._final_size is not None
            or receiver.is_finished
            or end > stream.max_stream_data_local
            or limit.used + new > limit.value
        ):
            return 0
        # Nothing is buffered, so the data starts at the highest offset and all of it is new.
        receiver.highest_offset = receiver._buffer_start = end
        limit.used += new
        data = plain[index:stop]
        if self._events or not self.sink(stream_id, data):
            self._events.append(events.StreamDataReceived(data=data, end_stream=False, stream_id=stream_id))
        return stop

    def _read_ack(self, plain: bytes, index: int, now: float) -> int:
        """An acknowledgement without gaps -> index after the frame; else 0."""
        try:
            largest, index = decode_varint(plain, index + 1)
            delay, index = decode_varint(plain, index)
            gaps, index = decode_varint(plain, index)
            below, index = decode_varint(plain, index)
        except IndexError:
            return 0
        if gaps or below > largest:
            return 0
        space = self._short_space
        self._acknowledge_below(space, largest - below, largest)
        self._loss.on_ack_received(
            ack_rangeset=RangeSet([range(largest - below, largest + 1)]),
            ack_delay=(delay << self._remote_ack_delay_exponent) / 1_000_000,
            now=now,
            space=space,
        )
        if self._control.unusual_acked:
            # A packet of aioquic's own arrived: a stream may be over, a limit may be known.
            self._quiet = self._control.unusual_acked = False
        return index

    def _acknowledge_below(self, space: QuicPacketSpace, lowest: int, largest: int) -> None:
        """Packets of the short way below the largest, whose data lies in one piece, are acknowledged as one.

        The largest itself is left to aioquic, which takes the round-trip time from it.
        """
        numbers: list[int] = []
        in_flight = start = stop = 0
        on_delivery: Callable[..., None] | None = None
        for number, packet in space.sent_packets.items():
            if number >= largest or not isinstance(packet, SentPacket) or len(packet.delivery_handlers) > 1:
                break
            if number < lowest:
                continue
            handler, (first, end, _) = packet.delivery_handlers[0]
            if on_delivery is None:
                on_delivery, start = handler, first
            elif handler != on_delivery or first != stop:
                break
            stop = end
            in_flight += packet.sent_bytes
            numbers.append(number)
        if on_delivery is None:
            return
        last = space.sent_packets[numbers[-1]]
        for number in numbers:
            del space.sent_packets[number]
        space.ack_eliciting_in_flight -= len(numbers)
        self._control.on_bytes_acked(in_flight, last)
        on_delivery(QuicDeliveryState.ACKED, start, stop, False)
