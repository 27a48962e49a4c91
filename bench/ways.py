"""All ways between devices of a benchmark lead through relays, where one device can be cut off or slowed."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

from tools.udp_relay import Conditions, UdpRelay

_WAIT_S = 10.0


class Way(UdpRelay):
    """The way to one device; a device is told from others by the port it sends from, which it also listens on."""

    def __init__(self, port: int, hurt: dict[int, float | None]) -> None:
        super().__init__(("127.0.0.1", port), Conditions())
        self._port, self._hurt = port, hurt

    def _delay(self, data: bytes, client: Any, *, is_upward: bool) -> None:
        late_s: float | None = 0.0
        for port in (self._port, int(client[1])):
            if port in self._hurt:
                late_s = self._hurt[port]
        if late_s is None:
            return  # cut
        self.conditions.latency_s = late_s
        super()._delay(data, client, is_upward=is_upward)


class Ways:
    """Relays on a loop of their own in a thread; `close` ends them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._ways: dict[int, Way] = {}
        self._hurt: dict[int, float | None] = {}
        """By port of a device: seconds its datagrams take, or None for none that arrive."""

    def to_new_device(self) -> tuple[list[str], str, int]:
        """Arguments and `listen` of a device that all others reach through a relay, and its port."""
        port = _free_port()
        announced = self._do(lambda: self._open(port))
        return (
            ["--announce", f"/ip4/127.0.0.1/udp/{announced}/quic-v1"],
            f"/ip4/127.0.0.1/udp/{port}/quic-v1",
            port,
        )

    def cut(self, port: int) -> None:
        self._do(lambda: self._hurt.update({port: None}))

    def slow(self, port: int, late_s: float) -> None:
        self._do(lambda: self._hurt.update({port: late_s}))

    def _open(self, port: int) -> int:
        way = self._ways[port] = Way(port, self._hurt)
        return int(way.start()[1])

    def _do(self, work: Callable[[], Any]) -> Any:
        async def here() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(here(), self._loop).result(_WAIT_S)

    def close(self) -> None:
        for way in self._ways.values():
            self._do(way.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WAIT_S)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
