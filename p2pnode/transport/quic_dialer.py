"""Dialling several addresses of one peer: staggered, in parallel, first handshake wins (RFC 8305).

Every attempt is remembered with its reason, so that "unreachable" can be explained.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

from aioquic.quic.connection import NetworkAddress

from p2pnode import limits
from p2pnode.errors import (
    ConnectionLost,
    HandshakeRefused,
    IdentityMismatch,
    P2PNodeError,
    PeerUnreachable,
    TransportError,
)
from p2pnode.multiformats import DecodeError
from p2pnode.transport import multiaddr
from p2pnode.transport.dnsaddr import TxtLookup, is_dnsaddr, resolve, system_txt
from p2pnode.transport.quic_connection import CRYPTO_ERROR_END, CRYPTO_ERROR_FIRST, QuicPeerConnection
from p2pnode.transport.quic_socket import socket_address
from p2pnode.units import PeerId

Target = tuple[str, socket.AddressFamily, NetworkAddress]
Begin = Callable[[socket.AddressFamily, NetworkAddress, PeerId], QuicPeerConnection]
Tried = list[list[str]]

_FAMILIES = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}


class Dialer:
    """One dial of one peer."""

    def __init__(
        self, peer_id: PeerId, begin: Begin, timeout_s: float, lookup: TxtLookup = system_txt
    ) -> None:
        self._peer_id = peer_id
        self._begin = begin
        self._timeout_s = timeout_s
        self._lookup_txt = lookup
        self._loop = asyncio.get_running_loop()
        self.tried: Tried = []
        self._refusals: list[P2PNodeError] = []

    async def run(self, multiaddrs: Sequence[str]) -> QuicPeerConnection:
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._race(multiaddrs)
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

    async def resolve_all(self, multiaddrs: Sequence[str]) -> list[Target]:
        """Where the addresses lead; `tried` has those that lead nowhere."""
        texts = list(dict.fromkeys(multiaddrs))[: limits.DIAL_ADDRESSES_MAX]
        found = await asyncio.gather(*map(self._resolve, texts))
        return list(dict.fromkeys(target for targets in found for target in targets))[
            : limits.DIAL_ADDRESSES_MAX
        ]

    async def _resolve(self, text: str) -> list[Target]:
        """Where to dial; an address that leads nowhere is told with its reason."""
        if not is_dnsaddr(text):
            return await self._targets(text)
        try:
            addresses = await resolve(text, self._peer_id, self._lookup_txt)
        except DecodeError as error:
            self.tried.append([text, str(error)])
            return []
        except TransportError as error:
            self.tried.append([text, error.message])
            return []
        return [target for address in addresses for target in await self._targets(address)]

    async def _targets(self, text: str) -> list[Target]:
        try:
            address = multiaddr.quic_address(text)
            if address.peer_id is not None and address.peer_id != self._peer_id:
                raise DecodeError("the address names another peer")
            return await self._lookup(text, address)
        except DecodeError as error:
            self.tried.append([text, str(error)])
        except (OSError, UnicodeError) as error:
            # A label of a name that is too long for DNS is a UnicodeError.
            reason = getattr(error, "strerror", None) or error
            self.tried.append([text, f"the name does not resolve: {reason}"])
        return []

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

    async def _race(self, multiaddrs: Sequence[str]) -> QuicPeerConnection | None:
        """Start one attempt each 250 ms, or as soon as all before failed; names join once they are resolved."""
        texts = list(dict.fromkeys(multiaddrs))[: limits.DIAL_ADDRESSES_MAX]
        resolving = [self._loop.create_task(self._resolve(text)) for text in texts]
        waiting: list[Target] = []
        running: set[asyncio.Task[QuicPeerConnection | None]] = set()
        known: set[Target] = set()
        try:
            while waiting or running or resolving:
                if waiting:
                    running.add(self._loop.create_task(self._attempt(waiting.pop(0))))
                pending: list[asyncio.Task[Any]] = [*resolving, *running]
                done, _ = await asyncio.wait(
                    pending,
                    timeout=limits.DIAL_STAGGER_S if waiting else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for resolved in [task for task in resolving if task in done]:
                    resolving.remove(resolved)
                    fresh = [target for target in resolved.result() if target not in known]
                    fresh = fresh[: limits.DIAL_ADDRESSES_MAX - len(known)]
                    known.update(fresh)
                    waiting += fresh
                ended = running & done
                running -= ended
                winners = [found for task in ended if (found := task.result()) is not None]
                for extra in winners[1:]:
                    extra.close_now(reason="another address was faster")
                if winners:
                    return winners[0]
            return None
        finally:
            left: list[asyncio.Task[Any]] = [*running, *resolving]
            for unfinished in left:
                unfinished.cancel()
            await asyncio.gather(*left, return_exceptions=True)

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
