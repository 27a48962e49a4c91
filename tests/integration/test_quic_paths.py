"""Real paths: latency, loss, reordering, small MTUs, addresses that change; the bytes stay right."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator

import pytest

from p2pnode import limits
from p2pnode.transport import quic_path
from p2pnode.transport.quic import QuicTransport
from p2pnode.transport.quic_connection import QuicPeerConnection
from p2pnode.transport.quic_core import QuicCore
from p2pnode.transport.quic_fast import FastQuicCore
from tests.kit.net import echo, quic, read_all, running, until
from tools.udp_relay import Conditions, UdpRelay

ECHO = "/test/echo/1"
CORES = pytest.mark.parametrize("core", [QuicCore, FastQuicCore])


@contextlib.asynccontextmanager
async def relayed(
    conditions: Conditions, core: type[QuicCore] = FastQuicCore, seed: int = 1, **options: object
) -> AsyncIterator[tuple[QuicPeerConnection, QuicTransport, UdpRelay]]:
    """client -> relay -> server, connected."""
    server, client = quic("server", core=core, **options), quic("client", core=core, **options)
    async with running(server, client):
        server.handle(ECHO, echo)
        relay = UdpRelay(("127.0.0.1", int(server.listen_multiaddrs[0].split("/")[4])), conditions, seed)
        host, port = relay.start()[:2]
        try:
            connection = await client.dial([f"/ip4/{host}/udp/{port}/quic-v1"], server.peer_id)
            yield connection, server, relay
        finally:
            await client.close()
            relay.close()


async def exchange(connection: QuicPeerConnection, size: int, seed: int = 0) -> None:
    data = random.Random(seed).randbytes(size)
    stream = await connection.open_stream(ECHO)

    async def send() -> None:
        for start in range(0, size, 10_000):
            await stream.write(data[start : start + 10_000])
        await stream.close_write()

    _, got = await asyncio.gather(send(), read_all(stream))
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()


@CORES
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_loss_and_reordering_change_no_byte(core: type[QuicCore], seed: int) -> None:
    conditions = Conditions(latency_s=0.001, jitter_s=0.004, loss=0.03)
    async with relayed(conditions, core, seed) as (connection, _, relay):
        await asyncio.gather(*[exchange(connection, 100_000, index) for index in range(4)])
        assert relay.counters.lost > 0


@CORES
async def test_a_slow_link_is_not_overrun(core: type[QuicCore]) -> None:
    """20 Mbit/s and 10 ms: the congestion window finds it, most datagrams arrive."""
    conditions = Conditions(latency_s=0.005, rate_bytes_s=2.5e6)
    async with relayed(conditions, core) as (connection, _, relay):
        await exchange(connection, 500_000)
        assert relay.counters.overflowed == 0
        assert connection.stats().rtt_s >= 0.01


async def test_datagrams_grow_to_what_the_path_carries() -> None:
    """Probed, not assumed: a path of 1,500 bytes gives 1,452, loopback gives the most there is."""
    async with relayed(Conditions(datagram_bytes_max=1472)) as (connection, server, relay):
        await until(lambda: connection.core.datagram_bytes == 1452)
        await until(lambda: server.connections()[0].core.datagram_bytes == 1452)
        await exchange(connection, 200_000)
        assert connection.core.datagram_bytes == 1452
        assert relay.counters.oversized > 0


async def test_a_path_of_1200_bytes_is_enough() -> None:
    async with relayed(Conditions(datagram_bytes_max=1200)) as (connection, _, _relay):
        await exchange(connection, 100_000)
        assert connection.core.datagram_bytes == limits.DATAGRAM_BYTES_MIN


@CORES
async def test_large_datagrams_are_given_up_when_the_path_swallows_them(
    core: type[QuicCore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A route change to a smaller MTU in the middle of a transfer; later probes raise the size again."""
    monkeypatch.setattr(quic_path, "PROBE_AGAIN_S", 0.3)
    monkeypatch.setattr(quic_path, "PROBE_RAISE_S", 0.3)
    async with relayed(Conditions(), core) as (connection, _, relay):
        await until(lambda: connection.core.datagram_bytes == limits.DATAGRAM_BYTES_MAX)
        relay.conditions.datagram_bytes_max = 1300
        await exchange(connection, 200_000)
        assert relay.counters.oversized > 0
        assert connection.core.datagram_bytes == limits.DATAGRAM_BYTES_MIN
        relay.conditions.datagram_bytes_max = 2000
        await until(lambda: connection.core.datagram_bytes == 1452)


@CORES
async def test_a_peer_may_move_to_another_address(core: type[QuicCore]) -> None:
    """A NAT forgets, a laptop changes network: the connection and its streams go on (RFC 9000 section 9)."""
    async with relayed(Conditions(), core) as (connection, server, relay):
        stream = await connection.open_stream(ECHO)
        await stream.write(b"before")
        assert await stream.read_exactly(6) == b"before"
        seen = server.connections()[0]
        address = seen.remote_multiaddr
        relay.rebind()
        await stream.write(b"after")
        assert await stream.read_exactly(5) == b"after"
        await until(lambda: seen.remote_multiaddr != address)
        await exchange(connection, 300_000)
        assert server.connections() == [seen]


async def test_keep_alives_hold_an_idle_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence longer than the idle timeout: a prefill of minutes does not lose the peer."""
    async with relayed(Conditions(), idle_timeout_s=0.6) as (connection, server, _relay):
        await asyncio.sleep(1.5)
        assert not connection.is_closed
        assert len(server.connections()) == 1
        await exchange(connection, 1000)


async def test_a_peer_that_vanishes_is_noticed() -> None:
    async with relayed(Conditions(), idle_timeout_s=0.5) as (connection, server, relay):
        relay.conditions.loss = 1.0
        await until(lambda: connection.is_closed and not server.connections())
        assert connection.error is not None
        assert "silent" in connection.error.message


async def test_ordinary_packets_take_the_short_way() -> None:
    """Guards the speed: nearly every packet of a bulk transfer is built by the fast path."""
    async with relayed(Conditions()) as (connection, _, _relay):
        await until(lambda: connection.core.datagram_bytes == limits.DATAGRAM_BYTES_MAX)
        core = connection.core
        assert isinstance(core, FastQuicCore)
        before, fast = core._packet_number, core.packets_fast
        await exchange(connection, 4_000_000)
        assert core.packets_fast - fast > 0.75 * (core._packet_number - before)


async def test_dial_races_addresses_and_reports_each() -> None:
    """A dead address first costs the stagger, not the timeout."""
    server, client = quic("server"), quic("client")
    async with running(server, client):
        dead = "/ip4/127.0.0.1/udp/1/quic-v1"
        good = server.listen_multiaddrs[0]
        loop = asyncio.get_running_loop()
        started = loop.time()
        connection = await client.dial([dead, "/ip4/127.0.0.1/tcp/1", "nonsense", good], server.peer_id)
        assert connection.remote_multiaddr == good
        assert loop.time() - started < limits.HANDSHAKE_TIMEOUT_S


async def test_names_are_resolved() -> None:
    server, client = quic("server"), quic("client")
    async with running(server, client):
        port = server.listen_multiaddrs[0].split("/")[4]
        connection = await client.dial([f"/dns4/localhost/udp/{port}/quic-v1"], server.peer_id)
        assert await connection.ping() >= 0


async def test_ipv6_and_wildcards() -> None:
    """A wildcard is announced as the addresses behind it; IPv6 peers connect over their own socket."""
    server = quic("server", ("/ip4/0.0.0.0/udp/0/quic-v1", "/ip6/::1/udp/0/quic-v1"))
    client = quic("client", ())
    async with running(server, client):
        assert not any("0.0.0.0" in address for address in server.listen_multiaddrs)
        assert any(address.startswith("/ip4/127.0.0.1/") for address in server.listen_multiaddrs)
        ipv6 = [address for address in server.listen_multiaddrs if address.startswith("/ip6/::1/")]
        assert client.listen_multiaddrs == []
        connection = await client.dial(ipv6, server.peer_id)
        assert connection.remote_multiaddr == ipv6[0]
        assert await connection.ping() >= 0
