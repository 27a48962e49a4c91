"""A hostile peer over real QUIC: refused with a reason, counted, bounded, and the node lives."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tracemalloc
from dataclasses import dataclass

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from p2pnode import limits
from p2pnode.errors import ConnectionLost, HandshakeRefused, PeerTimeout, RemoteProtocolError, StreamReset
from p2pnode.transport import identify, ping
from p2pnode.transport.credentials import Credentials
from p2pnode.transport.identify_service import IdentifyService
from p2pnode.transport.multistream import HEADER, encode_message
from p2pnode.transport.quic import QuicTransport
from p2pnode.transport.quic_connection import QuicPeerConnection
from p2pnode.transport.quic_stream import QuicPeerStream
from tests.kit import certificates
from tests.kit.net import echo, identity, quic, read_all, running, until

ECHO = "/test/echo/1"


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


async def raw_stream(connection: QuicPeerConnection) -> QuicPeerStream:
    """A stream on which nothing was negotiated."""
    return await connection._new_stream()


BAD_NEGOTIATIONS = {
    "garbage": os.urandom(0) + b"\x47" * 200,
    "http": b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: text/html,application/xhtml+xml,*/*\r\n\r\n",
    "endless_varint": b"\xff" * 64,
    "oversized_message": b"\xff\xff\x03" + b"a" * 65_535,
    "too_many_proposals": encode_message(HEADER) + encode_message("/nope") * 20,
    "wrong_header": encode_message("/multistream/9.0.0"),
    "not_utf8": encode_message(HEADER) + b"\x03\xc3\x28\n",
}


@pytest.mark.parametrize("case", BAD_NEGOTIATIONS)
async def test_bad_negotiation_resets_the_stream_only(case: str) -> None:
    server, client = quic("server"), quic("client")
    async with running(server, client):
        server.handle(ECHO, echo)
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        stream = await raw_stream(connection)
        await stream.write(BAD_NEGOTIATIONS[case])
        with pytest.raises(StreamReset):
            await read_all(stream)
        good = await connection.open_stream(ECHO)
        await good.write(b"alive")
        assert await good.read_exactly(5) == b"alive"


async def test_slow_loris_streams_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that never say what they speak are reset, and their places are free again."""
    monkeypatch.setattr(limits, "NEGOTIATION_TIMEOUT_S", 0.2)
    server, client = quic("server"), quic("client")
    async with running(server, client):
        server.handle(ECHO, echo)
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        half_open = [await raw_stream(connection) for _ in range(50)]
        for stream in half_open:
            await stream.write(encode_message(HEADER)[:5])
        await until(lambda: server.connections()[0].stats().streams_open >= 50)
        for stream in half_open:
            with pytest.raises(StreamReset):
                await stream.read(1)
        await until(lambda: server.connections()[0].stats().streams_open == 0)
        assert (await connection.open_stream(ECHO, timeout_s=5)).protocol == ECHO


async def test_a_peer_cannot_open_more_streams_than_allowed() -> None:
    server, client = quic("server"), quic("client")
    async with running(server, client):
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        await until(lambda: connection.identified is not None)
        opened = [await raw_stream(connection) for _ in range(limits.STREAMS_PER_CONNECTION_MAX - 2)]
        for stream in opened:
            await stream.write(b"\x13")
        opened += [await connection.open_stream(ping.PROTOCOL) for _ in range(2)]
        with pytest.raises(PeerTimeout):
            await connection.open_stream(ping.PROTOCOL, timeout_s=0.1)
        assert server.connections()[0].stats().streams_open <= limits.STREAMS_PER_CONNECTION_MAX
        for stream in opened:
            stream.reset()
        await until(lambda: server.connections()[0].stats().streams_open == 0)
        assert await connection.ping() >= 0


async def test_streams_over_the_limit_end_the_connection() -> None:
    """A peer that ignores the limit breaks the protocol."""
    server, client = quic("server"), quic("client")
    async with running(server, client):
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        connection.core._remote_max_streams_bidi = 10_000
        for _ in range(limits.STREAMS_PER_CONNECTION_MAX + 10):
            await (await raw_stream(connection)).write(b"\x13")
        await until(lambda: connection.is_closed and not server.connections())


async def test_unidirectional_streams_end_the_connection() -> None:
    server, client = quic("server"), quic("client")
    async with running(server, client):
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        connection.core._remote_max_streams_uni = 10
        connection.core._remote_max_stream_data_uni = 1000
        connection.core.send_stream_data(2, b"hello")
        connection.flush()
        await until(lambda: connection.is_closed)


async def test_a_peer_that_ignores_windows_is_cut_off() -> None:
    """Flow control is enforced: bytes beyond the window end the connection instead of filling memory."""
    server, client = quic("server"), quic("client")
    async with running(server, client):
        server.handle(ECHO, lambda stream: asyncio.Event().wait())
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        stream = await connection.open_stream(ECHO)
        core = connection.core
        core._remote_max_data = core._streams[stream.stream_id].max_stream_data_remote = 1 << 40
        with pytest.raises(ConnectionLost, match="limit"):
            await stream.write(bytes(64 * limits.STREAM_WINDOW_BYTES))


BAD_IDENTIFY = {
    "endless_length": b"\xff" * 32,
    "too_large": b"\xff\x7f" + bytes(20_000),
    "truncated": b"\x20abc",
    "empty": b"",
    "not_protobuf": b"\x04\xff\xff\xff\xff",
    "another_key": identify.encode_delimited(identify.Identify(public_key=identity("other").public_key)),
}


@pytest.mark.parametrize("case", BAD_IDENTIFY)
async def test_lies_in_identify_are_ignored(case: str) -> None:
    """The connection stays; nothing of the message is believed."""
    server, client = quic("server"), quic("client")

    async def lie(stream) -> None:
        await stream.write(BAD_IDENTIFY[case])

    async with running(server, client):
        server.handle(identify.PROTOCOL, lie)
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        service: IdentifyService = client.identify
        with pytest.raises(RemoteProtocolError):
            await service.ask(connection)
        assert connection.identified is None
        assert await connection.ping() >= 0


async def test_push_updates_what_is_known() -> None:
    server, client = quic("server"), quic("client")
    async with running(server, client):
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        await until(lambda: server.connections()[0].identified is not None)
        learned = []
        server.identify.observe(lambda _connection, message: learned.append(message.agent))
        stream = await connection.open_stream(identify.PROTOCOL_PUSH)
        await stream.write(identify.encode_delimited(identify.Identify(agent="renamed")))
        await stream.close_write()
        await until(lambda: server.connections()[0].identified.agent == "renamed")
        assert server.connections()[0].identified.listen_multiaddrs == tuple(client.listen_multiaddrs)
        assert learned == ["renamed"]


# --- floods ----------------------------------------------------------------------------------------
def initial_flood(target: tuple[str, int], count: int) -> list[bytes]:
    """Sends `count` well-formed Initials with unreadable insides from one socket; returns the answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flooder:
        flooder.bind(("127.0.0.1", 0))
        flooder.setblocking(False)
        for _ in range(count):
            head = b"\xc0\0\0\0\1\x08" + os.urandom(8) + b"\x08" + os.urandom(8) + b"\0"
            rest = 1200 - len(head) - 2
            flooder.sendto(head + (rest | 0x4000).to_bytes(2, "big") + bytes(rest), target)
        answers = []
        while True:
            try:
                answers.append(flooder.recv(2048))
            except BlockingIOError:
                return answers


async def test_ten_thousand_attempts_from_one_address() -> None:
    """Memory stays flat, almost nothing is answered, an honest peer gets in afterwards."""
    server, honest = quic("server"), quic("honest")
    async with running(server, honest):
        port = int(server.listen_multiaddrs[0].split("/")[4])
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            answered = 0
            for _ in range(50):
                answered += len(initial_flood(("127.0.0.1", port), 200))
                await asyncio.sleep(0)
            await until(lambda: sum(server.acceptor.refused.values()) >= 5000)
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 2_000_000
        assert peak - before < 20_000_000
        assert answered == 0
        assert server.acceptor.half_open == 0
        assert len(server._connections) == 0
        assert server.acceptor.refused["address_rate"] > 0
        assert server.acceptor.refused["undecryptable"] <= limits.HANDSHAKES_PER_ADDRESS_BURST + 200
        server.acceptor._sources.clear()
        assert await (await honest.dial(list(server.listen_multiaddrs), server.peer_id)).ping() >= 0


async def test_handshakes_under_load_go_through_a_retry() -> None:
    server, client = quic("server"), quic("client")
    async with running(server, client):
        for index in range(limits.HANDSHAKES_BEFORE_RETRY):
            server.acceptor.begun((f"192.0.2.{index}", 1), 0.0)
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        assert server.acceptor.refused["retry"] == 1
        assert await connection.ping() >= 0


async def test_an_unproven_address_is_never_sent_more_than_three_times_what_came() -> None:
    """RFC 9000 section 8: one Initial whose sender never answers draws at most 3,600 bytes in all."""
    server, client = quic("server"), quic("client")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.setblocking(False)
        async with running(server, client):
            sent: list[bytes] = []
            connection = client._begin_dial(socket.AF_INET, deaf.getsockname(), server.peer_id)
            await until(lambda: _collect(deaf, sent))
            connection.abandon()
            port = int(server.listen_multiaddrs[0].split("/")[4])
            deaf.sendto(sent[0], ("127.0.0.1", port))
            answers: list[bytes] = []
            await until(lambda: _collect(deaf, answers))
            await asyncio.sleep(0.5)
            _collect(deaf, answers)
            assert 0 < sum(map(len, answers)) <= 3 * len(sent[0])
            assert server.acceptor.half_open == 1


def _collect(sock: socket.socket, into: list[bytes]) -> bool:
    while True:
        try:
            into.append(sock.recv(2048))
        except BlockingIOError:
            return bool(into)


async def test_noise_on_the_port_disturbs_nobody() -> None:
    server, client = quic("server"), quic("client")
    async with running(server, client):
        server.handle(ECHO, echo)
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        stream = await connection.open_stream(ECHO)
        port = int(server.listen_multiaddrs[0].split("/")[4])
        cid = next(iter(server.connections()[0].routes))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
            for size in (0, 1, 20, 21, 100, 1200, 1500, 9000):
                noise.sendto(os.urandom(size), ("127.0.0.1", port))
                noise.sendto((b"\x40" + cid + os.urandom(size)), ("127.0.0.1", port))
                noise.sendto((b"\xc0\0\0\0\1\x08" + cid + os.urandom(size)), ("127.0.0.1", port))
        await stream.write(b"still here")
        assert await stream.read_exactly(10) == b"still here"


async def test_failures_of_handlers_are_logged_not_fatal(caplog: pytest.LogCaptureFixture) -> None:
    server, client = quic("server"), quic("client")

    async def bug(stream) -> None:
        await stream.read(1)
        raise ZeroDivisionError

    async with running(server, client):
        server.handle(ECHO, bug)
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        with caplog.at_level(logging.ERROR):
            stream = await connection.open_stream(ECHO)
            await stream.write(b"x")
            with pytest.raises(StreamReset):
                await stream.read(1)
        assert "failed" in caplog.text
        assert await connection.ping() >= 0


async def test_a_packet_the_core_trips_over_costs_its_sender_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Should aioquic ever raise on a packet, only that connection ends."""
    server, bad, good = quic("server"), quic("bad"), quic("good")
    async with running(server, bad, good):
        bad_connection = await bad.dial(list(server.listen_multiaddrs), server.peer_id)
        good_connection = await good.dial(list(server.listen_multiaddrs), server.peer_id)
        await until(lambda: server.connection(bad.peer_id) is not None)
        seen = server.connection(bad.peer_id)
        assert seen is not None

        def trip(*_arguments: object) -> None:
            raise IndexError

        seen.core.receive_datagram = trip
        with caplog.at_level(logging.ERROR):
            pinging = asyncio.ensure_future(bad_connection.ping(timeout_s=0.5))
            await until(lambda: seen.is_closed)
            await asyncio.gather(pinging, return_exceptions=True)
        assert "broke its connection" in caplog.text
        assert await good_connection.ping() >= 0
        assert server.connection(bad.peer_id) is None


async def test_a_writer_nobody_reads_is_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler is long done: a peer that goes on writing gets STOP_SENDING, its place is free again."""
    monkeypatch.setattr(limits, "STREAM_LINGER_S", 0.05)
    server, client = quic("server"), quic("client")

    async def brief(stream) -> None:
        await stream.write(b"hello")

    async with running(server, client):
        server.handle(ECHO, brief)
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        stream = await connection.open_stream(ECHO)
        assert await read_all(stream) == b"hello"
        with pytest.raises(StreamReset, match="stopped reading"):
            await asyncio.wait_for(_write_for_ever(stream), 5)
        await stream.close_write()
        await until(lambda: server.connections()[0].stats().streams_open == 0)
        await until(lambda: connection.stats().streams_open == 0)


async def _write_for_ever(stream: QuicPeerStream) -> None:
    while True:
        await stream.write(bytes(10_000))
        await asyncio.sleep(0)


async def test_a_stream_that_ends_before_it_began_is_forgotten() -> None:
    server, client = quic("server"), quic("client")
    async with running(server, client):
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        stream = await raw_stream(connection)
        await stream.write(encode_message(HEADER))
        await stream.close_write()
        with pytest.raises(StreamReset):
            await read_all(stream)
        await until(lambda: server.connections()[0].stats().streams_open == 0)


async def test_a_responder_that_ends_instead_of_answering() -> None:
    server, client = quic("server"), quic("client")

    async def hang_up(_connection: QuicPeerConnection, stream: QuicPeerStream) -> None:
        await stream.close_write()

    async with running(server, client):
        server._serve = hang_up
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        with pytest.raises(RemoteProtocolError, match="closed the stream instead"):
            await connection.open_stream(ECHO)


async def test_two_readers_of_one_stream_are_a_bug() -> None:
    server, client = quic("server"), quic("client")
    async with running(server, client):
        server.handle(ECHO, echo)
        connection = await client.dial(list(server.listen_multiaddrs), server.peer_id)
        stream = await connection.open_stream(ECHO)
        reading = asyncio.ensure_future(stream.read(1))
        await asyncio.sleep(0)
        with pytest.raises(AssertionError, match="two tasks read"):
            await stream.read(1)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await stream.write(b"after a cancelled read")
        assert await stream.read_exactly(5) == b"after"
