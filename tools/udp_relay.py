"""A bad network in a box: a UDP relay with latency, jitter, rate and loss, all from one seed.

    python tools/udp_relay.py --to 127.0.0.1:4001 --listen 127.0.0.1:5001 --latency-ms 20 --loss 0.01

For tests and benchmarks where the system offers no netem. Clients send to the relay's port instead of the node's,
the relay forwards to that one target; each client gets a socket of its own, so that the target sees them apart, and
`rebind` moves a client to a new port as a NAT or a change of network would.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any

Address = tuple[Any, ...]
"""As `socket` has it: host, port, and more for IPv6."""

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

    def __init__(self, target: Address, conditions: Conditions, seed: int = 0) -> None:
        self.conditions = conditions
        self.counters = Counters()
        self._target = target
        self._rng = random.Random(seed)
        self._upstream: dict[Address, socket.socket] = {}
        self._queued_bytes = 0
        self._free_at = 0.0
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, host: str = "127.0.0.1", port: int = 0) -> Address:
        """-> the address clients send to."""
        self._loop = asyncio.get_running_loop()
        self._socket = _open(self._target, (host, port))
        self._loop.add_reader(self._socket.fileno(), self._from_clients)
        address: Address = self._socket.getsockname()
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

    def _from_target(self, client: Address, sock: socket.socket) -> None:
        for _ in range(BATCH_DATAGRAMS):
            try:
                data = sock.recv(DATAGRAM_BYTES_MAX)
            except (BlockingIOError, ConnectionError, OSError):
                return
            self._delay(data, client, is_upward=False)

    def _delay(self, data: bytes, client: Address, *, is_upward: bool) -> None:
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

    def _forward_queued(self, data: bytes, client: Address, is_upward: bool) -> None:
        self._queued_bytes -= len(data)
        self._forward(data, client, is_upward=is_upward)

    def _forward(self, data: bytes, client: Address, *, is_upward: bool) -> None:
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

    def _upstream_of(self, client: Address) -> socket.socket | None:
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


def _open(target: Address, bind_to: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET if len(target) == 2 else socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, QUEUE_BYTES_MAX)
    sock.bind(bind_to)
    return sock


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]") or "127.0.0.1", int(port)


async def relay(options: argparse.Namespace) -> None:
    conditions = Conditions(
        latency_s=options.latency_ms / 1e3,
        jitter_s=options.jitter_ms / 1e3,
        loss=options.loss,
        rate_bytes_s=options.rate_mbit * 125_000 if options.rate_mbit else None,
        datagram_bytes_max=options.mtu,
    )
    box = UdpRelay(options.to, conditions, options.seed)
    host, port = box.start(*options.listen)[:2]
    print(f"relay {host}:{port} -> {options.to[0]}:{options.to[1]}  {conditions}", flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    print(box.counters, file=sys.stderr)
    box.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=address, required=True, help="where the node listens, host:port")
    parser.add_argument("--listen", type=address, default=("127.0.0.1", 0), help="where clients send to")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="one way")
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--loss", type=float, default=0.0, help="probability, 0..1")
    parser.add_argument("--rate-mbit", type=float, default=0.0, help="0 for no limit")
    parser.add_argument("--mtu", type=int, default=65_535, help="largest UDP payload that passes")
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(relay(parser.parse_args()))


if __name__ == "__main__":
    main()
