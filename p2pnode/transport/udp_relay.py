"""A bad network in a box: a UDP relay with latency, jitter, rate and loss, all from one seed.

For tests and benches where the system offers no netem. Clients send to the relay's port, the relay forwards to
one target; each client gets a socket of its own, so that the target sees them apart, and `rebind` moves a client
to a new port as a NAT or a change of network would.
"""

from __future__ import annotations

import asyncio
import random
import socket
from dataclasses import dataclass

from aioquic.quic.connection import NetworkAddress

DATAGRAM_BYTES_MAX = 65_535
BATCH_DATAGRAMS = 64
CLIENTS_MAX = 256
QUEUE_BYTES_MAX = 4 * 1024 * 1024
"""What waits inside one direction of the relay; more is dropped, as a router would."""


@dataclass(slots=True)
class Conditions:
    """One direction. Times in seconds, probabilities 0..1."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    """Uniform extra delay; datagrams overtake each other when it exceeds their spacing."""
    loss: float = 0.0
    rate_bytes_s: float | None = None
    datagram_bytes_max: int = DATAGRAM_BYTES_MAX
    """Larger ones vanish: the path's MTU."""


@dataclass(slots=True)
class Counters:
    passed: int = 0
    lost: int = 0
    oversized: int = 0
    overflowed: int = 0


class UdpRelay:
    """Runs on the event loop it is started on."""

    def __init__(self, target: NetworkAddress, conditions: Conditions, seed: int = 0) -> None:
        self.conditions = conditions
        self.counters = Counters()
        self._target = target
        self._rng = random.Random(seed)  # noqa: S311 (reproducible faults, no secret)
        self._upstream: dict[NetworkAddress, socket.socket] = {}
        self._queued_bytes = 0
        self._free_at = 0.0
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, host: str = "127.0.0.1", port: int = 0) -> NetworkAddress:
        """-> the address clients send to."""
        self._loop = asyncio.get_running_loop()
        self._socket = _open(self._target, (host, port))
        self._loop.add_reader(self._socket.fileno(), self._from_clients)
        address: NetworkAddress = self._socket.getsockname()
        return address

    def close(self) -> None:
        assert self._loop is not None
        for sock in (self._socket, *self._upstream.values()):
            if sock is not None:
                self._loop.remove_reader(sock.fileno())
                sock.close()
        self._upstream.clear()
        self._socket = None

    def rebind(self) -> None:
        """Every client appears at the target from a new port from now on."""
        assert self._loop is not None
        for client, sock in list(self._upstream.items()):
            self._loop.remove_reader(sock.fileno())
            sock.close()
            del self._upstream[client]

    def _from_clients(self) -> None:
        if self._socket is None:
            return
        for _ in range(BATCH_DATAGRAMS):
            try:
                data, client = self._socket.recvfrom(DATAGRAM_BYTES_MAX)
            except (BlockingIOError, ConnectionError):
                return
            self._delay(data, client, is_upward=True)

    def _from_target(self, client: NetworkAddress, sock: socket.socket) -> None:
        for _ in range(BATCH_DATAGRAMS):
            try:
                data = sock.recv(DATAGRAM_BYTES_MAX)
            except (BlockingIOError, ConnectionError, OSError):
                return
            self._delay(data, client, is_upward=False)

    def _delay(self, data: bytes, client: NetworkAddress, *, is_upward: bool) -> None:
        assert self._loop is not None
        conditions, size = self.conditions, len(data)
        if size > conditions.datagram_bytes_max:
            self.counters.oversized += 1
            return
        if self._rng.random() < conditions.loss:
            self.counters.lost += 1
            return
        if self._queued_bytes + size > QUEUE_BYTES_MAX:
            self.counters.overflowed += 1
            return
        now = self._loop.time()
        at = now + conditions.latency_s + conditions.jitter_s * self._rng.random()
        if conditions.rate_bytes_s is not None:
            self._free_at = max(self._free_at, now) + size / conditions.rate_bytes_s
            at += self._free_at - now
        if at <= now:
            self._forward(data, client, is_upward=is_upward)
        else:
            self._queued_bytes += size
            self._loop.call_at(at, self._forward_queued, data, client, is_upward)

    def _forward_queued(self, data: bytes, client: NetworkAddress, is_upward: bool) -> None:
        self._queued_bytes -= len(data)
        self._forward(data, client, is_upward=is_upward)

    def _forward(self, data: bytes, client: NetworkAddress, *, is_upward: bool) -> None:
        if self._socket is None:
            return
        try:
            if is_upward:
                upstream = self._upstream_of(client)
                if upstream is None:
                    return
                upstream.send(data)
            else:
                self._socket.sendto(data, client)
        except OSError:
            # Nobody listens there, or a buffer is full: a network would say as little.
            self.counters.overflowed += 1
            return
        self.counters.passed += 1

    def _upstream_of(self, client: NetworkAddress) -> socket.socket | None:
        upstream = self._upstream.get(client)
        if upstream is None:
            if len(self._upstream) >= CLIENTS_MAX:
                return None
            assert self._loop is not None
            upstream = _open(self._target, ("127.0.0.1" if len(self._target) == 2 else "::1", 0))
            upstream.connect(self._target)
            self._upstream[client] = upstream
            self._loop.add_reader(upstream.fileno(), self._from_target, client, upstream)
        return upstream


def _open(target: NetworkAddress, bind_to: NetworkAddress) -> socket.socket:
    sock = socket.socket(socket.AF_INET if len(target) == 2 else socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, QUEUE_BYTES_MAX)
    sock.bind(bind_to)
    return sock
