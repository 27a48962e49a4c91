"""A home router on loopback that speaks PCP and NAT-PMP, or one of them, or says no."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address


class FakeGateway:
    """`mappings` is external port -> internal port; `heard` has every request."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.at: tuple[str, int] = self._socket.getsockname()
        self.host = "203.0.113.7"
        self.speaks_pcp = self.speaks_nat_pmp = True
        self.code = 0
        self.drops = 0
        """Requests that get no answer before the first that does."""
        self.noise: list[bytes] = []
        """Sent before each answer."""
        self.lifetime_s = 7200
        self.taken: set[int] = set()
        self.mappings: dict[int, int] = {}
        self.heard: list[bytes] = []

    def serve(self) -> None:
        while True:
            data, address = self._socket.recvfrom(2048)
            if data == b"stop":
                return
            self.heard.append(data)
            if self.drops:
                self.drops -= 1
                continue
            answer = self._pcp(data) if data[0] == 2 else self._nat_pmp(data)
            for noise in self.noise:
                self._socket.sendto(noise, address)
            if answer:
                self._socket.sendto(answer, address)

    def _grant(self, inside: int, wanted: int, lifetime_s: int) -> tuple[int, int]:
        if lifetime_s == 0:
            self.mappings = {out: port for out, port in self.mappings.items() if port != inside}
            return 0, 0
        known = [out for out, port in self.mappings.items() if port == inside]
        outside = known[0] if known else wanted
        while outside in self.taken:
            outside += 1
        self.mappings[outside] = inside
        return outside, min(lifetime_s, self.lifetime_s)

    def _pcp(self, data: bytes) -> bytes:
        if not self.speaks_pcp:
            return struct.pack(">BBHI", 0, 128 | data[1], 1, 9) if self.speaks_nat_pmp else b""
        lifetime_s, client = struct.unpack_from(">I16s", data, 4)
        assert IPv6Address(client).ipv4_mapped == IPv4Address("127.0.0.1")
        nonce, protocol, inside, wanted = struct.unpack_from(">12sB3xHH", data, 24)
        assert len(data) == 60
        outside, granted_s = (0, 0) if self.code else self._grant(inside, wanted, lifetime_s)
        head = struct.pack(">BBBBII12x", 2, 129, 0, self.code, granted_s, 77)
        host = IPv6Address(f"::ffff:{self.host}").packed
        return head + struct.pack(">12sB3xHH16s", nonce, protocol, inside, outside, host)

    def _nat_pmp(self, data: bytes) -> bytes:
        if not self.speaks_nat_pmp:
            return b""
        if data[1] == 0:
            return struct.pack(">BBHI4s", 0, 128, self.code, 77, IPv4Address(self.host).packed)
        inside, wanted, lifetime_s = struct.unpack(">HHI", data[4:])
        outside, granted_s = (0, 0) if self.code else self._grant(inside, wanted, lifetime_s)
        return struct.pack(">BBHIHHI", 0, 129, self.code, 77, inside, outside, granted_s)

    def close(self) -> None:
        self._socket.close()


@contextmanager
def fake_gateway() -> Iterator[FakeGateway]:
    made = FakeGateway()
    thread = threading.Thread(target=made.serve)
    thread.start()
    try:
        yield made
    finally:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stopper:
            stopper.sendto(b"stop", made.at)
        thread.join()
        made.close()
