"""What one room of a node has to tell the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pnode.models.store import StoredModel
from p2pnode.node.active import Active
from p2pnode.node.hosted_stage import HostedStage
from p2pnode.node.link import Link
from p2pnode.node.link_times import LinkTime
from p2pnode.node.running import Running
from p2pnode.transport import messages
from p2pnode.units import PeerId

if TYPE_CHECKING:
    from p2pnode.node.core import Node

CLOSE_GATED = 0x1007
"""libp2p's code for: this peer may not be here."""


class Tidings:
    def __init__(self, node: Node) -> None:
        self._node = node

    def request_finished(self, running: Running) -> None:
        self._node.tasks.spawn("prediction", self._node.learning.learn(running))
        self._node.hops.finished(running)

    async def model_came(self, model: StoredModel) -> None:
        await self._node.recording.offer(model)
        self._node.links.status_changed()

    def rates_changed(self) -> None:
        self._node.capability.measured.update(self._node.layer_rates.view())
        self._node.links.status_changed()

    async def link_timed(self, link: Link, found: LinkTime) -> None:
        await self._node.recording.link_timed(link, found)
        self._node.links.status_changed()

    async def stage_stored(self, hosted: HostedStage) -> None:
        self._node.life.pin_used()
        await self._node.recording.stage_stored(hosted)

    def unloaded(self, active: Active) -> None:
        self._node.readiness.asleep.add(active.model.content_id)
        data = {"model": active.model.name, "plan_id": active.plan_id, "mode": active.mode}
        self._node.say({"kind": "unloaded", "data": data})

    def heard(self, link: Link, status: messages.Status) -> None:
        self._node.presence.heard(link, status)
        for note, binding in ((status.checkpoint, b""), *status.extra.get("witnessed", [])):
            self._node.histories.hear(note, binding)

    def member_added(self, peer: PeerId, name: str, addresses: list[str]) -> None:
        self._node.links.know(peer, name=name, addresses=addresses)
        self._node.links.status_changed()

    def link_changed(self, link: Link, is_up: bool) -> None:
        self._node.presence.link_changed(link, is_up)
        if is_up:  # what was not signed when the device went is signed now that it is back
            self._node.tasks.spawn(f"receipts {link.peer_id[-6:]}", self._node.receipts.make_up(link.peer_id))

    def member_removed(self, peer: PeerId) -> None:
        """The gate refuses new streams; what is open ends with the connection."""
        node = self._node
        link = node.links.links.get(peer)
        open_now = link.connection if link is not None else node.transport.connection(peer)
        node.links.forget(peer)
        node.duplicates.forget(peer)
        node.reach.observed.forget(peer)
        node.routing.lose_peer(peer, "its membership was revoked")
        if open_now is not None:
            node.tasks.spawn("close revoked", open_now.close(CLOSE_GATED, "membership revoked"))
        node.links.status_changed()
