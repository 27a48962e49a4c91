"""What this device tells the other members of itself, and what it makes of what they tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from p2pnode import __version__, limits
from p2pnode import commands as c
from p2pnode.errors import P2PNodeError
from p2pnode.logs import structlog
from p2pnode.node import directions
from p2pnode.node.capability import Capability
from p2pnode.node.catalog import Catalog
from p2pnode.node.duplicates import Duplicates
from p2pnode.node.hosted_stage import HostedStage
from p2pnode.node.hosting import Hosting
from p2pnode.node.ledger import Ledger
from p2pnode.node.link import Link
from p2pnode.node.link_times import LinkTime
from p2pnode.node.links import Links
from p2pnode.node.mesh import Mesh
from p2pnode.node.network_watch import watch_network
from p2pnode.node.routing import Routing
from p2pnode.node.tasks import Tasks
from p2pnode.transport import messages
from p2pnode.transport.discovery import Discovery
from p2pnode.transport.multicast import multicast_interfaces
from p2pnode.transport.port import Transport
from p2pnode.units import ContentId, PeerId

Tell = Callable[[str], None]
_log = structlog.get_logger("p2pnode.node")


class Presence:
    def __init__(
        self,
        *,
        name: str,
        ledger: Ledger,
        transport: Transport,
        mesh: Mesh,
        links: Links,
        catalog: Catalog,
        capability: Capability,
        link_times: Mapping[PeerId, LinkTime],
        hosting: Hosting,
        routing: Routing,
        tasks: Tasks,
        stopping: asyncio.Event,
        state: Callable[[], str],
        lending: Callable[[], str],
        addresses: Callable[[], list[str]],
        where: Callable[[], dict[str, list[str]]],
        duplicates: Duplicates,
        external: Callable[[], list[dict[str, Any]]],
        witnessed: Callable[[], list[list[Any]]],
        why_lost: Callable[[PeerId], str],
        heard_other: Callable[[PeerId, list[str]], None],
        now_ms: Callable[[], int],
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        self._me = transport.peer_id
        self._transport = transport
        self._name = name
        self._ledger = ledger
        self._mesh = mesh
        self._links = links
        self._catalog = catalog
        self._capability = capability
        self._link_times = link_times
        self._hosting = hosting
        self._routing = routing
        self._tasks = tasks
        self._stopping = stopping
        self._state = state
        self._lending = lending
        self._addresses = addresses
        self._where = where
        self._duplicates = duplicates
        self._external = external
        self._witnessed = witnessed
        self._why_lost = why_lost
        self._heard_other = heard_other
        """Told of devices nearby that are no members here: one may be of a mesh whose guest this node is."""
        self._now_ms = now_ms
        self._say = say
        self._discovery: Discovery | None = None

    # --- nearby --------------------------------------------------------------------------------------
    async def discover(self, is_wanted: bool, tell: Tell) -> None:
        """mDNS is a convenience: without multicast everything else works and `doctor` says so."""
        self._tasks.spawn(
            "network", watch_network(self._look_at_network, lambda: self._network_changed(is_wanted))
        )
        if is_wanted:
            await self._start_discovery(tell)

    def _look_at_network(self) -> tuple[object, ...]:
        return (*self._transport.listen_multiaddrs, *multicast_interfaces())

    async def _network_changed(self, is_wanted: bool) -> None:
        """Multicast is bound to interfaces, and peers know this device by addresses it has no more."""
        if self._stopping.is_set():
            return
        if is_wanted:
            await self.end_discovery()
            await self._start_discovery(lambda words: _log.info("the network changed", multicast=words))
        self._transport.announce()
        self._links.network_changed()

    async def _start_discovery(self, tell: Tell) -> None:
        self._discovery = Discovery(self._me, self._addresses, self._heard_nearby)
        try:
            await self._discovery.start()
        except P2PNodeError as error:
            self._discovery = None
            tell(error.message)

    def _heard_nearby(self, peer_id: PeerId, addresses: list[str]) -> None:
        if self._stopping.is_set():
            return
        if self._mesh.is_member(peer_id):
            self._links.know(peer_id, addresses=addresses, is_there=True)
        else:
            self._heard_other(peer_id, addresses)

    async def end_discovery(self) -> None:
        discovery, self._discovery = self._discovery, None
        if discovery is not None:
            await discovery.close()

    # --- saying and hearing --------------------------------------------------------------------------
    def status(self) -> messages.Status:
        membership = self._mesh.membership
        rtt_ms, link_rates = {}, {}
        for link in self._links.links.values():
            if link.connection is None or not link.is_up:
                continue
            timed = self._link_times.get(link.peer_id)
            rtt_ms[link.peer_id] = round(1000 * (timed.rtt_s if timed else link.connection.stats().rtt_s), 3)
            if timed is not None:
                link_rates[link.peer_id] = round(timed.bytes_per_s)
        return messages.Status(
            name=self._name,
            version=__version__,
            role=self._mesh.my_role,
            mesh_key=membership.mesh_key if membership else b"",
            addresses=self._addresses(),
            grants=membership.export() if membership else [],
            revocations=membership.export_revocations() if membership else [],
            models=self._catalog.announce(),
            capability=self._capability.view(),
            state=self._state(),
            now_ms=self._now_ms(),
            checkpoint=self._ledger.log.checkpoint() or "",
            extra={
                "rtt_ms": rtt_ms,
                "link_bytes_per_s": link_rates,
                "peers": self._where(),
                "directions": self._directions(),
                "stages": [self._hosted_view(h) for h in self._hosting.stages.values()],
                "external": self._external(),
                **self._duplicates.status(),
                "witnessed": self._witnessed(),
                "lending": self._lending(),
            },
        )

    def _directions(self) -> dict[str, Any]:
        """Of this device's own ways all, of those that others told the ones that fail."""
        now_ms = self._now_ms()
        links = self._links.links.values()
        own = {link.peer_id: link.direction.told(now_ms, is_opener=link.is_opener) for link in links}
        failing = (item for link in links for item in link.failing.items())
        return {self._me: own, **directions.passed_on(failing, now_ms)}

    def _hosted_view(self, hosted: HostedStage) -> dict[str, Any]:
        return {
            "plan_id": hosted.order.plan_id,
            "model": hosted.order.model_name,
            "layers": list(hosted.layers),
            "bytes_fetched": hosted.bytes_fetched,
            "up": hosted.engine.is_up,
        }

    def heard(self, link: Link, status: messages.Status) -> None:
        self._duplicates.heard(link.peer_id, status)
        said = [a for a in status.addresses[: limits.PEER_ADDRESSES_MAX] if a.startswith("/")]
        # What a device says of itself comes first: a full list of its former addresses must not keep it out.
        link.addresses[:] = list(dict.fromkeys([*said, *link.addresses]))[: limits.PEER_ADDRESSES_MAX]
        if status.state != "active":
            self._routing.lose_peer(link.peer_id, f"{link.name} is {status.state}")
        if not self._stopping.is_set():
            self._tasks.spawn("hear status", self._hear(link, status))

    async def _hear(self, link: Link, status: messages.Status) -> None:
        await self._mesh.hear(status)
        self._hear_of_others(link.peer_id, status)
        entry = self._ledger.state.peers.peers.get(link.peer_id)
        if link.connection is not None and (
            entry is None or not entry.online or entry.version != status.version
        ):
            await self._ledger.do(
                c.RecordPeerSeen(
                    peer=link.peer_id,
                    device_name=link.name,
                    path=self._links.path(link.peer_id),
                    address_commitment=self._ledger.log.commit_secret(
                        f"address of {link.peer_id}", link.connection.remote_multiaddr.encode()
                    ),
                    version=status.version[:128],
                )
            )
        for model in status.models:
            await self._learn_model(str(model.get("manifest", "")), str(model.get("name", ""))[:128], link)

    def _hear_of_others(self, observer: PeerId, status: messages.Status) -> None:
        """Members tell where members are; who answers there is checked when dialling."""
        reached = dict(status.extra.get("rtt_ms", {}))
        for peer, addresses in list(dict(status.extra.get("peers", {})).items())[: limits.MESH_MEMBERS_MAX]:
            peer_id = PeerId(str(peer))
            link = self._links.links.get(peer_id)
            if peer_id != self._me and (link is None or not link.is_up) and self._mesh.is_member(peer_id):
                said = [str(a) for a in addresses if str(a).startswith("/")][: limits.PEER_ADDRESSES_MAX]
                self._links.heard_of(observer, peer_id, said, is_up_there=peer_id in reached)

    async def _learn_model(self, content_id: str, name: str, link: Link) -> None:
        """Keep the manifest (never the weights) of what others offer, so that it can be planned for at once."""
        if not content_id or not name or self._catalog.holds(content_id):
            return
        await self._catalog.manifest(ContentId(content_id), name=name, extra_holders=[link.peer_id])

    def link_changed(self, link: Link, is_up: bool) -> None:
        if not is_up and not self._stopping.is_set():
            has_left = link.status is not None and link.status.state == "leaving"
            reason = self._why_lost(link.peer_id)
            link.lost_reason = "it was stopped" if has_left else reason
            lost = c.RecordPeerLost(peer=link.peer_id, reason=link.lost_reason)
            self._tasks.spawn("peer lost", self._ledger.do(lost))
        self._say({"kind": "link", "data": {"peer": link.peer_id, "name": link.name, "up": is_up}})
