"""js-libp2p (rust QUIC and TLS underneath) dials us and is dialled by us."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from p2pnode.errors import IdentityMismatch, RemoteProtocolError
from p2pnode.transport.port import Stream
from p2pnode.transport.quic import QuicTransport
from tests.interop.peers import INSTALLED, Peer, js_command, started
from tests.kit.net import LOOPBACK, identity, until

ECHO = "/interop/echo/1"
STREAMS = 100
ECHO_BYTES = 50_000_000

pytestmark = pytest.mark.interop


async def echo(stream: Stream) -> None:
    while data := await stream.read(1 << 18):
        await stream.write(data)


@pytest.fixture
async def js() -> AsyncIterator[Peer]:
    async with started(js_command(), INSTALLED / "js") as peer:
        yield peer


@pytest.fixture
async def node() -> AsyncIterator[QuicTransport]:
    transport = QuicTransport(identity("interop"), LOOPBACK, agent="p2pnode/interop")
    transport.handle(ECHO, echo)
    await transport.start()
    yield transport
    await transport.close()


def address_of(node: QuicTransport) -> str:
    return f"{node.listen_multiaddrs[0]}/p2p/{node.peer_id}"


def pattern(index: int, size: int) -> bytes:
    cycle = bytes((at * 7 + index) & 255 for at in range(256))
    return (cycle * (size // 256 + 1))[:size]


async def test_js_dials_us(js: Peer, node: QuicTransport) -> None:
    """Handshake, ping, identify, an unknown protocol, an echo of 50 MB, 100 streams at once."""
    assert (await js.ask("dial", address=address_of(node)))["peer"] == node.peer_id
    await until(lambda: node.connection(js.peer_id) is not None)
    assert (await js.ask("ping", peer=node.peer_id))["ms"] < 1000
    said = await js.ask("identify", peer=node.peer_id)
    assert said["ok"]
    assert said["peer"] == node.peer_id
    assert said["agent"] == "p2pnode/interop"
    assert ECHO in said["protocols"]
    assert said["signed"]
    assert said["observed"].startswith("/ip4/127.0.0.1/udp/")
    assert (await js.ask("unknown", peer=node.peer_id))["refused"]
    streams = await js.ask("echo", peer=node.peer_id, size=20_000, streams=STREAMS)
    assert (streams["got"], streams["wrong"]) == (20_000 * STREAMS, 0)
    bulk = await js.ask("echo", peer=node.peer_id, size=ECHO_BYTES, streams=1)
    assert (bulk["got"], bulk["wrong"]) == (ECHO_BYTES, 0)
    print(f"js -> us -> js: {ECHO_BYTES / bulk['seconds'] / 1e6:.1f} MB/s echoed")
    connection = node.connection(js.peer_id)
    assert connection is not None
    await js.ask("hangup", peer=node.peer_id)
    await until(lambda: connection.is_closed)


async def test_we_dial_js(js: Peer, node: QuicTransport) -> None:
    """The same the other way round."""
    connection = await node.dial(js.addresses, js.peer_id)
    assert connection.peer_id == js.peer_id
    assert [await connection.ping() for _ in range(3)]
    await until(lambda: connection.identified is not None)
    said = connection.identified
    assert said is not None
    assert "libp2p" in said.agent
    assert ECHO in said.protocols
    assert said.observed_multiaddr is not None
    assert said.observed_multiaddr.startswith("/ip4/127.0.0.1/udp/")
    with pytest.raises(RemoteProtocolError):
        await connection.open_stream("/interop/unknown/1")

    async def round_trip(index: int, size: int) -> None:
        stream = await connection.open_stream(ECHO, timeout_s=30)
        data = pattern(index, size)

        async def send() -> None:
            await stream.write(data)
            await stream.close_write()

        sending = asyncio.ensure_future(send())
        assert await stream.read_exactly(size) == data
        assert await stream.read(1) == b""
        await sending

    await asyncio.gather(*[round_trip(index, 20_000) for index in range(STREAMS)])
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    await round_trip(0, ECHO_BYTES)
    print(f"us -> js -> us: {ECHO_BYTES / (loop.time() - started_at) / 1e6:.1f} MB/s echoed")
    assert connection.stats().datagram_bytes in (1200, 1452)
    await connection.close()
    async with asyncio.timeout(10):
        while (await js.ask("connections"))["peers"]:  # noqa: ASYNC110 (another process: one can only ask)
            await asyncio.sleep(0.05)


async def test_js_refuses_us_under_another_name(js: Peer, node: QuicTransport) -> None:
    wrong = f"{node.listen_multiaddrs[0]}/p2p/{identity('somebody else').peer_id}"
    answer = await js.ask("dial", address=wrong)
    assert not answer["ok"]
    # It looks at our name when the handshake is over, and hangs up.
    await until(lambda: not node.connections())


async def test_we_refuse_js_under_another_name(js: Peer, node: QuicTransport) -> None:
    bare = [address.partition("/p2p/")[0] for address in js.addresses]
    with pytest.raises(IdentityMismatch):
        await node.dial(bare, identity("somebody else").peer_id)


async def test_connection_outlives_the_idle_timeout_of_js(js: Peer, node: QuicTransport) -> None:
    """js closes after ten silent seconds: our keep-alives are the only traffic."""
    connection = await node.dial(js.addresses, js.peer_id)
    await asyncio.sleep(12)
    assert not connection.is_closed
    assert await connection.ping() < 1
