"""py-libp2p over QUIC dials us and is dialled by us."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from p2pnode.errors import IdentityMismatch
from p2pnode.transport.quic import QuicTransport
from tests.interop.peers import INSTALLED, Peer, py_command, started
from tests.kit.net import LOOPBACK, echo, identity, until

ECHO = "/interop/echo/1"
ECHO_BYTES = 1_000_000

pytestmark = pytest.mark.interop


@pytest.fixture
async def py() -> AsyncIterator[Peer]:
    async with started(py_command(), INSTALLED / "py") as peer:
        yield peer


@pytest.fixture
async def node() -> AsyncIterator[QuicTransport]:
    transport = QuicTransport(identity("interop"), LOOPBACK, agent="p2pnode/interop")
    transport.handle(ECHO, echo)
    await transport.start()
    yield transport
    await transport.close()


async def test_py_dials_us(py: Peer, node: QuicTransport) -> None:
    dialled = await py.ask("dial", address=f"{node.listen_multiaddrs[0]}/p2p/{node.peer_id}")
    assert dialled["ok"], dialled
    await until(lambda: node.connection(py.peer_id) is not None)
    pinged = await py.ask("ping", peer=node.peer_id)
    assert pinged["ok"], pinged
    said = await py.ask("identify", peer=node.peer_id)
    assert said["ok"], said
    assert said["agent"] == "p2pnode/interop"
    assert ECHO in said["protocols"]
    echoed = await py.ask("echo", peer=node.peer_id, size=ECHO_BYTES)
    assert echoed == {"ok": True, "got": ECHO_BYTES, "wrong": 0}


async def test_we_dial_py(py: Peer, node: QuicTransport) -> None:
    connection = await node.dial(py.addresses, py.peer_id)
    assert [await connection.ping() for _ in range(3)]
    await until(lambda: connection.identified is not None)
    assert connection.identified is not None
    assert ECHO in connection.identified.protocols
    stream = await connection.open_stream(ECHO)
    for index in range(50):
        data = bytes([index]) * 4000
        await stream.write(data)
        assert await stream.read_exactly(len(data)) == data
    await stream.close_write()


async def test_py_refuses_us_under_another_name(py: Peer, node: QuicTransport) -> None:
    wrong = f"{node.listen_multiaddrs[0]}/p2p/{identity('somebody else').peer_id}"
    assert not (await py.ask("dial", address=wrong))["ok"]


async def test_we_refuse_py_under_another_name(py: Peer, node: QuicTransport) -> None:
    bare = [address.partition("/p2p/")[0] for address in py.addresses]
    with pytest.raises(IdentityMismatch):
        await node.dial(bare, identity("somebody else").peer_id)
