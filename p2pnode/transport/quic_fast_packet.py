"""What both short ways share: variable-length integers, the record of a sent packet, the names they touch."""

from __future__ import annotations

from typing import Any

from aioquic import tls
from aioquic.quic.packet import QuicPacketType

PRIVATE_NAMES = {
    "aioquic.quic.connection.QuicConnection": (
        "_ack_delay",
        "_ack_eliciting_sent_since_receipt",
        "_close_at",
        "_crypto_streams",
        "_datagrams_pending",
        "_events",
        "_handshake_done_pending",
        "_host_cids",
        "_idle_timeout",
        "_local_ack_delay_exponent",
        "_loss_at",
        "_on_ack_delivery",
        "_pacing_at",
        "_payload_received",
        "_ping_pending",
        "_probe_pending",
        "_quic_logger",
        "_remote_ack_delay_exponent",
        "_remote_max_data",
        "_remote_max_data_used",
        "_retire_connection_ids",
        "_streams_blocked_pending",
    ),
    "aioquic.quic.recovery.QuicPacketRecovery": ("_pto_count", "_time_of_last_sent_ack_eliciting_packet"),
    "aioquic.quic.recovery.QuicPacketNumberWindow": ("_received",),
    "aioquic.quic.stream.QuicStreamReceiver": ("_buffer", "_buffer_start", "_final_size"),
    "aioquic.quic.stream.QuicStreamSender": ("_buffer", "_buffer_fin", "_pending"),
    "aioquic.quic.crypto.CryptoPair": ("_update_key_requested",),
    "aioquic._crypto.AEAD": ("_aead", "_iv"),
    "aioquic._crypto.HeaderProtection": ("_mask",),
}
"""Names of aioquic's inside that the short ways touch, beyond those of quic_core."""


def encode_varint(value: int) -> bytes:
    """A QUIC variable-length integer (RFC 9000 section 16)."""
    if value < 0x40:
        return bytes((value,))
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x4000_0000:
        return (value | 0x8000_0000).to_bytes(4, "big")
    return (value | 0xC000_0000_0000_0000).to_bytes(8, "big")


class SentPacket:
    """What loss recovery remembers of a packet: aioquic's QuicSentPacket without its costs."""

    __slots__ = ("delivery_handlers", "packet_number", "sent_bytes", "sent_time")

    epoch = tls.Epoch.ONE_RTT
    packet_type = QuicPacketType.ONE_RTT
    in_flight = True
    is_ack_eliciting = True
    is_crypto_packet = False
    quic_logger_frames: tuple[()] = ()

    def __init__(
        self, packet_number: int, sent_time: float, sent_bytes: int, delivery_handlers: list[Any]
    ) -> None:
        self.packet_number = packet_number
        self.sent_time = sent_time
        self.sent_bytes = sent_bytes
        self.delivery_handlers = delivery_handlers


def decode_varint(data: bytes, index: int) -> tuple[int, int]:
    """-> (value, index after it); IndexError when truncated."""
    first = data[index]
    if first < 0x40:
        return first, index + 1
    size = 1 << (first >> 6)
    end = index + size
    if end > len(data):
        raise IndexError
    return int.from_bytes(data[index:end], "big") & ((1 << (8 * size - 2)) - 1), end
