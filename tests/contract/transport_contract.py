"""What every implementation of the transport port does; memory and QUIC both inherit this."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from p2pnode import limits
from p2pnode.errors import (
    ConnectionLost,
    IdentityMismatch,
    LocalProtocolError,
    PeerTimeout,
    PeerUnreachable,
    RemoteProtocolError,
    StreamReset,
)
from p2pnode.transport import identify, ping
from p2pnode.transport.port import Connection, Stream, Transport
from p2pnode.units import PeerId
from tests.kit.net import echo, identity, read_all, until

ECHO = "/test/echo/1"


class TransportContract:
    """`make` builds one transport of the given name; names are deterministic identities."""

    path = "direct"
    """How every peer is reached, until there are relays."""

    def make(self, name: str) -> Transport:
        raise NotImplementedError

    def unreachable_address(self) -> str:
        raise NotImplementedError

    def nodes(self, *names: str) -> AbstractAsyncContextManager[list[Transport]]:
        @asynccontextmanager
        async def running() -> AsyncIterator[list[Transport]]:
            transports = [self.make(name) for name in names]
            async with asyncio.timeout(20):
                try:
                    for transport in transports:
                        await transport.start()
                    yield transports
                finally:
                    for transport in transports:
                        await transport.close()

        return running()

    async def dial(self, one: Transport, other: Transport) -> Connection:
        return await one.dial(list(other.listen_multiaddrs), other.peer_id)

    # --- connections -------------------------------------------------------------------------------
    async def test_dial_authenticates_both_sides(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            connection = await self.dial(one, two)
            assert connection.peer_id == two.peer_id == identity("two").peer_id
            await until(lambda: two.connection(one.peer_id) is not None)
            back = two.connection(one.peer_id)
            assert back is not None
            assert back.peer_id == one.peer_id
            assert not connection.is_closed
            assert list(one.connections()) == [connection]
            assert connection.remote_multiaddr in two.listen_multiaddrs

    async def test_dial_again_reuses_the_connection(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            connection = await self.dial(one, two)
            assert await self.dial(one, two) is connection
            assert await one.dial([], two.peer_id) is connection

    async def test_inbound_connection_is_used_for_dialling_back(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            await self.dial(one, two)
            await until(lambda: two.connection(one.peer_id) is not None)
            assert await two.dial([], one.peer_id) is two.connection(one.peer_id)

    async def test_a_nudge_brings_a_sign_of_life_that_counts_as_received(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            connection = await self.dial(one, two)
            await connection.ping()
            before = connection.stats().bytes_received
            connection.nudge()
            await until(lambda: connection.stats().bytes_received > before)
            await connection.close()
            connection.nudge()

    async def test_another_peer_at_the_address_is_a_mismatch(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            with pytest.raises(IdentityMismatch) as caught:
                await one.dial(list(two.listen_multiaddrs), identity("three").peer_id)
            assert [address for address, _ in caught.value.details["tried"]] == list(two.listen_multiaddrs)
            assert one.connections() == []

    async def test_unreachable_names_every_address_tried(self) -> None:
        async with self.nodes("one") as (one,):
            address = self.unreachable_address()
            with pytest.raises(PeerUnreachable) as caught:
                await one.dial([address], identity("two").peer_id, timeout_s=0.3)
            assert [entry[0] for entry in caught.value.details["tried"]] == [address]
            assert caught.value.details["tried"][0][1]

    async def test_a_probe_says_of_each_address_whether_it_answers_and_connects_nobody(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            silent, (address, *_) = self.unreachable_address(), two.listen_multiaddrs
            tried = dict(await one.probe([silent, address], two.peer_id))
            assert (tried[address], bool(tried[silent])) == ("", True)
            assert await one.probe([], two.peer_id) == []
            assert (one.connections(), two.connections()) == ([], [])

    async def test_each_side_knows_who_opened_a_connection_and_why_it_ended(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            connection = await self.dial(one, two)
            await until(lambda: two.connection(one.peer_id) is not None)
            back = two.connection(one.peer_id)
            assert back is not None
            assert (connection.is_outbound, back.is_outbound) == (True, False)
            assert connection.error is None
            await connection.close(0, "enough")
            await until(lambda: back.is_closed)
            assert connection.error is not None
            assert back.error is not None
            assert "enough" in back.error.message

    async def test_no_address_is_unreachable(self) -> None:
        async with self.nodes("one") as (one,):
            with pytest.raises(PeerUnreachable):
                await one.dial([], identity("two").peer_id)

    async def test_own_peer_id_is_unreachable(self) -> None:
        async with self.nodes("one") as (one,):
            with pytest.raises(PeerUnreachable):
                await one.dial(list(one.listen_multiaddrs), one.peer_id)

    async def test_observers_see_a_connection_come_and_go(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            seen: list[tuple[str, PeerId, bool]] = []
            one.observe(lambda connection, is_up: seen.append(("one", connection.peer_id, is_up)))
            two.observe(lambda connection, is_up: seen.append(("two", connection.peer_id, is_up)))
            connection = await self.dial(one, two)
            await until(lambda: len(seen) == 2)
            await connection.close()
            await until(lambda: len(seen) == 4)
            assert sorted(seen) == sorted(
                [
                    ("one", two.peer_id, True),
                    ("two", one.peer_id, True),
                    ("one", two.peer_id, False),
                    ("two", one.peer_id, False),
                ]
            )
            assert one.connection(two.peer_id) is None
            assert connection.is_closed

    async def test_close_says_why(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            connection = await self.dial(one, two)
            await until(lambda: two.connection(one.peer_id) is not None)
            back = two.connection(one.peer_id)
            assert back is not None
            await connection.close(0x1006, "going home")
            await until(lambda: back.is_closed)
            with pytest.raises(ConnectionLost, match="going home") as caught:
                await back.open_stream(ping.PROTOCOL)
            assert caught.value.details["code"] == 0x1006

    async def test_simultaneous_dials_leave_one_connection(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            await asyncio.gather(self.dial(one, two), self.dial(two, one))
            await until(lambda: len(one.connections()) == 1 and len(two.connections()) == 1)
            connection = one.connection(two.peer_id)
            assert connection is not None
            assert await connection.ping() >= 0

    async def test_dialling_after_close_is_refused(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            await one.close()
            with pytest.raises(ConnectionLost):
                await self.dial(one, two)

    async def test_start_again_after_a_peer_left(self) -> None:
        async with self.nodes("one", "two", "three") as (one, two, three):
            await self.dial(one, two)
            await two.close()
            await until(lambda: one.connection(two.peer_id) is None)
            assert (await self.dial(one, three)).peer_id == three.peer_id

    # --- built-in protocols ------------------------------------------------------------------------
    async def test_ping_measures_a_round_trip(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            connection = await self.dial(one, two)
            assert 0 <= await connection.ping() < 10

    async def test_each_side_learns_how_it_is_seen(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            two.handle(ECHO, echo)
            connection = await self.dial(one, two)
            await until(lambda: connection.identified is not None)  # type: ignore[attr-defined]
            said: identify.Identify = connection.identified  # type: ignore[attr-defined]
            assert ECHO in said.protocols
            assert ping.PROTOCOL in said.protocols
            assert list(said.listen_multiaddrs) == list(two.listen_multiaddrs)
            assert said.observed_multiaddr is not None
            assert said.public_key == identity("two").public_key
            assert said.signed_peer_record is not None
            assert identify.open_peer_record(said.signed_peer_record).peer_id == two.peer_id

    async def test_a_new_protocol_is_announced(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            connection = await self.dial(one, two)
            await until(lambda: connection.identified is not None)  # type: ignore[attr-defined]
            two.handle(ECHO, echo)
            await until(lambda: ECHO in connection.identified.protocols)  # type: ignore[attr-defined]

    # --- streams -----------------------------------------------------------------------------------
    async def test_bytes_arrive_whole_and_in_order(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            two.handle(ECHO, echo)
            stream = await (await self.dial(one, two)).open_stream(ECHO)
            assert (stream.protocol, stream.peer_id) == (ECHO, two.peer_id)
            data = bytes(range(256)) * 4096

            async def send() -> None:
                await stream.write(data[:10], memoryview(data)[10:1000], bytearray(data[1000:]))
                await stream.close_write()

            _, got = await asyncio.gather(send(), read_all(stream))
            assert got == data

    async def test_read_exactly_takes_more_than_a_window(self) -> None:
        size = 3 * limits.STREAM_WINDOW_BYTES + 17
        async with self.nodes("one", "two") as (one, two):
            got = asyncio.get_running_loop().create_future()

            async def sink(stream: Stream) -> None:
                got.set_result(await stream.read_exactly(size))

            two.handle(ECHO, sink)
            stream = await (await self.dial(one, two)).open_stream(ECHO)
            data = bytes(size - 3) + b"end"
            await stream.write(data)
            assert await got == data

    async def test_read_exactly_says_how_much_was_missing(self) -> None:
        async with self.nodes("one", "two") as (one, two):

            async def short(stream: Stream) -> None:
                await stream.write(b"abc")

            two.handle(ECHO, short)
            stream = await (await self.dial(one, two)).open_stream(ECHO)
            with pytest.raises(RemoteProtocolError, match="3 of 5"):
                await stream.read_exactly(5)

    async def test_read_exactly_of_nothing_is_nothing(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            two.handle(ECHO, echo)
            stream = await (await self.dial(one, two)).open_stream(ECHO)
            assert await stream.read_exactly(0) == b""
            await stream.write(b"")
            await stream.write(b"x")
            assert await stream.read_exactly(1) == b"x"

    async def test_half_close_leaves_the_other_direction_open(self) -> None:
        async with self.nodes("one", "two") as (one, two):

            async def late(stream: Stream) -> None:
                asked = await read_all(stream)
                await stream.write(asked.upper())

            two.handle(ECHO, late)
            stream = await (await self.dial(one, two)).open_stream(ECHO)
            await stream.write(b"question")
            await stream.close_write()
            await stream.close_write()
            assert await read_all(stream) == b"QUESTION"
            assert await stream.read(1) == b""
            with pytest.raises(LocalProtocolError):
                await stream.write(b"more")

    async def test_unknown_protocol_is_refused(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            connection = await self.dial(one, two)
            with pytest.raises(RemoteProtocolError) as caught:
                await connection.open_stream("/test/unknown/1")
            assert caught.value.details["reason"] == "na"
            assert await connection.ping() >= 0

    async def test_gate_closes_protocols_but_not_ping(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            two.handle(ECHO, echo)
            asked: list[tuple[PeerId, str]] = []

            def gate(peer_id: PeerId, protocol: str) -> bool:
                asked.append((peer_id, protocol))
                return False

            two.set_gate(gate)
            connection = await self.dial(one, two)
            with pytest.raises(RemoteProtocolError):
                await connection.open_stream(ECHO)
            assert asked == [(one.peer_id, ECHO)]
            assert await connection.ping() >= 0
            two.set_gate(lambda _peer_id, _protocol: True)
            assert (await connection.open_stream(ECHO)).protocol == ECHO

    async def test_reset_reaches_the_other_side(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            ended = asyncio.get_running_loop().create_future()

            async def wait(stream: Stream) -> None:
                try:
                    await stream.read(1)
                except StreamReset as error:
                    ended.set_result(error.details.get("code"))
                    raise

            two.handle(ECHO, wait)
            stream = await (await self.dial(one, two)).open_stream(ECHO)
            stream.reset(7)
            stream.reset(8)
            assert await ended == 7
            with pytest.raises(StreamReset):
                await stream.read(1)
            with pytest.raises(StreamReset):
                await stream.write(b"x")
            await stream.close_write()

    async def test_handler_that_fails_resets_its_stream_only(self) -> None:
        async with self.nodes("one", "two") as (one, two):

            async def broken(stream: Stream) -> None:
                await stream.read(1)
                raise RemoteProtocolError("not like this")

            two.handle("/test/broken/1", broken)
            two.handle(ECHO, echo)
            connection = await self.dial(one, two)
            good, bad = await connection.open_stream(ECHO), await connection.open_stream("/test/broken/1")
            await bad.write(b"x")
            with pytest.raises(StreamReset):
                await bad.read(1)
            await good.write(b"still here")
            assert await good.read_exactly(10) == b"still here"

    async def test_handler_that_returns_early_ends_the_stream(self) -> None:
        async with self.nodes("one", "two") as (one, two):

            async def brief(stream: Stream) -> None:
                await stream.write(b"hello")

            two.handle(ECHO, brief)
            stream = await (await self.dial(one, two)).open_stream(ECHO)
            assert await read_all(stream) == b"hello"

    async def test_a_reader_that_stops_holds_its_window_and_no_more(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            release = asyncio.Event()
            total = 4 * limits.STREAM_WINDOW_BYTES
            got = asyncio.get_running_loop().create_future()

            async def lazy(stream: Stream) -> None:
                await release.wait()
                got.set_result(len(await read_all(stream)))

            two.handle(ECHO, lazy)
            stream = await (await self.dial(one, two)).open_stream(ECHO)
            written = 0

            async def send() -> None:
                nonlocal written
                chunk = bytes(65_536)
                while written < total:
                    await stream.write(chunk)
                    written += len(chunk)
                await stream.close_write()

            sending = asyncio.ensure_future(send())
            stalled = -1
            while written != stalled:
                stalled = written
                await asyncio.sleep(0.1)
            assert not sending.done()
            held_max = limits.STREAM_WINDOW_BYTES + limits.WRITE_UNSENT_BYTES_MAX + 65_536
            assert written <= held_max
            release.set()
            await sending
            assert await got == total

    async def test_many_streams_at_once(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            two.handle(ECHO, echo)
            connection = await self.dial(one, two)

            async def talk(index: int) -> bool:
                stream = await connection.open_stream(ECHO)
                data = index.to_bytes(4, "big") * 500
                await stream.write(data)
                await stream.close_write()
                return await read_all(stream) == data

            assert all(await asyncio.gather(*[talk(index) for index in range(300)]))
            await until(lambda: connection.stats().streams_open == 0)

    async def test_negotiation_times_out(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            connection = await self.dial(one, two)
            with pytest.raises(PeerTimeout):
                await connection.open_stream(ECHO, timeout_s=0)

    async def test_losing_the_connection_wakes_reader_and_writer(self) -> None:
        async with self.nodes("one", "two") as (one, two):

            async def hold(stream: Stream) -> None:
                await asyncio.Event().wait()

            two.handle(ECHO, hold)
            connection = await self.dial(one, two)
            stream = await connection.open_stream(ECHO)
            reading = asyncio.ensure_future(stream.read(1))
            writing = asyncio.ensure_future(stream.write(bytes(8 * limits.STREAM_WINDOW_BYTES)))
            await asyncio.sleep(0)
            await two.close()
            for waiting in (reading, writing):
                with pytest.raises(ConnectionLost):
                    await waiting
            stream.reset()
            await stream.close_write()
            with pytest.raises(ConnectionLost):
                await connection.open_stream(ECHO)
            with pytest.raises(ConnectionLost):
                await connection.ping()

    async def test_stats_count_bytes(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            two.handle(ECHO, echo)
            connection = await self.dial(one, two)
            stream = await connection.open_stream(ECHO)
            await stream.write(bytes(100_000))
            await stream.read_exactly(100_000)
            stats = connection.stats()
            assert stats.bytes_sent >= 100_000
            assert stats.bytes_received >= 100_000
            assert stats.streams_open >= 1
            assert stats.rtt_s >= 0
            assert stats.datagram_bytes >= limits.DATAGRAM_BYTES_MIN
            assert stats.path == self.path
