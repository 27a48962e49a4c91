"""The QUIC transport keeps the transport contract, over real sockets on loopback."""

from __future__ import annotations

import socket

import pytest

from p2pnode.transport.port import Transport
from p2pnode.transport.quic_core import QuicCore
from tests.contract.transport_contract import TransportContract
from tests.kit.net import quic


class TestQuicTransport(TransportContract):
    @pytest.fixture(autouse=True)
    def silent_socket(self):
        """A port where somebody is, but nobody speaks QUIC."""
        self.silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.silent.bind(("127.0.0.1", 0))
        yield
        self.silent.close()

    def make(self, name: str) -> Transport:
        return quic(name)

    def unreachable_address(self) -> str:
        return f"/ip4/127.0.0.1/udp/{self.silent.getsockname()[1]}/quic-v1"


class TestPlainCore(TestQuicTransport):
    """aioquic's own code under the same endpoint, without the short way."""

    def make(self, name: str) -> Transport:
        return quic(name, core=QuicCore)
