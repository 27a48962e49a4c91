"""A node that lost a connection says so: its peers notice at once, not at the idle timeout."""

from __future__ import annotations

import asyncio

from p2pnode.transport.quic import QuicTransport
from p2pnode.transport.quic_resets import RESET_BYTES_MIN, RESETS_BURST, StatelessResets
from tests.kit.net import quic, running, until


def vanish(node: QuicTransport) -> None:
    """As if the process was killed: the socket is gone, nobody is told."""
    for connection in list(node._connections):
        connection.abandon()
    node.sockets.close()


async def test_a_restarted_peer_is_noticed_at_once() -> None:
    """The same identity on the same port; the next packet of the old connection is answered with a reset."""
    server, client = quic("server"), quic("client")
    async with running(server, client):
        address = server.listen_multiaddrs[0]
        connection = await client.dial([address], server.peer_id)
        vanish(server)
        again = quic("server", (address,))
        async with running(again):
            pinging = asyncio.ensure_future(connection.ping())
            await until(lambda: connection.is_closed)
            assert connection.error is not None
            assert "restarted" in connection.error.message
            await asyncio.gather(pinging, return_exceptions=True)
            assert again.resets.sent_count > 0
            assert await (await client.dial([address], server.peer_id)).ping() >= 0


async def test_another_node_cannot_reset_a_connection() -> None:
    """Tokens come from the node's own secret."""
    server, client = quic("server"), quic("client")
    async with running(server, client):
        address = server.listen_multiaddrs[0]
        connection = await client.dial([address], server.peer_id)
        vanish(server)
        impostor = quic("impostor", (address,))
        async with running(impostor):
            pinging = asyncio.ensure_future(connection.ping(timeout_s=0.5))
            await until(lambda: impostor.resets.sent_count > 0)
            await asyncio.gather(pinging, return_exceptions=True)
            assert not connection.is_closed


def test_resets_are_few_and_shorter_than_what_they_answer() -> None:
    node = quic("server", ())
    resets: StatelessResets[object] = StatelessResets(node._credentials, node.random_bytes)
    packet = b"\x40" + bytes(200)
    answer = resets.answer(packet, 0.0)
    assert answer is not None
    assert len(answer) == RESET_BYTES_MIN < len(packet)
    assert resets.answer(answer, 0.0) is None
    assert resets.answer(b"\x00" + bytes(200), 0.0) is None
    answered = sum(resets.answer(packet, 0.0) is not None for _ in range(1000))
    assert answered == RESETS_BURST - 1
    assert resets.answer(packet, 1.0) is not None
    watched = object()
    resets.watch(answer[-16:], watched)
    resets.watch(b"", watched)
    assert resets.match(answer) is watched
    resets.forget(watched)
    assert resets.match(answer) is None
