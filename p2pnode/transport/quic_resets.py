"""Stateless resets (RFC 9000 section 10.3): a node that lost a connection says so, a peer that hears it believes it.

Without them a restarted node looks alive until the idle timeout: half a minute in which requests wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from p2pnode.transport.credentials import RESET_TOKEN_BYTES, Credentials
from p2pnode.transport.quic_acceptor import CONNECTION_ID_BYTES

RESET_BYTES_MIN = 41
"""RFC 9000 section 10.3: as long as the shortest ordinary packet; smaller ones get no answer, which ends loops."""

RESETS_PER_S = 32.0
RESETS_BURST = 64.0

C = TypeVar("C")


class StatelessResets(Generic[C]):
    def __init__(self, credentials: Credentials, random_bytes: Callable[[int], bytes]) -> None:
        self._credentials = credentials
        self._random_bytes = random_bytes
        self._watched: dict[bytes, C] = {}
        self._tokens = RESETS_BURST
        self._filled_at = 0.0
        self.sent_count = 0

    def watch(self, token: bytes, connection: C) -> None:
        """The peer of this connection would reset it with this token."""
        if token:
            self._watched[token] = connection

    def forget(self, connection: C) -> None:
        for token, watched in list(self._watched.items()):
            if watched is connection:
                del self._watched[token]

    def match(self, data: bytes) -> C | None:
        """The connection whose peer says, with this datagram, that it knows it no more."""
        return self._watched.get(data[-RESET_TOKEN_BYTES:])

    def answer(self, data: bytes, now: float) -> bytes | None:
        """To a packet of a connection nobody knows here: shorter than it, a few a second, looking like any."""
        if len(data) <= RESET_BYTES_MIN or not data[0] & 0x40:
            return None
        refilled = self._tokens + (now - self._filled_at) * RESETS_PER_S
        self._tokens, self._filled_at = min(refilled, RESETS_BURST), now
        if self._tokens < 1:
            return None
        self._tokens -= 1
        self.sent_count += 1
        noise = bytearray(self._random_bytes(RESET_BYTES_MIN - RESET_TOKEN_BYTES))
        noise[0] = 0x40 | noise[0] & 0x3F
        return bytes(noise) + self._credentials.reset_token(data[1 : 1 + CONNECTION_ID_BYTES])
