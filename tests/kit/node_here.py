"""A whole node inside the test's own process, on real QUIC, for peers that the test plays itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from p2pnode import __version__
from p2pnode.config import JoinOptions
from p2pnode.identity import load_or_create
from p2pnode.machine import now_ms
from p2pnode.models.store import ModelStore
from p2pnode.node.core import Node
from p2pnode.node.ledger import Ledger
from p2pnode.transport import messages
from p2pnode.transport.invite import decode_ticket
from p2pnode.transport.port import Connection, Transport
from p2pnode.transport.quic import QuicTransport
from tests.kit.net import LOOPBACK


@asynccontextmanager
async def node_here(
    folder: Path,
    name: str = "alpha",
    *,
    tell: Callable[[str], None] = lambda _: None,
    clock_ms: Callable[[], int] = now_ms,
    **wish: Any,
) -> AsyncIterator[Node]:
    """Started as the first device of its mesh unless `wish` says otherwise, stopped cleanly."""
    options = JoinOptions(data=folder, name=name, listen=LOOPBACK, mdns=False, threads=1, **wish)
    identity = load_or_create(folder)
    transport = QuicTransport(identity, options.listen, agent=f"p2pnode/{__version__}")
    ledger = await Ledger.open(folder, identity, now_ms=clock_ms)
    node = Node(
        options=options,
        identity=identity,
        ledger=ledger,
        transport=transport,
        store=ModelStore(folder / "models"),
        clock_ms=clock_ms,
    )
    await transport.start()
    try:
        await node.start(tell)
        yield node
    finally:
        await node.stop("the test is over")


async def reach(peer: Transport, node: Node) -> Connection:
    """A connection of a peer that the test plays."""
    return await peer.dial(node.addresses(), node.me)


async def become_member(peer: Transport, node: Node, name: str = "mallory") -> Connection:
    """Let in by a ticket like any device."""
    made = await node.mesh.invite(uses=1, expires_s=600, role="worker", label="")
    connection = await reach(peer, node)
    stream = await connection.open_stream("/p2pnode/admit/1")
    secret = decode_ticket(made["ticket"]).secret
    await messages.send_message(stream, messages.AdmitRequest(secret=secret, name=name, version="0"))
    answer = await messages.receive_message(stream)
    assert isinstance(answer, messages.Admitted), answer
    return connection
