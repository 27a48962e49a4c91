"""The QUIC transport keeps the transport contract, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import socket

import pytest

from p2pnode.transport import quic as quic_module
from p2pnode.transport.port import Transport
from p2pnode.transport.quic import QuicTransport
from p2pnode.transport.quic_connection import QuicPeerConnection
from p2pnode.transport.quic_core import QuicCore
from tests.contract.transport_contract import ECHO, TransportContract
from tests.kit.net import echo, quic, until


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

    async def test_a_connection_that_loses_answers_what_it_was_asked(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Dialled at the same time: whoever asked on the one that loses could not know."""
        monkeypatch.setattr(quic_module, "SUPPLANTED_GRACE_S", 0.3)
        looked = []
        end = QuicTransport._end_supplanted

        def count(transport: QuicTransport, loser: QuicPeerConnection, until: float) -> None:
            looked.append(loser)
            end(transport, loser, until)

        monkeypatch.setattr(QuicTransport, "_end_supplanted", count)
        async with self.nodes("one", "two") as (one, two):
            for node in (one, two):
                node.handle(ECHO, echo)
            await asyncio.gather(self.dial(one, two), self.dial(two, one))
            await until(lambda: len(one.connections()) == 2 and len(two.connections()) == 2)
            loser = one.connections()[1]
            stream = await loser.open_stream(ECHO)
            await until(lambda: len(looked) >= 3)
            await stream.write(b"still here")
            assert await stream.read_exactly(10) == b"still here"
            await stream.close_write()
            assert await stream.read(1) == b""
            await until(lambda: len(one.connections()) == 1 and len(two.connections()) == 1)
            assert loser not in one.connections()


class TestPlainCore(TestQuicTransport):
    """aioquic's own code under the same endpoint, without the short way."""

    def make(self, name: str) -> Transport:
        return quic(name, core=QuicCore)
