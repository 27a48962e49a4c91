"""Certificates over real QUIC: who proves nothing is refused in the handshake, on both sides."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from p2pnode.errors import HandshakeRefused
from p2pnode.transport.credentials import Credentials
from p2pnode.transport.quic import QuicTransport
from tests.kit import certificates
from tests.kit.net import quic, running, until


class NoCertificate(Credentials):
    """A client that shows nothing."""

    __slots__ = ()

    def configuration(self, *, is_client: bool, idle_timeout_s: float):
        configuration = super().configuration(is_client=is_client, idle_timeout_s=idle_timeout_s)
        configuration.certificate = configuration.private_key = None
        return configuration


class TwoCertificates(Credentials):
    __slots__ = ()

    def configuration(self, *, is_client: bool, idle_timeout_s: float):
        configuration = super().configuration(is_client=is_client, idle_timeout_s=idle_timeout_s)
        configuration.certificate_chain = [self.certificate]
        return configuration


class WrongAlpn(Credentials):
    __slots__ = ()

    def configuration(self, *, is_client: bool, idle_timeout_s: float):
        configuration = super().configuration(is_client=is_client, idle_timeout_s=idle_timeout_s)
        configuration.alpn_protocols = ["h3"]
        return configuration


class UnknownVersion(Credentials):
    """X.509 v9 does not exist; cryptography's exception for that is no ValueError, so aioquic does not catch it."""

    __slots__ = ()

    def configuration(self, *, is_client: bool, idle_timeout_s: float):
        configuration = super().configuration(is_client=is_client, idle_timeout_s=idle_timeout_s)
        configuration.certificate = RawCertificate(
            self.certificate, b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x08"
        )
        return configuration


@dataclass(frozen=True)
class RawCertificate:
    """What aioquic asks of a certificate that it sends, with bytes of it exchanged."""

    certificate: x509.Certificate
    before: bytes
    after: bytes

    def public_bytes(self, encoding: serialization.Encoding) -> bytes:
        return self.certificate.public_bytes(encoding).replace(self.before, self.after, 1)


def disguised(case: str) -> QuicTransport:
    """A node that shows a bad certificate, and believes any that it is shown."""
    node = quic("hostile")
    good = node._credentials
    kinds = {
        "no_certificate": NoCertificate,
        "two_certificates": TwoCertificates,
        "unknown_version": UnknownVersion,
        "wrong_alpn": WrongAlpn,
    }
    if case in kinds:
        node._credentials = kinds[case](good.certificate, good.key, good.unix_time)
    else:
        made = certificates.make(case, host="hostile")
        node._credentials = Credentials(made.certificate, made.key, good.unix_time)
    return node


BAD_SERVERS = [*certificates.BAD_CASES, "two_certificates", "unknown_version", "wrong_alpn"]
BAD_CLIENTS = [*BAD_SERVERS, "no_certificate"]


@pytest.mark.parametrize("case", BAD_CLIENTS)
async def test_a_client_that_proves_nothing_is_refused_in_the_handshake(case: str) -> None:
    """Refused with a TLS alert, no connection is ever reported, and the next honest peer is served."""
    server, client, honest = quic("server"), disguised(case), quic("honest")
    async with running(server, client, honest):
        seen = []
        server.observe(lambda connection, is_up: seen.append((connection.peer_id, is_up)))
        with pytest.raises(HandshakeRefused) as caught:
            await client.dial(list(server.listen_multiaddrs), server.peer_id)
        assert caught.value.details["tried"][0][1].startswith("handshake refused")
        assert seen == []
        await until(lambda: server.acceptor.half_open == 0)
        assert server.counters()["refused_handshake"] == 1
        connection = await honest.dial(list(server.listen_multiaddrs), server.peer_id)
        assert await connection.ping() >= 0


@pytest.mark.parametrize("case", BAD_SERVERS)
async def test_a_server_that_proves_nothing_is_refused_by_the_client(case: str) -> None:
    server, client = disguised(case), quic("client")
    async with running(server, client):
        with pytest.raises(HandshakeRefused):
            await client.dial(list(server.listen_multiaddrs), server.peer_id)
        assert client.connections() == []


@pytest.mark.parametrize("case", certificates.GOOD_CASES)
async def test_unusual_certificates_are_let_in(case: str) -> None:
    server, client = quic("server"), disguised(case)
    async with running(server, client):
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        assert await connection.ping() >= 0
