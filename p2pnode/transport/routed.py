"""What every transport does alike: protocols and the gate, ping and identify, the best connection to each peer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any, Generic, Protocol, TypeVar

from p2pnode.identity import Identity
from p2pnode.transport import identify, ping
from p2pnode.transport.identify_service import IdentifyService
from p2pnode.transport.peer_connections import Live, PeerConnections
from p2pnode.transport.port import Connection, ConnectionObserver, Gate, StreamHandler
from p2pnode.transport.router import Router
from p2pnode.units import PeerId


class LiveConnection(Live, Connection, Protocol): ...


C = TypeVar("C", bound=LiveConnection)


class RoutedTransport(ABC, Generic[C]):
    """The part of the Transport port that no wire has a say in."""

    def __init__(self, identity: Identity, agent: str) -> None:
        self.router = Router()
        self._identity = identity
        self._peers: PeerConnections[C] = PeerConnections(identity.peer_id)
        self.identify = IdentifyService(identity, self.router, agent, lambda: self.listen_multiaddrs)
        self.router.handle(ping.PROTOCOL, ping.serve)
        self.router.handle(identify.PROTOCOL, self.identify.serve)
        self.router.handle(identify.PROTOCOL_PUSH, self.identify.serve_push)
        self.router.on_protocols_changed = self.announce

    @property
    @abstractmethod
    def listen_multiaddrs(self) -> Sequence[str]: ...

    @abstractmethod
    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None: ...

    @property
    def peer_id(self) -> PeerId:
        return self._identity.peer_id

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        self.router.handle(protocol, handler)

    def announce(self) -> None:
        """Tell connected peers of new protocols or addresses (identify/push)."""
        if connections := self.connections():
            self._spawn(self.identify.announce(connections))

    def set_gate(self, gate: Gate) -> None:
        self.router.set_gate(gate)

    def observe(self, observer: ConnectionObserver) -> None:
        self.router.observe(observer)

    def connection(self, peer_id: PeerId) -> C | None:
        return self._peers.best(peer_id)

    def connections(self) -> Sequence[C]:
        return list(self._peers)
