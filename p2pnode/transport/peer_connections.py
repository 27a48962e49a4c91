"""Live connections by peer, and which of two survives when both sides dialled at once.

Only the peer with the smaller id ever closes a surplus connection, so two nodes never close each other's.
Dialled at the same time: the smaller id's own dial survives. Otherwise the newer one does, since a peer
that comes again has lost the older.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from p2pnode.units import PeerId

SIMULTANEOUS_S = 2.0
"""Connections whose starts are closer than this were dialled without knowledge of each other."""


class Live(Protocol):
    @property
    def is_outbound(self) -> bool: ...
    @property
    def started_at(self) -> float: ...


C = TypeVar("C", bound=Live)


class PeerConnections(Generic[C]):
    """The table; the caller closes what `add` tells it to."""

    def __init__(self, own: PeerId) -> None:
        self._own = own
        self._by_peer: dict[PeerId, list[C]] = {}

    def __iter__(self) -> Iterator[C]:
        for connections in self._by_peer.values():
            yield from connections

    def add(self, peer_id: PeerId, connection: C) -> Sequence[C]:
        """-> the connections this node should close for it."""
        among = [*self._by_peer.get(peer_id, []), connection]
        newest = max(other.started_at for other in among)
        ranked = sorted(among, key=lambda other: self._rank(peer_id, other, newest), reverse=True)
        self._by_peer[peer_id] = ranked
        return ranked[1:] if self._own < peer_id else ()

    def remove(self, peer_id: PeerId, connection: C) -> None:
        connections = self._by_peer.get(peer_id, [])
        if connection in connections:
            connections.remove(connection)
        if not connections:
            self._by_peer.pop(peer_id, None)

    def best(self, peer_id: PeerId) -> C | None:
        connections = self._by_peer.get(peer_id)
        return connections[0] if connections else None

    def are_simultaneous(self, peer_id: PeerId, connection: C) -> bool:
        """Whether this connection and the best one were dialled without knowledge of each other."""
        best = self.best(peer_id)
        return best is not None and abs(best.started_at - connection.started_at) <= SIMULTANEOUS_S

    def _rank(self, peer_id: PeerId, connection: C, newest: float) -> tuple[bool, bool, float]:
        is_recent = newest - connection.started_at <= SIMULTANEOUS_S
        dialled_by_smaller = connection.is_outbound == (self._own < peer_id)
        return is_recent, dialled_by_smaller, connection.started_at
