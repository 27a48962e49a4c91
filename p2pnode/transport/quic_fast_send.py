"""The short way out: 1-RTT packets with stream data or a plain acknowledgement, built without aioquic's builder.

aioquic spends about 20 microseconds of Python per packet. Here the common packet takes a third of that.
Everything else (handshake, control frames, losses, streams that end) goes aioquic's way: `_quiet` is true only
after a pass of aioquic's own code left nothing to say, and anything unusual makes it false again.
"""

from __future__ import annotations

from typing import Any

from aioquic import tls
from aioquic.quic.connection import NetworkAddress, QuicConnectionState
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from p2pnode import limits
from p2pnode.transport.quic_core import QuicCore
from p2pnode.transport.quic_fast_packet import SentPacket, encode_varint

_PACKETS_PER_TURN = 16
"""Packets of one stream before the next gets its turn."""

_FRAME_OVERHEAD_BYTES = 1 + 8 + 8 + 2
_TAG_BYTES = 16
_ROOM_BYTES_MIN = 64
"""A smaller rest of the congestion window is not worth a packet."""


class FastSendCore(QuicCore):
    """Sends the ordinary quickly; leaves the rest to aioquic."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._quiet = False
        self._short_space = QuicPacketSpace(is_application_data=True)
        self._short_crypto = CryptoPair()
        """Those of 1-RTT packets, looked up once; set when the short way opens."""
        self._writable: dict[int, QuicStream] = {}
        """Streams with bytes to send, in the order of their turns."""
        self.packets_fast = 0

    # --- everything unusual --------------------------------------------------------------------
    def close(self, *arguments: Any, **options: Any) -> None:
        self._quiet = False
        super().close(*arguments, **options)

    def handle_timer(self, now: float) -> None:
        loss_at, close_at = self._loss_at, self._close_at
        is_harmless = (loss_at is None or now < loss_at) and close_at is not None and now < close_at
        # An acknowledgement or the pacer is due: neither needs aioquic's writer.
        self._quiet = self._quiet and is_harmless
        super().handle_timer(now)

    def send_ping(self, uid: int) -> None:
        self._quiet = False
        super().send_ping(uid)

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        self._quiet = False
        super().reset_stream(stream_id, error_code)

    def stop_stream(self, stream_id: int, error_code: int) -> None:
        self._quiet = False
        super().stop_stream(stream_id, error_code)

    def consume(self, stream_id: int, size: int) -> bool:
        due = super().consume(stream_id, size)
        if due:
            self._quiet = False
        return due

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or end_stream:
            self._quiet = False
            super().send_stream_data(stream_id, data, end_stream)
            return
        stream.sender.write(data)
        self._writable[stream_id] = stream

    def _nothing_to_say(self) -> bool:
        """After aioquic's pass: no control frame waits, so only stream data can be next."""
        path = self._network_paths[0]
        space = self._spaces[tls.Epoch.ONE_RTT]
        limit_due = any(
            limit.value != limit.sent and limit.sent - limit.used < limit.value - limit.sent
            for limit in (self._local_max_streams_bidi, self._local_max_streams_uni)
        )
        return (
            self._handshake_confirmed
            and self._state is QuicConnectionState.CONNECTED
            and not self._close_pending
            and self._quic_logger is None
            and len(self._network_paths) == 1
            and path.is_validated
            and not path.remote_challenges
            and not self._handshake_done_pending
            and not self._retire_connection_ids
            and not self._streams_blocked_pending
            and not self._ping_pending
            and not self._probe_pending
            and not self._datagrams_pending
            and not limit_due
            and self._local_max_data.value == self._local_max_data.sent
            and self._crypto_streams[tls.Epoch.ONE_RTT].sender.buffer_is_empty
            and not self._cryptos[tls.Epoch.ONE_RTT]._update_key_requested
            and all(connection_id.was_sent for connection_id in self._host_cids)
            and not space.discarded
            and all(self._is_ordinary(stream) for stream in self._streams_queue)
        )

    @staticmethod
    def _is_ordinary(stream: QuicStream) -> bool:
        sender = stream.sender
        return not (
            stream.is_finished
            or stream.is_blocked
            or stream.receiver.stop_pending
            or sender.reset_pending
            or (sender._buffer_fin is not None and not sender.buffer_is_empty)
            or stream.max_stream_data_local_sent != stream.max_stream_data_local
        )

    def _usual_pass(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """aioquic's pass for all but plain new data; then the short way, if nothing is left to say."""
        hidden = self._hide_plain_data() if self._handshake_confirmed else []
        try:
            datagrams = super().datagrams_to_send(now)
        finally:
            for stream in hidden:
                stream.sender.buffer_is_empty = False
        self._control.lost_since_pass = False
        was_quiet, self._quiet = self._quiet, False
        self._quiet = self._state is QuicConnectionState.CONNECTED and self._nothing_to_say()
        if self._quiet and not was_quiet:
            self._short_space = self._spaces[tls.Epoch.ONE_RTT]
            self._short_crypto = self._cryptos[tls.Epoch.ONE_RTT]
            self.opened_short_way()
        if not self._quiet:
            return datagrams + super().datagrams_to_send(now) if hidden else datagrams
        self._writable = {
            stream.stream_id: stream
            for stream in self._streams_queue
            if stream.stream_id is not None and not stream.sender.buffer_is_empty
        }
        if self._writable:
            pacing_at = self._pacing_at
            datagrams += self._quick_pass(now, after_usual=True)
            self._pacing_at = self._pacing_at or pacing_at
        return datagrams

    def _hide_plain_data(self) -> list[QuicStream]:
        """Streams whose data was never sent and has no end yet look empty to aioquic for one pass."""
        hidden = []
        for stream in self._streams_queue:
            sender = stream.sender
            if (
                not sender.buffer_is_empty
                and not sender.reset_pending
                and sender._buffer_fin is None
                and len(sender._pending) == 1
                and sender._pending[0].start >= sender.highest_offset
            ):
                sender.buffer_is_empty = True
                hidden.append(stream)
        return hidden

    def opened_short_way(self) -> None:
        """The receiving side takes note."""

    def settle_received(self) -> None:
        """The receiving side writes down what it saw."""

    # --- the short way -----------------------------------------------------------------------------
    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        self.settle_received()
        if not self._quiet or self._control.lost_since_pass:
            return self._usual_pass(now)
        return self._quick_pass(now, after_usual=False)

    def _quick_pass(self, now: float, *, after_usual: bool) -> list[tuple[bytes, NetworkAddress]]:
        """Stream data and a plain acknowledgement; what is more waits, or gets aioquic's pass if it had none."""
        self._pacing_at = None
        space = self._short_space
        ack_due = space.ack_at is not None and space.ack_at <= now
        if not self._writable and not ack_due:
            return []
        if ack_due and len(space.ack_queue) > 1 and not after_usual:
            # Gaps: aioquic writes all ranges.
            return self._usual_pass(now)
        datagrams: list[bytes] = []
        if self._writable:
            self._write_streams(datagrams, space, now)
        if not datagrams and ack_due:
            self._write_ack_alone(datagrams, space, now)
        address = self._network_paths[0].addr
        ready = [(datagram, address) for datagram in datagrams]
        return ready if self._quiet or after_usual else ready + self._usual_pass(now)

    def _take_ack(self, space: QuicPacketSpace, now: float) -> bytes:
        """An ACK frame of the only range there is (RFC 9000 section 19.3), or nothing."""
        if space.ack_at is None or len(space.ack_queue) != 1 or space.largest_received_time is None:
            return b""
        received = space.ack_queue[0]
        delay = int((now - space.largest_received_time) * 1_000_000) >> self._local_ack_delay_exponent
        space.ack_at = None
        return b"".join(
            (
                b"\x02",
                encode_varint(received.stop - 1),
                encode_varint(delay),
                b"\0",
                encode_varint(received.stop - 1 - received.start),
            )
        )

    def _write_ack_alone(self, datagrams: list[bytes], space: QuicPacketSpace, now: float) -> None:
        """A packet that wants no answer, so nothing remembers it."""
        frames = self._take_ack(space, now)
        if not frames:
            return
        crypto = self._short_crypto
        send = crypto.send
        assert send.aead is not None
        assert send.hp is not None
        number = self._packet_number
        self._packet_number = number + 1
        head = bytes((0x41 | self._spin_bit << 5 | crypto.key_phase << 2,)) + self._peer_cid.cid
        plain = head + (number & 0xFFFF).to_bytes(2, "big")
        body = send.aead._aead.encrypt((send.aead._iv ^ number).to_bytes(12, "big"), frames, plain)
        mask = send.hp._mask(body[2:18])
        datagrams.append(
            bytes((plain[0] ^ mask[0] & 0x1F,))
            + plain[1:-2]
            + bytes((plain[-2] ^ mask[1], plain[-1] ^ mask[2]))
            + body
        )
        self.packets_fast += 1

    def _write_streams(self, datagrams: list[bytes], space: QuicPacketSpace, now: float) -> None:
        room = self._control.congestion_window - self._control.bytes_in_flight
        is_moving = True
        while is_moving and self._writable:
            is_moving = False
            for stream_id, stream in list(self._writable.items()):
                if room < _ROOM_BYTES_MIN or self._pacing_at is not None:
                    break
                used, more = self._write_stream(datagrams, stream, space, room, now)
                room -= used
                is_moving = is_moving or used > 0
                if not more:
                    del self._writable[stream_id]
        if datagrams and not self._ack_eliciting_sent_since_receipt:
            self._close_at = now + self._idle_timeout()
            self._ack_eliciting_sent_since_receipt = True

    def _write_stream(
        self, datagrams: list[bytes], stream: QuicStream, space: QuicPacketSpace, room: int, now: float
    ) -> tuple[int, bool]:
        """Up to a turn of packets of one stream -> (bytes put in flight, whether more is waiting)."""
        sender = stream.sender
        if not len(sender._pending):
            sender.buffer_is_empty = True
            return 0, False
        if sender._buffer_fin is not None or len(sender._pending) > 1:
            # Ends and retransmissions are aioquic's.
            self._quiet = False
            return 0, True
        pending = sender._pending[0]
        first = start = pending.start
        if start < sender.highest_offset:
            self._quiet = False
            return 0, True
        allowed = min(
            pending.stop,
            stream.max_stream_data_remote,
            start + self._remote_max_data - self._remote_max_data_used,
        )
        crypto = self._short_crypto
        send = crypto.send
        assert send.aead is not None
        assert send.hp is not None
        encrypt, iv, mask_of = send.aead._aead.encrypt, send.aead._iv, send.hp._mask
        cid = self._peer_cid.cid
        first_byte = 0x41 | self._spin_bit << 5 | crypto.key_phase << 2
        head = bytes((first_byte,)) + cid
        frame_head = b"\x0e" + encode_varint(stream.stream_id or 0)
        size_max = min(self._max_datagram_size, limits.DATAGRAM_BYTES_MAX)
        overhead = len(head) + 2 + _TAG_BYTES + _FRAME_OVERHEAD_BYTES
        ack_at, ack = space.ack_at, self._take_ack(space, now)
        buffer, base, sent_packets = sender._buffer, sender._buffer_start, space.sent_packets
        number, on_delivery, pacer = self._packet_number, sender.on_data_delivery, self._pacer
        used = count = 0
        while start < allowed and count < _PACKETS_PER_TURN:
            pacing_at = pacer.next_send_time(now)
            if pacing_at is not None:
                self._pacing_at = pacing_at
                break
            stop = min(allowed, start + min(size_max, room - used) - overhead - len(ack))
            if stop <= start:
                break
            handlers: list[Any] = [(on_delivery, (start, stop, False))]
            size = stop - start
            frames = (
                frame_head
                + encode_varint(start)
                + (size | 0x4000).to_bytes(2, "big")
                + buffer[start - base : stop - base]
            )
            if ack:
                handlers.append((self._on_ack_delivery, (space, space.largest_received_packet)))
                frames, ack = ack + frames, b""
            low = number & 0xFFFF
            body = encrypt((iv ^ number).to_bytes(12, "big"), frames, head + low.to_bytes(2, "big"))
            mask = mask_of(body[2:18])
            datagram = b"".join(
                (
                    bytes((first_byte ^ mask[0] & 0x1F,)),
                    cid,
                    (low ^ (mask[1] << 8 | mask[2])).to_bytes(2, "big"),
                    body,
                )
            )
            sent_bytes = len(datagram)
            datagrams.append(datagram)
            sent_packets[number] = SentPacket(number, now, sent_bytes, handlers)  # type: ignore[assignment]
            pacer.update_after_send(now)
            number += 1
            count += 1
            used += sent_bytes
            start = stop
        if ack:
            # Nothing could carry it: it is due as before.
            space.ack_at = ack_at
        if count:
            self._note_sent(space, sender, first, start, count, used, now)
            self._packet_number = number
        return used, start < pending.stop

    def _note_sent(
        self, space: QuicPacketSpace, sender: Any, first: int, stop: int, count: int, used: int, now: float
    ) -> None:
        """What aioquic does for each packet, once for all of them."""
        sender._pending.subtract(first, stop)
        if not len(sender._pending):
            sender.buffer_is_empty = True
        self._remote_max_data_used += stop - sender.highest_offset
        sender.highest_offset = stop
        space.ack_eliciting_in_flight += count
        self._loss._time_of_last_sent_ack_eliciting_packet = now
        self._control.bytes_in_flight += used
        self.packets_fast += count

    # --- timers ------------------------------------------------------------------------------------
    def get_timer(self) -> float | None:
        if not self._quiet:
            return super().get_timer()
        space, loss = self._short_space, self._loss
        loss_at = space.loss_time
        if loss_at is None and space.ack_eliciting_in_flight:
            timeout = loss.get_probe_timeout() * (1 << loss._pto_count)
            loss_at = loss._time_of_last_sent_ack_eliciting_packet + timeout
        self._loss_at = loss_at
        timer = self._close_at
        for at in (loss_at, space.ack_at, self._pacing_at):
            if at is not None and (timer is None or at < timer):
                timer = at
        return timer
