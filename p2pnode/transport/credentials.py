"""What a node shows in a QUIC handshake, and how its connections are configured."""

from __future__ import annotations

import datetime
import hmac
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from p2pnode import limits
from p2pnode.identity import Identity
from p2pnode.transport import quic_congestion
from p2pnode.transport.tls import make_certificate

ALPN = "libp2p"
RESET_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a node shows in the handshake, and how it judges what it is shown."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    unix_time: Callable[[], float]
    reset_secret: bytes = b""
    """The same after a restart, so that a connection of before can be told that it is over."""

    def configuration(self, *, is_client: bool, idle_timeout_s: float) -> QuicConfiguration:
        return QuicConfiguration(
            is_client=is_client,
            alpn_protocols=[ALPN],
            supported_versions=[QuicProtocolVersion.VERSION_1],
            certificate=self.certificate,
            private_key=self.key,
            # libp2p certificates are self-signed: the subclass verifies them itself.
            verify_mode=ssl.CERT_NONE,
            max_datagram_size=limits.DATAGRAM_BYTES_MIN,
            max_data=limits.CONNECTION_WINDOW_BYTES,
            max_stream_data=limits.STREAM_WINDOW_BYTES,
            idle_timeout=idle_timeout_s,
            congestion_control_algorithm=quic_congestion.NAME,
        )

    def reset_token(self, connection_id: bytes) -> bytes:
        """RFC 9000 section 10.3.2: a token per connection id, from a secret and nothing kept."""
        return hmac.digest(self.reset_secret, connection_id, "sha256")[:RESET_TOKEN_BYTES]


def make_credentials(identity: Identity, unix_time: Callable[[], float]) -> Credentials:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.fromtimestamp(unix_time(), datetime.UTC)
    serial = int.from_bytes(os.urandom(16), "big") >> 1 | 1
    return Credentials(
        make_certificate(identity, key, now, serial),
        key,
        unix_time,
        identity.derive_secret("quic stateless reset"),
    )
