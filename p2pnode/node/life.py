"""A node's life: it starts its rooms in order, keeps its clock, and ends them in the other order."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from p2pnode import __version__, limits
from p2pnode import commands as c
from p2pnode.machine import now_ms
from p2pnode.models.source import FileSource
from p2pnode.node.admission import join
from p2pnode.node.approval import ask, ask_nearby
from p2pnode.node.measuring import machine_rates
from p2pnode.node.nearby import listen_nearby
from p2pnode.transport.membership import peer_of
from p2pnode.transport.multiaddr import peer_address
from p2pnode.units import ContentId, PeerId

if TYPE_CHECKING:
    from p2pnode.node.core import Node

Tell = Callable[[str], None]


class Life:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def start(self, tell: Tell) -> None:
        """Recover, join or create the mesh, know the members, offer the models."""
        node = self._node
        answer = await node.ledger.do(
            c.StartNode(version=__version__, platform=platform.system(), device_name=node.name)
        )
        if answer.get("crashed"):
            tell("the last run did not end cleanly; its record was recovered")
        node.lending.restore()
        node.hosting.said = tell
        is_first = not node.mesh.restore()
        node.others.restore()
        if node.options.ticket:
            await join(node.mesh, node.transport, node.options.ticket, now_ms=now_ms, tell=tell)
        elif is_first and node.options.ask:
            await self._ask_to_join(tell)
        elif is_first:
            await node.mesh.create(f"{node.name}-mesh"[: limits.NAME_CHARACTERS_MAX])
            tell(f'created the mesh "{node.mesh.mesh_name}"')
        await self._offer_models(is_founder=node.mesh.my_role == "founder", tell=tell)
        self._know_members()
        await node.presence.discover(node.options.mdns, tell)
        if node.options.port_mapping:
            node.tasks.spawn("port mapping", node.reach.keep_mapped(tell))
        node.tasks.spawn("record clock", self._tick())
        node.tasks.spawn("witnesses", node.witnessing.run())
        node.tasks.spawn("hops", node.hops.run())
        node.tasks.spawn("heartbeat", node.heartbeat.run())
        node.tasks.spawn("readiness", node.readiness.run())
        node.tasks.spawn("backends", node.backends.run())
        node.tasks.spawn("histories", node.histories.run())
        node.tasks.spawn("auto mode", node.auto_mode.run())
        node.tasks.spawn("lending", node.lending.run())
        node.tasks.spawn("measuring", self._measure())
        node.tasks.spawn("other meshes", node.others.run())
        node.is_started = True

    async def _ask_to_join(self, tell: Tell) -> None:
        """Without a ticket: ask the member given with --peer, or the mesh that is near."""
        node = self._node
        for address, peer_id in map(peer_address, node.options.peers):
            await ask(node.mesh, node.transport, peer_id, [address], tell)
            return
        tell("looking for a mesh on this network")
        await ask_nearby(node.mesh, node.transport, await listen_nearby(node.me), tell)

    async def _offer_models(self, *, is_founder: bool, tell: Tell) -> None:
        node = self._node
        await asyncio.to_thread(node.store.collect)  # what a crash left behind
        demo = demo_model_path()
        if is_founder and demo is not None:
            await node.recording.offer(await asyncio.to_thread(node.store.add_demo, demo))
        for path in node.options.models:
            model = await FileSource(path).whole(node.store)
            await node.recording.offer(model)
            tell(f"model {model.name}: {model.manifest.size / 1e6:.1f} MB")

    def _know_members(self) -> None:
        node = self._node
        remembered = node.address_book.remembered()
        assert node.mesh.membership is not None
        for key in node.mesh.membership.members():
            peer = peer_of(key)
            if peer != node.me and node.mesh.is_member(peer):
                node.links.know(peer, addresses=remembered.get(peer, []))
        for address, peer_id in map(peer_address, node.options.peers):
            node.links.know(peer_id, addresses=[address])

    async def _measure(self) -> None:
        node = self._node
        node.capability.measured.update(await machine_rates(node.options.data, node.threads, now_ms))
        node.capability.measured.update(build=await node.tunnel.build(), can_rpc=True)
        node.tidings.rates_changed()
        node.tasks.spawn("link times", node.link_times.run())
        await node.layer_rates.run()

    async def _tick(self) -> None:
        node = self._node
        while True:
            await asyncio.sleep(limits.TICK_S)
            self.pin_used()
            await asyncio.to_thread(node.address_book.remember, node.where())
            now_s = asyncio.get_running_loop().time()
            await node.hosting.end_orphans(self._is_there, now_s)
            await node.tunnel.end_orphans(now_s)
            node.grants.tick()
            await node.ledger.log.tick()
            await node.ledger.do(c.ExpireHolds())

    def _is_there(self, peer: str) -> bool:
        node = self._node
        link = node.links.links.get(PeerId(peer))
        return peer == node.me or (link is not None and link.is_up)

    def pin_used(self) -> None:
        """Models that serve now are never dropped to make room for others."""
        node = self._node
        used = {active.model.content_id for active in node.routing.active.values()}
        node.store.room.pin(used | {ContentId(hosted.order.model) for hosted in node.hosting.stages.values()})

    async def stop(self, reason: str) -> None:
        """Frees engines and streams, seals the record, closes the socket."""
        node = self._node
        node.is_started = False
        await self._say_goodbye()
        node.stopping.set()
        node.links.close()
        node.processes.refuse()  # whatever the rooms do while one after the other ends
        steps = (
            node.presence.end_discovery,
            node.routing.close,
            node.embedding.close,
            node.tools.close,
            node.tunnel.close,
            node.hosting.close,
            lambda: asyncio.to_thread(node.address_book.remember, node.where()),
            self.end_work,
            node.transport.close,
            lambda: node.ledger.do(c.StopNode(reason=reason)),
            node.ledger.close,
            lambda: asyncio.to_thread(node.store.close),
        )
        for step in steps:
            try:
                await step()
            except Exception as error:  # must not keep the other rooms from ending well
                node.report("stopping", error)

    async def end_work(self) -> None:
        """Nothing runs in the background any more, and no process that it may have started."""
        node = self._node
        node.processes.refuse()
        await node.tasks.close()
        await node.processes.close()

    async def _say_goodbye(self) -> None:
        """Tell the others first, so that heads move their answers while this device still works for them."""
        node = self._node
        node.state = "leaving"
        if node.hosting.stages and any(link.is_up for link in node.links.links.values()):
            node.links.status_changed()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.GOODBYE_S_MAX):
                    await node.hosting.idle.wait()


def demo_model_path() -> Path | None:
    """The embedded model: beside the package in a checkout, under the prefix when a wheel was installed."""
    here = Path(__file__).resolve()
    for folder in (here.parents[2] / "models", Path(sys.prefix) / "share" / "p2pnode" / "models"):
        if (path := folder / "p2pnode-demo.gguf").is_file():
            return path
    return None
