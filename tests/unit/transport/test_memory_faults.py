"""The faults of the memory network: seeded, and on the clock of the event loop."""

from __future__ import annotations

import asyncio
import random

import pytest

from p2pnode.errors import ConnectionLost, IdentityMismatch, PeerTimeout, PeerUnreachable, StreamReset
from p2pnode.transport import identify, ping
from p2pnode.transport.identify import Identify
from p2pnode.transport.memory import MemoryNetwork, MemoryTransport
from p2pnode.transport.memory_pipe import Link
from tests.kit.net import echo, identity, read_all, until

ECHO = "/test/echo/1"


@pytest.fixture
def net() -> MemoryNetwork:
    return MemoryNetwork(seed=7, idle_timeout_s=0.05)


async def two(network: MemoryNetwork) -> tuple[MemoryTransport, MemoryTransport]:
    one, other = network.transport(identity("one")), network.transport(identity("two"))
    other.handle(ECHO, echo)
    await one.start()
    await other.start()
    return one, other


def test_delays_are_those_of_the_seed() -> None:
    def delays(seed: int) -> list[float]:
        link = Link(latency_s=0.01, jitter_s=0.01, loss=0.3, rng=random.Random(seed))
        return [link.delay_s(100, 0.0) for _ in range(50)]

    assert delays(1) == delays(1) != delays(2)
    assert min(delays(1)) >= 0.01
    assert max(delays(1)) > 0.03


def test_a_rate_makes_bytes_queue() -> None:
    link = Link(rate_bytes_s=1000.0)
    assert [link.delay_s(100, 0.0) for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    assert link.delay_s(100, 10.0) == pytest.approx(0.1)


async def test_a_bad_link_keeps_order(net: MemoryNetwork) -> None:
    one, other = await two(net)
    link = net.link(one.peer_id, other.peer_id)
    link.latency_s, link.jitter_s, link.loss = 0.001, 0.002, 0.2
    connection = await one.dial([other.address], other.peer_id)
    assert connection.stats().rtt_s == 0.002
    assert await connection.ping() >= 0.002
    stream = await connection.open_stream(ECHO)
    data = bytes(range(200))

    async def send() -> None:
        for start in range(0, 200, 10):
            await stream.write(data[start : start + 10])
        await stream.close_write()

    _, got = await asyncio.gather(send(), read_all(stream))
    assert got == data
    await one.close()
    await other.close()


async def test_a_short_partition_is_survived(net: MemoryNetwork) -> None:
    one, other = await two(net)
    connection = await one.dial([other.address], other.peer_id)
    stream = await connection.open_stream(ECHO)
    net.partition(one.peer_id, other.peer_id)
    await stream.write(b"held back")
    with pytest.raises(PeerTimeout):
        await connection.ping(timeout_s=0.005)
    with pytest.raises(PeerTimeout):
        await connection.open_stream(ECHO, timeout_s=0.005)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.read(1), 0.005)
    net.heal(one.peer_id, other.peer_id)
    assert await stream.read_exactly(9) == b"held back"
    await asyncio.sleep(0.06)
    assert not connection.is_closed
    await one.close()
    await other.close()


async def test_a_long_partition_ends_the_connection(net: MemoryNetwork) -> None:
    one, other = await two(net)
    connection = await one.dial([other.address], other.peer_id)
    stream = await connection.open_stream(ECHO)
    net.partition(one.peer_id, other.peer_id)
    with pytest.raises(ConnectionLost, match="silent"):
        await stream.read(1)
    await until(lambda: not other.connections())
    with pytest.raises(PeerUnreachable):
        await one.dial([other.address], other.peer_id)
    net.heal(one.peer_id, other.peer_id)
    assert await (await one.dial([other.address], other.peer_id)).ping() >= 0
    await one.close()
    await other.close()


async def test_a_dial_over_a_long_link_can_time_out(net: MemoryNetwork) -> None:
    one, other = await two(net)
    net.link(one.peer_id, other.peer_id).latency_s = 5.0
    with pytest.raises(PeerUnreachable) as caught:
        await one.dial([other.address], other.peer_id, timeout_s=0.01)
    assert caught.value.details["tried"] == [[other.address, "no answer in time"]]
    await one.close()
    await other.close()


async def test_pushes_update_what_is_known(net: MemoryNetwork) -> None:
    one, other = await two(net)
    connection = await one.dial([other.address], other.peer_id)
    learned: list[str] = []
    other.identify.observe(lambda _connection, message: learned.append(message.agent))
    for agent in ("first", "second"):
        stream = await connection.open_stream(identify.PROTOCOL_PUSH)
        await stream.write(identify.encode_delimited(Identify(agent=agent)))
        await stream.close_write()
        await until(lambda expected=agent: expected in learned)
    assert one.connection(other.peer_id) is connection
    assert connection.observed_multiaddr is None or connection.observed_multiaddr == one.address
    await one.close()
    await other.close()


async def test_identify_that_comes_in_parts_is_merged(net: MemoryNetwork) -> None:
    """go-libp2p splits large messages; several that follow each other count as one."""
    one, other = await two(net)
    large = Identify(protocols=tuple(f"/padding/{index}/{'x' * 40}" for index in range(100)))

    async def serve(stream) -> None:
        await stream.write(identify.encode_delimited(large))
        await stream.write(identify.encode_delimited(Identify(agent="in parts")))

    other.handle(identify.PROTOCOL, serve)
    connection = await one.dial([other.address], other.peer_id)
    said = await one.identify.ask(connection)
    assert (said.agent, len(said.protocols)) == ("in parts", 100)
    await one.close()
    await other.close()


async def test_identify_that_never_comes_is_a_timeout(
    net: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    from p2pnode import limits

    one, other = await two(net)
    other.handle(identify.PROTOCOL, lambda _stream: asyncio.Event().wait())
    connection = await one.dial([other.address], other.peer_id)
    monkeypatch.setattr(limits, "IDENTIFY_TIMEOUT_S", 0.01)
    with pytest.raises(PeerTimeout):
        await one.identify.ask(connection)
    await one.close()
    await other.close()


async def test_a_ping_that_comes_back_wrong_is_an_error(net: MemoryNetwork) -> None:
    from p2pnode.errors import RemoteProtocolError

    one, other = await two(net)

    async def wrong(stream) -> None:
        await stream.read_exactly(32)
        await stream.write(bytes(32))

    other.handle(ping.PROTOCOL, wrong)
    connection = await one.dial([other.address], other.peer_id)
    with pytest.raises(RemoteProtocolError, match="other bytes"):
        await connection.ping()
    await one.close()
    await other.close()


async def test_a_ping_in_pieces_is_echoed_whole(net: MemoryNetwork) -> None:
    one, other = await two(net)
    connection = await one.dial([other.address], other.peer_id)
    stream = await connection.open_stream(ping.PROTOCOL)
    for _ in range(2):
        await stream.write(b"x" * 20)
        await stream.write(b"y" * 12)
        assert await stream.read_exactly(32) == b"x" * 20 + b"y" * 12
    stream.reset()
    with pytest.raises(StreamReset):
        await stream.read(1)
    await one.close()
    await other.close()


async def test_the_wrong_node_at_an_address(net: MemoryNetwork) -> None:
    one, other = await two(net)
    with pytest.raises(IdentityMismatch):
        await one.dial([other.address], identity("three").peer_id)
    await one.close()
    await other.close()


async def test_a_cut_link_leaves_the_other_links_alone(net: MemoryNetwork) -> None:
    one, other = await two(net)
    third = net.transport(identity("three"))
    third.handle(ECHO, echo)
    await third.start()
    kept = await one.dial([third.address], third.peer_id)
    lost = await one.dial([other.address], other.peer_id)
    net.partition(one.peer_id, other.peer_id)
    await until(lambda: lost.is_closed)
    assert not kept.is_closed
    stream = await kept.open_stream(ECHO)
    await stream.write(b"still here")
    await stream.close_write()
    assert await read_all(stream) == b"still here"
    for transport in (one, other, third):
        await transport.close()


async def test_no_stream_opens_on_a_connection_that_ended(net: MemoryNetwork) -> None:
    one, other = await two(net)
    connection = await one.dial([other.address], other.peer_id)
    await other.close()
    assert connection.is_closed
    with pytest.raises(ConnectionLost):
        await connection.open_stream(ECHO)
    reason = connection.error
    await connection.close()
    assert connection.error is reason, "the first reason stands"
    assert one.counters() == {"connections": 0, "gate_refused": 0}
    await one.close()
