"""Sockets, listening and dialling: what can go wrong on this machine, said in words."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from p2pnode import limits
from p2pnode.errors import ConfigError, ConnectionLost, P2PNodeError, PeerUnreachable, PortTaken
from p2pnode.transport import quic_dialer
from p2pnode.transport.quic import QuicTransport
from p2pnode.transport.quic_socket import BATCH_DATAGRAMS, UdpSocket, socket_address
from p2pnode.transport.router import Router
from tests.kit.net import LOOPBACK, identity, quic, running, until


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("/ip4/127.0.0.1/tcp/4001", "not a quic-v1 address"),
        ("/dns4/localhost/udp/4001/quic-v1", "not a name"),
        ("nonsense", "starts with /"),
    ],
)
def test_a_listen_address_that_cannot_be_one(address: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        QuicTransport(identity("node"), [address])


async def test_an_address_of_another_machine() -> None:
    node = quic("node", ("/ip4/192.0.2.1/udp/0/quic-v1",))
    with pytest.raises(ConfigError, match="cannot listen"):
        await node.start()
    await node.close()


async def test_a_port_that_is_taken() -> None:
    """The one address that was bound before the failure is given back."""
    one = quic("one")
    async with running(one):
        taken = one.listen_multiaddrs[0]
        two = quic("two", (*LOOPBACK, taken))
        with pytest.raises(PortTaken, match="UDP port"):
            await two.start()
        assert two.sockets.all == []
        await two.close()


async def test_reasons_of_a_failed_dial_are_told_one_by_one() -> None:
    node = quic("node")
    other = identity("other").peer_id
    async with running(node):
        tried = [
            "/ip4/127.0.0.1/tcp/1",
            "/dns4/does-not-exist.invalid/udp/1/quic-v1",
            f"/ip4/127.0.0.1/udp/1/quic-v1/p2p/{identity('third').peer_id}",
        ]
        with pytest.raises(PeerUnreachable) as caught:
            await node.dial(tried, other)
        reasons = dict(caught.value.details["tried"])
        assert set(reasons) == set(tried)
        assert "not a quic-v1" in reasons[tried[0]]
        assert "does not resolve" in reasons[tried[1]]
        assert "another peer" in reasons[tried[2]]


async def test_a_handshake_that_never_answers_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(limits, "DIAL_STAGGER_S", 0.01)
    node = quic("node")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        async with running(node):
            addresses = [f"/ip4/127.0.0.1/udp/{port}/quic-v1", "/ip4/127.0.0.1/udp/9/quic-v1"]
            with pytest.raises(PeerUnreachable) as caught:
                await node.dial(addresses, identity("other").peer_id)
            assert [reason for _, reason in caught.value.details["tried"]] == ["no answer within 0.1 s"] * 2
            assert not node._connections


async def test_half_open_handshakes_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends its first flight and no more holds a place for ten seconds, not for ever."""
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.1)
    server, client = quic("server"), quic("client")
    async with running(server, client):
        port = int(server.listen_multiaddrs[0].split("/")[4])
        connection = client._begin_dial(socket.AF_INET, ("127.0.0.1", port), server.peer_id)
        connection.abandon()
        await until(lambda: server.acceptor.half_open == 1)
        await until(lambda: server.acceptor.half_open == 0)
        assert not server._connections


async def test_callers_share_a_dial_and_may_give_up_alone() -> None:
    server, client = quic("server"), quic("client")
    async with running(server, client):
        first = asyncio.ensure_future(client.dial(list(server.listen_multiaddrs), server.peer_id))
        second = asyncio.ensure_future(client.dial(list(server.listen_multiaddrs), server.peer_id))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).peer_id == server.peer_id
        assert first.cancelled()


async def test_stopping_ends_a_dial() -> None:
    client = quic("client")
    await client.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/udp/{silent.getsockname()[1]}/quic-v1"
        dialling = asyncio.ensure_future(client.dial([address], identity("other").peer_id))
        await asyncio.sleep(0.05)
        await client.close()
        with pytest.raises((asyncio.CancelledError, P2PNodeError)):
            await dialling
    with pytest.raises(ConnectionLost):
        await client.dial([address], identity("other").peer_id)


async def test_a_dial_only_node_does_not_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket answers nobody who comes uninvited."""
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.2)
    server, dialler, stranger = quic("server"), quic("dialler", ()), quic("stranger")
    async with running(server, dialler, stranger):
        await dialler.dial(list(server.listen_multiaddrs), server.peer_id)
        port = dialler.sockets.all[0].port
        with pytest.raises(PeerUnreachable):
            await stranger.dial([f"/ip4/127.0.0.1/udp/{port}/quic-v1"], dialler.peer_id)


def received(receiver: UdpSocket) -> list[bytes]:
    got: list[bytes] = []
    receiver.receive_batch(lambda _udp, data, _address: got.append(data))
    return got


def test_runs_travel_together_and_arrive_apart() -> None:
    """Order and sizes are kept, whatever the system joins on the way."""
    sender, receiver = UdpSocket("127.0.0.1", 0), UdpSocket("127.0.0.1", 0)
    try:
        target = ("127.0.0.1", receiver.port)
        sizes = [1200] * 5 + [700] + [1200, 1200, 1500, 30, 1200]
        datagrams = [(bytes([index]) * size, target) for index, size in enumerate(sizes)]
        sender.send_batch(datagrams)
        assert received(receiver) == [data for data, _ in datagrams]
        assert (sender.datagrams_sent, receiver.datagrams_received) == (len(sizes), len(sizes))
        many = [(bytes(1200), target)] * (3 * BATCH_DATAGRAMS)
        sender.send_batch(many)
        got = 0
        while batch := received(receiver):
            assert len(batch) <= 2 * BATCH_DATAGRAMS
            got += len(batch)
        assert got == len(many)
    finally:
        sender.close()
        receiver.close()


def test_a_system_without_segmentation_is_served_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sender, receiver = UdpSocket("127.0.0.1", 0), UdpSocket("127.0.0.1", 0)
    real = sender._socket

    class Plain:
        def sendmsg(self, *_arguments: object) -> int:
            raise OSError(errno.EIO, "no segmentation")

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    try:
        monkeypatch.setattr(sender, "_socket", Plain())
        target = ("127.0.0.1", receiver.port)
        for _ in range(2):
            sender.send_batch([(b"x" * 100, target)] * 3)
        assert received(receiver) == [b"x" * 100] * 6
        assert not sender._can_segment
    finally:
        real.close()
        receiver.close()


def test_what_cannot_be_sent_is_counted() -> None:
    sender = UdpSocket("127.0.0.1", 0)
    try:
        sender.send_batch([(bytes(66_000), ("127.0.0.1", 9)), (b"x", ("127.0.0.1", 0))])
        assert (sender.datagrams_dropped, sender.datagrams_sent) == (2, 0)
    finally:
        sender.close()


def test_socket_addresses_compare_with_those_received() -> None:
    index = socket.if_nametoindex("lo")
    assert socket_address("1.2.3.4", 5, socket.AF_INET) == ("1.2.3.4", 5)
    assert socket_address("fe80::1%lo", 5, socket.AF_INET6) == ("fe80::1%lo", 5, 0, index)
    assert socket_address("fe80::1%7", 5, socket.AF_INET6)[3] == 7
    assert socket_address("2001:db8::1", 5, socket.AF_INET6) == ("2001:db8::1", 5, 0, 0)


async def test_a_name_with_two_addresses_is_two_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = quic("server"), quic("client")
    async with running(server, client):
        port = int(server.listen_multiaddrs[0].split("/")[4])
        loop = asyncio.get_running_loop()

        async def lookup(_host: str, _port: int, **_options: object) -> list[tuple[object, ...]]:
            return [
                (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.9", port)),
                (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", port)),
                (socket.AF_UNIX, socket.SOCK_DGRAM, 0, "", ("nowhere", port)),
            ]

        monkeypatch.setattr(loop, "getaddrinfo", lookup)
        dialer = quic_dialer.Dialer(server.peer_id, client._begin_dial, 5)
        connection = await dialer.run([f"/dns/home.example/udp/{port}/quic-v1"])
        assert connection.remote_multiaddr == server.listen_multiaddrs[0]
        assert len(dialer.tried) == 2


def test_router_asks_the_gate_only_for_what_is_spoken() -> None:
    router = Router()
    asked: list[str] = []
    router.set_gate(lambda _peer_id, protocol: bool(asked.append(protocol)))
    assert not router.accepts(identity("peer").peer_id, "/unknown")
    assert asked == []
