"""A hostile peer over real QUIC: refused with a reason, counted, bounded, and the node lives."""

from __future__ import annotations

import asyncio
import logging
import os

import pytest

from p2pnode import limits
from p2pnode.errors import ConnectionLost, PeerTimeout, RemoteProtocolError, StreamReset
from p2pnode.transport import identify, ping
from p2pnode.transport.identify_service import IdentifyService
from p2pnode.transport.multistream import HEADER, encode_message
from p2pnode.transport.quic_connection import QuicPeerConnection
from p2pnode.transport.quic_stream import QuicPeerStream
from tests.kit.net import echo, identity, quic, read_all, running, until

ECHO = "/test/echo/1"


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
        connection.sending.flush()
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
