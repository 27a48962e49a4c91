"""Under which addresses others may reach this device: bound, observed by several members, mapped by the router."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Protocol

from p2pnode import limits
from p2pnode.errors import TransportError
from p2pnode.node.joining import host_of
from p2pnode.transport import multiaddr, nat_pmp, port_mapping
from p2pnode.transport.identify import Identify
from p2pnode.transport.observed import ObservedAddresses
from p2pnode.transport.port import Connection
from p2pnode.units import PeerId


class MapPort(Protocol):
    def __call__(self, port: int, *, nonce: bytes) -> port_mapping.PortMapping: ...


class Reach:
    def __init__(
        self,
        *,
        bound: Callable[[], Sequence[str]],
        is_member: Callable[[PeerId], bool],
        changed: Callable[[], None],
        announced: Sequence[str] = (),
    ) -> None:
        self._bound = bound
        self._announced = list(announced)
        self._is_member = is_member
        self._changed = changed
        self.observed = ObservedAddresses()
        self._mapping: port_mapping.PortMapping | None = None
        self._nonce = os.urandom(nat_pmp.NONCE_BYTES)

    def addresses(self) -> list[str]:
        """What the owner announces; else bound ones first, and those from outside always have room."""
        if self._announced:
            return self._announced[: limits.TICKET_ADDRESSES_MAX]
        bound = list(self._bound())
        outside = self.observed.agreed(bound)
        if self._mapping is not None and self._mapping.address not in (*bound, *outside):
            outside.append(self._mapping.address)
        return [*bound[: limits.TICKET_ADDRESSES_MAX - len(outside)], *outside]

    def identified(self, connection: Connection, message: Identify) -> None:
        """A peer told how it sees this node; strangers are not believed."""
        if message.observed_multiaddr is None or not self._is_member(connection.peer_id):
            return
        before = self.addresses()
        self.observed.heard(connection.peer_id, host_of(connection), message.observed_multiaddr)
        if self.addresses() != before:
            self._changed()

    async def keep_mapped(
        self, tell: Callable[[str], None], map_port: MapPort = port_mapping.map_port
    ) -> None:
        """Map the first bound port and renew it for as long as this runs; without a router one clear word."""
        bound = list(self._bound())
        if not bound:
            return
        port = multiaddr.quic_address(bound[0]).port
        was_mapped = False
        try:
            while True:
                before = self._mapping.address if self._mapping else ""
                try:
                    self._mapping = await asyncio.to_thread(map_port, port, nonce=self._nonce)
                    wait_s = max(self._mapping.lifetime_s, limits.PORT_MAPPING_LEASE_S_MIN) / 2
                except TransportError as error:
                    if before or not was_mapped:
                        tell(f"{error.message} ({error.hint})" if error.hint else error.message)
                    if not was_mapped:
                        return
                    # It worked before: the router is away, or was exchanged.
                    self._mapping, wait_s = None, limits.PORT_MAPPING_RETRY_S
                was_mapped = True
                if before != (self._mapping.address if self._mapping else ""):
                    self._changed()
                await asyncio.sleep(wait_s)
        finally:
            mapping, self._mapping = self._mapping, None
            if mapping is not None:
                await asyncio.to_thread(mapping.end)
