"""Many connections and streams for a while: memory stays flat, nothing is left at the end."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc

import pytest

from p2pnode.transport.quic import QuicTransport
from tests.kit.net import echo, quic, read_all, until

ECHO = "/test/echo/1"
CONNECTIONS, STREAMS_EACH = 50, 10
DIALS_AT_ONCE = 8


async def burst(clients: list[QuicTransport], server: QuicTransport, seconds: float) -> int:
    """Every client keeps its streams busy with short exchanges, opening a new stream for each."""
    end = time.monotonic() + seconds
    exchanged = 0

    async def talk(client: QuicTransport, index: int) -> None:
        nonlocal exchanged
        connection = client.connection(server.peer_id)
        assert connection is not None
        data = index.to_bytes(2, "big") * 500
        while True:
            stream = await connection.open_stream(ECHO, timeout_s=60)
            await stream.write(data)
            await stream.close_write()
            assert await read_all(stream) == data
            exchanged += 1
            if time.monotonic() > end:
                return

    await asyncio.gather(*[talk(client, index) for client in clients for index in range(STREAMS_EACH)])
    return exchanged


async def measure(seconds: float, bursts: int) -> None:
    server = quic("server")
    clients = [quic(f"client {index}") for index in range(CONNECTIONS)]
    before = set(asyncio.all_tasks())
    async with asyncio.timeout(180 + seconds * bursts):
        try:
            server.handle(ECHO, echo)
            for transport in (server, *clients):
                await transport.start()
            for first in range(0, CONNECTIONS, DIALS_AT_ONCE):
                group = clients[first : first + DIALS_AT_ONCE]
                await asyncio.gather(
                    *[client.dial(list(server.listen_multiaddrs), server.peer_id) for client in group]
                )
            assert len(server.connections()) == CONNECTIONS
            assert await burst(clients, server, seconds) >= CONNECTIONS * STREAMS_EACH
            gc.collect()
            tracemalloc.start()
            sizes = []
            for _ in range(bursts):
                await burst(clients, server, seconds)
                await until(lambda: all(one.stats().streams_open == 0 for one in server.connections()))
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
            for connection in (*server.connections(), *[client.connections()[0] for client in clients]):
                await until(lambda core=connection.core: not core._streams)
                assert not connection._streams
                assert not connection._peer_ids.unseen
                assert not connection.core._read_offsets
            # Tables that grow to a bound (packet numbers seen, timers) are allowed 20 kB for each end.
            assert sizes[-1] - sizes[0] < 20_000 * 2 * CONNECTIONS, sizes
        finally:
            tracemalloc.stop()
            for transport in (*clients, server):
                await transport.close()
    assert not server._connections
    assert not server._routes
    assert not server._tasks
    assert server.acceptor.open == server.acceptor.half_open == 0
    await asyncio.sleep(0)
    assert set(asyncio.all_tasks()) == before


async def test_500_streams_on_50_connections_leave_nothing() -> None:
    await measure(seconds=0.1, bursts=2)


@pytest.mark.slow
async def test_500_streams_on_50_connections_for_a_minute() -> None:
    await measure(seconds=10, bursts=6)
