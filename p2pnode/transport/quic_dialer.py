"""Dialling several addresses of one peer: staggered, in parallel, first handshake wins (RFC 8305).

Every attempt is remembered with its reason, so that "unreachable" can be explained.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from aioquic.quic.connection import NetworkAddress

from p2pnode import limits
from p2pnode.errors import ConnectionLost, HandshakeRefused, IdentityMismatch, P2PNodeError, PeerUnreachable
from p2pnode.multiformats import DecodeError
from p2pnode.transport import multiaddr
from p2pnode.transport.quic_connection import CRYPTO_ERROR_END, CRYPTO_ERROR_FIRST, QuicPeerConnection
from p2pnode.transport.quic_socket import socket_address
from p2pnode.units import PeerId

Target = tuple[str, socket.AddressFamily, NetworkAddress]
Begin = Callable[[socket.AddressFamily, NetworkAddress, PeerId], QuicPeerConnection]
Tried = list[list[str]]

_FAMILIES = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}


class Dialer:
    """One dial of one peer."""

    def __init__(self, peer_id: PeerId, begin: Begin, timeout_s: float) -> None:
        self._peer_id = peer_id
        self._begin = begin
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self.tried: Tried = []
        self._refusals: list[P2PNodeError] = []

    async def run(self, multiaddrs: Sequence[str]) -> QuicPeerConnection:
        try:
            async with asyncio.timeout(self._timeout_s):
                targets = await self._resolve(multiaddrs)
                connection = await self._race(targets)
        except TimeoutError:
            raise self._failure() from None
        if connection is None:
            raise self._failure()
        return connection

    def _failure(self) -> P2PNodeError:
        details = "; ".join(f"{address}: {reason}" for address, reason in self.tried) or "no address is known"
        for refusal in self._refusals:
            return type(refusal)(refusal.message, tried=self.tried, peer=self._peer_id)
        return PeerUnreachable(
            f"{self._peer_id} cannot be reached ({details})", tried=self.tried, peer=self._peer_id
        )

    async def _resolve(self, multiaddrs: Sequence[str]) -> list[Target]:
        targets: list[Target] = []
        for text in list(dict.fromkeys(multiaddrs))[: limits.DIAL_ADDRESSES_MAX]:
            try:
                address = multiaddr.quic_address(text)
                if address.peer_id is not None and address.peer_id != self._peer_id:
                    raise DecodeError("the address names another peer")
                targets += await self._lookup(text, address)
            except DecodeError as error:
                self.tried.append([text, str(error)])
            except OSError as error:
                self.tried.append([text, f"the name does not resolve: {error.strerror or error}"])
        return list(dict.fromkeys(targets))[: limits.DIAL_ADDRESSES_MAX]

    async def _lookup(self, text: str, address: multiaddr.QuicAddress) -> list[Target]:
        if address.kind in ("ip4", "ip6"):
            family = socket.AF_INET if address.kind == "ip4" else socket.AF_INET6
            return [(text, family, socket_address(address.host, address.port, family))]
        found = await self._loop.getaddrinfo(
            address.host, address.port, family=_FAMILIES[address.kind], type=socket.SOCK_DGRAM
        )
        return [
            (f"{text} ({info[4][0]})", info[0], socket_address(str(info[4][0]), address.port, info[0]))
            for info in found
            if info[0] in (socket.AF_INET, socket.AF_INET6)
        ]

    async def _race(self, targets: Sequence[Target]) -> QuicPeerConnection | None:
        """Start one attempt each 250 ms, or as soon as all before failed."""
        waiting = list(targets)
        running: set[asyncio.Task[QuicPeerConnection | None]] = set()
        try:
            while waiting or running:
                if waiting:
                    running.add(self._loop.create_task(self._attempt(waiting.pop(0))))
                done, running = await asyncio.wait(
                    running,
                    timeout=limits.DIAL_STAGGER_S if waiting else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                winners = [connection for task in done if (connection := task.result()) is not None]
                for extra in winners[1:]:
                    extra.close_now(reason="another address was faster")
                if winners:
                    return winners[0]
            return None
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _attempt(self, target: Target) -> QuicPeerConnection | None:
        text, family, address = target
        entry = [text, "no answer"]
        self.tried.append(entry)
        connection: QuicPeerConnection | None = None
        try:
            connection = self._begin(family, address, self._peer_id)
            async with asyncio.timeout(limits.HANDSHAKE_TIMEOUT_S):
                await asyncio.shield(connection.established)
        except TimeoutError:
            entry[1] = f"no answer within {limits.HANDSHAKE_TIMEOUT_S:g} s"
            self._give_up(connection)
            return None
        except ConnectionLost as error:
            entry[1] = self._explain(connection, error)
            return None
        except P2PNodeError as error:
            entry[1] = error.message
            return None
        except asyncio.CancelledError:
            self._give_up(connection)
            raise
        entry[1] = "connected"
        return connection

    def _give_up(self, connection: QuicPeerConnection | None) -> None:
        if connection is not None:
            connection.close_now(reason="dial given up")

    def _explain(self, connection: QuicPeerConnection | None, error: ConnectionLost) -> str:
        other = connection.core.mismatched_peer if connection is not None else None
        if other is not None:
            self._refusals.insert(
                0, IdentityMismatch(f"expected {self._peer_id}, but {other} answers at this address")
            )
            return f"another peer answers: {other}"
        code = error.details.get("code")
        if isinstance(code, int) and CRYPTO_ERROR_FIRST <= code < CRYPTO_ERROR_END:
            reason = error.details.get("reason") or f"TLS alert {code - CRYPTO_ERROR_FIRST}"
            self._refusals.append(HandshakeRefused(f"the handshake with {self._peer_id} failed: {reason}"))
            return f"handshake refused: {reason}"
        return error.message
