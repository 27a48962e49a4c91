"""Who may begin a handshake: caps per address and in all, and proof of address under load.

A handshake costs 8 ms of processor time and 40 KB; a datagram with a forged sender costs its author
nothing. So: half-open connections are few, a new address proves itself by a stateless Retry once there
are several, and one address gets a slow trickle (RFC 9000 sections 8.1 and 21).
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from aioquic.buffer import Buffer, BufferReadError
from aioquic.quic.connection import NetworkAddress
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler

from p2pnode import limits

CONNECTION_ID_BYTES = 8


class Verdict(Enum):
    DROP = auto()
    ANSWER = auto()
    """Send `reply` (a Retry or a Version Negotiation), keep nothing."""
    ACCEPT = auto()


@dataclass(frozen=True, slots=True)
class Decision:
    verdict: Verdict
    reason: str = ""
    reply: bytes = b""
    original_destination: bytes = b""
    retry_source: bytes | None = None
    destination: bytes = b""


@dataclass(slots=True)
class _Source:
    tokens: float
    filled_at: float
    half_open: int = 0
    open: int = 0


@dataclass(slots=True)
class Acceptor:
    """State per source address: an IPv4 address, or the /64 an IPv6 host can choose from."""

    random_bytes: Callable[[int], bytes]
    half_open: int = 0
    open: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    _sources: OrderedDict[bytes, _Source] = field(default_factory=OrderedDict)
    _retry: QuicRetryTokenHandler = field(default_factory=QuicRetryTokenHandler)

    def judge(self, data: bytes, address: NetworkAddress, now: float) -> Decision:
        """A datagram for no known connection."""
        if len(data) < limits.DATAGRAM_BYTES_MIN or not data[0] & 0x80:
            # Answering these would amplify; a client's first datagram has at least 1200 bytes.
            return self._drop("not_initial")
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CONNECTION_ID_BYTES)
        except (BufferReadError, ValueError):
            return self._drop("malformed")
        if header.version != QuicProtocolVersion.VERSION_1:
            return self._negotiate_version(header)
        if header.packet_type != QuicPacketType.INITIAL or len(header.destination_cid) < 8:
            return self._drop("not_initial")
        return self._judge_initial(header, address, now)

    def _negotiate_version(self, header: QuicHeader) -> Decision:
        if not header.version:
            return self._drop("malformed")
        self.count("version")
        reply = encode_quic_version_negotiation(
            source_cid=header.destination_cid,
            destination_cid=header.source_cid,
            supported_versions=[QuicProtocolVersion.VERSION_1],
        )
        return Decision(Verdict.ANSWER, "version", reply=reply)

    def _judge_initial(self, header: QuicHeader, address: NetworkAddress, now: float) -> Decision:
        if self.open + self.half_open >= limits.CONNECTIONS_MAX or self.half_open >= limits.HANDSHAKES_MAX:
            return self._drop("full")
        if header.token:
            return self._judge_token(header, address, now)
        if self.half_open >= limits.HANDSHAKES_BEFORE_RETRY:
            self.count("retry")
            return Decision(Verdict.ANSWER, "retry", reply=self._retry_packet(header, address, now))
        reason = self._exceeds(address, now)
        if reason:
            return self._drop(reason)
        return Decision(
            Verdict.ACCEPT,
            original_destination=header.destination_cid,
            destination=header.destination_cid,
        )

    def _retry_packet(self, header: QuicHeader, address: NetworkAddress, now: float) -> bytes:
        source = self.random_bytes(CONNECTION_ID_BYTES)
        token = self._retry.create_token(
            address=address,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=source,
            now=now,
        )
        return encode_quic_retry(
            version=QuicProtocolVersion.VERSION_1,
            source_cid=source,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )

    def _judge_token(self, header: QuicHeader, address: NetworkAddress, now: float) -> Decision:
        try:
            original = self._retry.validate_token(
                address=address, destination_cid=header.destination_cid, token=header.token, now=now
            )
        except (ValueError, BufferReadError):
            return self._drop("bad_token")
        reason = self._exceeds(address, now)
        if reason:
            return self._drop(reason)
        return Decision(
            Verdict.ACCEPT,
            original_destination=original,
            retry_source=header.destination_cid,
            destination=header.destination_cid,
        )

    def _exceeds(self, address: NetworkAddress, now: float) -> str:
        """Why this address gets no further handshake now; "" and one token fewer when it does."""
        source = self._source(address, now)
        if source.half_open >= limits.HANDSHAKES_PER_ADDRESS_MAX:
            return "address_half_open"
        if source.open + source.half_open >= limits.CONNECTIONS_PER_ADDRESS_MAX:
            return "address_full"
        refill = (now - source.filled_at) * limits.HANDSHAKES_PER_ADDRESS_PER_S
        source.tokens = min(source.tokens + refill, float(limits.HANDSHAKES_PER_ADDRESS_BURST))
        source.filled_at = now
        if source.tokens < 1:
            return "address_rate"
        source.tokens -= 1
        return ""

    def _source(self, address: NetworkAddress, now: float) -> _Source:
        key = source_key(address)
        source = self._sources.get(key)
        if source is None:
            source = self._sources[key] = _Source(float(limits.HANDSHAKES_PER_ADDRESS_BURST), now)
            self._forget_old()
        self._sources.move_to_end(key)
        return source

    def _forget_old(self) -> None:
        if len(self._sources) > limits.ADDRESSES_TRACKED_MAX:
            for key, source in self._sources.items():
                if not source.open and not source.half_open:
                    del self._sources[key]
                    return

    # --- bookkeeping by the transport --------------------------------------------------------------
    def begun(self, address: NetworkAddress, now: float) -> None:
        self._source(address, now).half_open += 1
        self.half_open += 1

    def completed(self, address: NetworkAddress, now: float) -> None:
        source = self._source(address, now)
        source.half_open -= 1
        source.open += 1
        self.half_open -= 1
        self.open += 1

    def ended(self, address: NetworkAddress, now: float, *, was_complete: bool) -> None:
        source = self._source(address, now)
        if was_complete:
            source.open -= 1
            self.open -= 1
        else:
            source.half_open -= 1
            self.half_open -= 1

    def _drop(self, reason: str) -> Decision:
        self.count(reason)
        return Decision(Verdict.DROP, reason)

    def count(self, reason: str) -> None:
        """One more attempt that led nowhere, by its reason."""
        self.refused[reason] = self.refused.get(reason, 0) + 1


def source_key(address: NetworkAddress) -> bytes:
    """What one attacker can choose freely counts as one source."""
    host = ipaddress.ip_address(address[0].partition("%")[0])
    if isinstance(host, ipaddress.IPv6Address):
        return host.ipv4_mapped.packed if host.ipv4_mapped is not None else host.packed[:8]
    return host.packed
