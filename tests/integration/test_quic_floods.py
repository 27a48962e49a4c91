"""Datagrams that nobody asked for, over real QUIC: counted, bounded, and no help for whoever forges an address."""

from __future__ import annotations

import asyncio
import os
import socket
import tracemalloc

from p2pnode import limits
from tests.kit.net import echo, quic, running, until

ECHO = "/test/echo/1"


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
