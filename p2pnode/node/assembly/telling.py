"""What others hear of this node, and its record before them and theirs before it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from p2pnode.events.folder import read_policy
from p2pnode.machine import now_ms
from p2pnode.node.heartbeat import Heartbeat
from p2pnode.node.histories import Histories
from p2pnode.node.log_sharing import LogSharing
from p2pnode.node.presence import Presence
from p2pnode.node.witnessing import Witnessing, fetch_binding

if TYPE_CHECKING:
    from p2pnode.node.core import Node


def assemble_telling(node: Node) -> None:
    options, ledger, transport = node.options, node.ledger, node.transport
    node.heartbeat = Heartbeat(node.links, tasks=node.tasks, clock=time.monotonic)
    node.presence = Presence(
        name=node.name,
        ledger=ledger,
        transport=transport,
        mesh=node.mesh,
        links=node.links,
        catalog=node.catalog,
        capability=node.capability,
        link_times=node.link_times.times,
        hosting=node.hosting,
        routing=node.routing,
        tasks=node.tasks,
        stopping=node.stopping,
        state=lambda: node.state,
        lending=lambda: node.lending.says(),
        addresses=node.addresses,
        where=node.where,
        duplicates=node.duplicates,
        external=lambda: node.backends.told(),
        witnessed=lambda: node.histories.told(),
        why_lost=node.heartbeat.why_lost,
        heard_other=lambda peer, addresses: node.others.heard_nearby(peer, addresses),
        now_ms=now_ms,
        say=node.say,
    )
    node.log_sharing = LogSharing(ledger=ledger, links=node.links, transport=transport)
    node.histories = Histories(
        ledger=ledger,
        links=node.links,
        ask=node.log_sharing.ask,
        binding_of=lambda peer: fetch_binding(node.links, peer),
        now_ms=now_ms,
    )
    node.witnessing = Witnessing(
        ledger=ledger,
        links=node.links,
        refused=node.histories.hear,
        policy=read_policy(options.data),
    )
