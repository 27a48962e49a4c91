"""What a node knows of one other device right now; nothing here is a fact of the record."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from p2pnode.node import directions
from p2pnode.node.redial import Redial
from p2pnode.transport import messages
from p2pnode.transport.port import Connection
from p2pnode.units import PeerId


@dataclass(slots=True)
class Link:
    peer_id: PeerId
    redial: Redial
    name: str = ""
    addresses: list[str] = field(default_factory=list)
    connection: Connection | None = None
    status: messages.Status | None = None
    tried: list[list[str]] = field(default_factory=list)
    lost_reason: str = ""
    """Why its last connection ended; empty while one stands."""
    reached_by: set[PeerId] = field(default_factory=set)
    """Members that said last that they are connected to it."""
    direction: directions.Direction = field(default_factory=directions.Direction)
    """From here to there."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when what a probe found holds no more: other addresses, another connection, a refusal that ended."""
    told: dict[directions.Pair, directions.Told] = field(default_factory=dict)
    """What its last status says of directions."""
    failing: dict[directions.Pair, directions.Told] = field(default_factory=dict)
    """Its own ones of them that fail: passed on with every status, so looked for once."""
    asked_ms: int = 0
    """When it last asked by itself, over a stream of its own."""
    dialing: bool = False

    @property
    def is_up(self) -> bool:
        return self.connection is not None and not self.connection.is_closed

    @property
    def is_opener(self) -> bool:
        """Whether this side opened the connection that stands."""
        return self.is_up and self.connection is not None and self.connection.is_outbound
