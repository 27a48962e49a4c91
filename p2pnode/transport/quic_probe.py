"""Whether a QUIC endpoint answers at an address, asked from outside every connection.

One datagram of a version that is reserved for this (RFC 9000, sections 6 and 15) makes a server say which versions it
speaks; it keeps nothing for it. The socket is a fresh one: a firewall or router lets packets through where something
went out before, and the question is whether it does without.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from aioquic.quic.connection import NetworkAddress

from p2pnode import limits

RESERVED_VERSION = 0x1A2A3A4A
CONNECTION_ID_BYTES = 8


class _Question(asyncio.DatagramProtocol):
    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._own, self._other = random_bytes(CONNECTION_ID_BYTES), random_bytes(CONNECTION_ID_BYTES)
        self.answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def datagram(self) -> bytes:
        """Padded to what a client's first datagram has: servers answer no less."""
        ids = b"".join(len(one).to_bytes(1, "big") + one for one in (self._other, self._own))
        head = b"\xc0" + RESERVED_VERSION.to_bytes(4, "big") + ids
        return head.ljust(limits.DATAGRAM_BYTES_MIN, b"\0")

    def is_answer(self, data: bytes) -> bool:
        """A Version Negotiation packet that bears our two ids, exchanged."""
        size = CONNECTION_ID_BYTES
        ids = bytes([size]) + self._own + bytes([size]) + self._other
        return len(data) > 5 and bool(data[0] & 0x80) and data[1:5] == bytes(4) and data[5:].startswith(ids)

    def datagram_received(self, data: bytes, addr: object) -> None:
        del addr  # the socket is connected: only one can have sent it
        if not self.answered.done() and self.is_answer(data):
            self.answered.set_result("")

    def error_received(self, exc: Exception) -> None:
        if not self.answered.done():
            is_closed = isinstance(exc, ConnectionRefusedError)
            self.answered.set_result("nothing listens there" if is_closed else str(exc))


async def probe(
    family: socket.AddressFamily,
    address: NetworkAddress,
    *,
    timeout_s: float = limits.PROBE_TIMEOUT_S,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> str:
    """Empty when a QUIC server answers; otherwise why not."""
    loop = asyncio.get_running_loop()
    udp = socket.socket(family, socket.SOCK_DGRAM)
    try:
        udp.setblocking(False)
        udp.connect(address)
        transport, question = await loop.create_datagram_endpoint(lambda: _Question(random_bytes), sock=udp)
    except OSError as error:
        udp.close()
        return error.strerror or str(error)
    try:
        async with asyncio.timeout(timeout_s):
            while not question.answered.done():
                transport.sendto(question.datagram())
                await asyncio.wait([question.answered], timeout=limits.PROBE_RESEND_S)
        return question.answered.result()
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    finally:
        transport.close()
