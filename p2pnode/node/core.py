"""The node itself: its rooms put together, started in order and ended in the other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any
from weakref import WeakSet

import msgspec
import structlog

from p2pnode import __version__, limits
from p2pnode import commands as c
from p2pnode.config import JoinOptions, parse_host_port
from p2pnode.errors import P2PNodeError
from p2pnode.events import types as facts
from p2pnode.events.folder import read_policy
from p2pnode.facade import GenerateEvent, GenerateRequest
from p2pnode.identity import Identity
from p2pnode.machine import host_name
from p2pnode.models.serve import BlobServer
from p2pnode.models.store import ModelStore, StoredModel
from p2pnode.node.active import Active
from p2pnode.node.adapters import Adapters
from p2pnode.node.approval import Approvals, ask, ask_nearby
from p2pnode.node.auto_mode import AutoMode
from p2pnode.node.backends import DISCOVER, Backends
from p2pnode.node.books import Books
from p2pnode.node.bringing import PREFIXES, Bringing, prefix_bytes_of
from p2pnode.node.capability import Capability, cores
from p2pnode.node.catalog import BLOB, Catalog
from p2pnode.node.choosing import Choosing
from p2pnode.node.duplicates import Duplicates
from p2pnode.node.embedding import Embedding
from p2pnode.node.engine_settings import EngineSettings
from p2pnode.node.engines import EngineHost, EnginePool
from p2pnode.node.federation import Federation, nearest_holder
from p2pnode.node.forwarding import Forwarding
from p2pnode.node.grants import Grants
from p2pnode.node.histories import Histories
from p2pnode.node.hops import Hops
from p2pnode.node.hosting import HostedStage, Hosting
from p2pnode.node.instances import Instance
from p2pnode.node.kv_transfers import KvTransfers
from p2pnode.node.layer_rates import LayerRates
from p2pnode.node.ledger import Ledger
from p2pnode.node.link_times import LinkTime, LinkTimes
from p2pnode.node.links import Link, Links
from p2pnode.node.loading import Loads
from p2pnode.node.log_sharing import LogSharing
from p2pnode.node.mcp import Tools, read_file
from p2pnode.node.measuring import machine_rates
from p2pnode.node.memory_use import held_by
from p2pnode.node.mesh import Mesh, key_of, peer_of
from p2pnode.node.nearby import listen_nearby
from p2pnode.node.omni import OmniStages
from p2pnode.node.planning import Planning
from p2pnode.node.pooling import Pooling
from p2pnode.node.presence import Presence
from p2pnode.node.pulling import Pulling
from p2pnode.node.reach import Reach
from p2pnode.node.receipts import Receipts
from p2pnode.node.reduce_streams import ReduceStreams
from p2pnode.node.requests import Requests, Running
from p2pnode.node.rings import Rings
from p2pnode.node.room import Room
from p2pnode.node.routing import Routing
from p2pnode.node.rpc_tunnel import RpcTunnel
from p2pnode.node.splits import Splits
from p2pnode.node.stage_streams import StageStreams
from p2pnode.node.tasks import Tasks, describe
from p2pnode.node.whole import Whole
from p2pnode.node.witnessing import Witnessing, fetch_binding
from p2pnode.projections.settings import value_of
from p2pnode.projections.views import default_model
from p2pnode.transport import messages
from p2pnode.transport.multiaddr import peer_address
from p2pnode.transport.port import Transport
from p2pnode.units import ContentId, PeerId

Tell = Callable[[str], None]
_log = structlog.get_logger("p2pnode.node")


CLOSE_GATED = 0x1007
"""libp2p's code for: this peer may not be here."""


def _request_id() -> str:
    return f"req-{secrets.token_hex(8)}"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Node:
    """Everything a running device is; faces see it through `node.faces.Faces`."""

    def __init__(
        self,
        *,
        options: JoinOptions,
        identity: Identity,
        ledger: Ledger,
        transport: Transport,
        store: ModelStore,
    ) -> None:
        self.options = options
        self.identity = identity
        self.ledger = ledger
        self.transport = transport
        self.store = store
        self.name = options.name
        self.me = identity.peer_id
        self.started_ms = now_ms()
        self.threads = options.threads or cores()
        self.state = "active"
        self.is_started = False
        self.stopping = asyncio.Event()
        self.engine_hosts: WeakSet[EngineHost] = WeakSet()
        self.tasks = Tasks(self._report)
        self.capability = Capability(
            options.data,
            threads=self.threads,
            memory_max_bytes=options.memory_max_bytes,
            is_metered=options.metered,
        )
        self.reach = Reach(
            announced=options.announce,
            bound=lambda: self.transport.listen_multiaddrs,
            is_member=lambda peer: self.mesh.is_member(peer),
            changed=lambda: self.links.status_changed(),
        )
        self.links = Links(
            transport,
            tasks=self.tasks,
            rng=Random(secrets.randbits(64)),  # noqa: S311 - jitter, not a secret
            my_status=lambda: self.presence.status(),
            on_status=self._heard,
            on_link=self._link_changed,
            is_member=lambda peer: self.mesh.is_member(peer),
            is_forwarded=bool(options.announce),
        )
        self.mesh = Mesh(
            identity=identity,
            ledger=ledger,
            transport=transport,
            data_dir=options.data,
            name=self.name,
            addresses=self.addresses,
            now_ms=now_ms,
            member_added=self._member_added,
            where=self.where,
        )
        self.mesh.member_removed = self._member_removed
        self.approvals = Approvals(
            mesh=self.mesh,
            now_ms=now_ms,
            changed=lambda: self.say({"kind": "approvals", "data": {"waiting": len(self.approvals.waiting)}}),
        )
        self.catalog = Catalog(
            store,
            self.links,
            report=self._blob_refused,
            default_name=lambda: default_model(ledger.state),
        )
        self.engine_options = EngineSettings(ledger)
        self.adapters = Adapters(options.data / "adapters", self.links)
        self.hosting = Hosting(
            catalog=self.catalog,
            links=self.links,
            threads=self.threads,
            new_engine=self._new_engine,
            stored=self._stage_stored,
            check_head=lambda head: self.grants.check(head),
            device=self.engine_options.of_device,
            adapters=self.adapters,
        )
        self.grants = Grants(
            me=self.me,
            record=ledger,
            tallies=self.hosting.tallies,
            stages_of=self.hosting.of_head,
            path=lambda peer: self.links.path(peer),
            serve=self.links.serve,
        )
        self.reduce_streams = ReduceStreams(
            hosting=self.hosting, links=self.links, transport=transport, tasks=self.tasks
        )
        self.streams = StageStreams(
            hosting=self.hosting,
            grants=self.grants,
            links=self.links,
            transport=transport,
            tasks=self.tasks,
        )
        self.omni = OmniStages(hosting=self.hosting, grants=self.grants, transport=transport)
        self.tunnel = RpcTunnel(
            transport=transport,
            links=self.links,
            threads=self.threads,
            check_head=self.grants.check_uncounted,
        )
        self.bringing = Bringing(
            self.catalog,
            self.threads,
            lambda: prefix_bytes_of(value_of(ledger.state.settings, PREFIXES)),
            engine=self.engine_options.of_model,
            device=self.engine_options.of_device,
            adapters=self.adapters,
        )
        engines = EnginePool(self._new_engine)
        self.kv_transfers = KvTransfers(hosting=self.hosting, links=self.links, transport=transport)
        rings = Rings(
            me=self.me,
            my_addresses=self.addresses,
            links=self.links,
            streams=self.streams,
            tasks=self.tasks,
            bringing=self.bringing,
            engines=engines,
            make_up=lambda peer: self.receipts.make_up(peer),
        )
        self.routing = Routing(
            me=self.me,
            bringing=self.bringing,
            engines=engines,
            tasks=self.tasks,
            room=Room(
                memory_max_bytes=options.memory_max_bytes,
                engines=lambda: self.engine_hosts,
                in_use=lambda: (
                    {running.active.plan_id for running in self.requests.on_plans().values()}
                    | self.embedding.in_use
                ),
                held_by=held_by,
            ),
            unloaded=self._unloaded,
            whole_models=Whole(
                me=self.me,
                name_of=self.links.name_of,
                bringing=self.bringing,
                engines=engines,
                tunnel=self.tunnel,
            ),
            rings=rings,
            splits=Splits(
                me=self.me,
                name_of=self.links.name_of,
                bringing=self.bringing,
                rings=rings,
                transfers=self.kv_transfers,
                say=self.say,
            ),
        )
        self.link_times = LinkTimes(
            self.links, is_busy=lambda: bool(self.requests.running), tell=self._link_timed
        )
        self.layer_rates = LayerRates(
            catalog=self.catalog,
            path=options.data / "rates.json",
            threads=self.threads,
            is_busy=self._is_busy,
            now_ms=now_ms,
            changed=self._rates_changed,
        )
        self.planning = Planning(
            me=self.me,
            catalog=self.catalog,
            links=self.links,
            capability=self.capability.view,
            link_times=self.link_times.times,
            name=self.name,
            engine=self.engine_options.of_model,
        )
        self.loads = Loads(kind="loading", name=self.name, say=self.say, clock=time.monotonic)
        self.transfers = Loads(kind="transfer", name=self.name, say=self.say, clock=time.monotonic)
        self.choosing = Choosing(
            me=self.me,
            ledger=ledger,
            catalog=self.catalog,
            links=self.links,
            planning=self.planning,
            routing=self.routing,
            tasks=self.tasks,
            memory_max_bytes=options.memory_max_bytes,
            loads=self.loads,
            say=self.say,
        )
        self.duplicates = Duplicates(
            me=self.me,
            mine=Instance(secrets.token_hex(8), f"{host_name()} (process {os.getpid()})"),
            record=lambda fact: self._record_soon("duplicate identity", fact),
            changed=lambda: self.links.status_changed(),
            name_of=lambda peer: self.links.name_of(peer),
            now_s=lambda: asyncio.get_running_loop().time(),
        )
        self.presence = Presence(
            name=self.name,
            ledger=ledger,
            transport=transport,
            mesh=self.mesh,
            links=self.links,
            catalog=self.catalog,
            capability=self.capability,
            link_times=self.link_times.times,
            hosting=self.hosting,
            routing=self.routing,
            tasks=self.tasks,
            stopping=self.stopping,
            state=lambda: self.state,
            addresses=self.addresses,
            where=self.where,
            duplicates=self.duplicates,
            external=lambda: self.backends.told(),
            witnessed=lambda: self.histories.told(),
            now_ms=now_ms,
            say=self.say,
        )
        self.receipts = Receipts(
            me=self.me,
            record=ledger,
            tallies=self.hosting.tallies,
            debts=self.grants,
            call=self.links.call,
            serve=self.links.serve,
            keys=lambda: ledger.log.keys,
            checkpoint=ledger.log.checkpoint,
            now_ms=now_ms,
            rng=secrets.token_bytes,
        )
        self.requests = Requests(
            choose=self.choosing.choose,
            choose_again=self.choosing.choose_again,
            book=Books(ledger, self.receipts, self.tasks),
            new_id=_request_id,
            finished=self._request_finished,
        )
        self.backends = Backends(
            me=self.me,
            name=self.name,
            addresses=options.backends,
            may_discover=lambda: value_of(ledger.state.settings, DISCOVER) == "on",
            own_port=lambda: parse_host_port(options.api)[1],
            links=self.links,
            requests=self.requests,
            say=self.say,
        )
        self.federation = Federation(transport=transport, links=self.links, generate=self._generate_here)
        self.forwarding = Forwarding(ledger=ledger, ask=self.federation.ask, new_id=_request_id)
        self.embedding = Embedding(
            self.bringing,
            self._new_engine,
            self.loads,
            Pooling(
                me=self.me,
                bringing=self.bringing,
                choosing=self.choosing,
                path=self.links.path,
                loads=self.loads,
                new_session=self.requests.new_session,
                new_id=_request_id,
            ),
        )
        self.log_sharing = LogSharing(ledger=ledger, links=self.links, transport=transport)
        self.histories = Histories(
            ledger=ledger,
            links=self.links,
            ask=self.log_sharing.ask,
            binding_of=lambda peer: fetch_binding(self.links, peer),
            now_ms=now_ms,
        )
        self.witnessing = Witnessing(
            ledger=ledger,
            links=self.links,
            refused=self.histories.hear,
            policy=read_policy(options.data),
        )
        self.auto_mode = AutoMode(self)
        self.pulling = Pulling(
            catalog=self.catalog,
            links=self.links,
            mesh=self.mesh,
            transfers=self.transfers,
            came=self._model_came,
        )
        self.hops = Hops(
            me=self.me,
            links=self.links,
            hosting=self.hosting,
            active=lambda: list(self.routing.active.values()),
            running=self.requests.on_plans,
            say=self.say,
            clock=time.monotonic,
        )
        self.tools = Tools(read_file(options.mcp) if options.mcp else {}, self._tool_called)
        self.telemetry: list[Callable[[dict[str, Any]], None]] = []
        transport.handle(BLOB, BlobServer(store).handle)

    # --- life ----------------------------------------------------------------------------------------
    async def start(self, tell: Tell) -> None:
        """Recover, join or create the mesh, know the members, offer the models."""
        answer = await self.ledger.do(
            c.StartNode(version=__version__, platform=platform.system(), device_name=self.name)
        )
        if answer.get("crashed"):
            tell("the last run did not end cleanly; its record was recovered")
        is_first = not self.mesh.restore()
        if self.options.ticket:
            await self.mesh.join(self.options.ticket, tell)
        elif is_first and self.options.ask:
            await self._ask_to_join(tell)
        elif is_first:
            await self.mesh.create(f"{self.name}-mesh"[: limits.NAME_CHARACTERS_MAX])
            tell(f'created the mesh "{self.mesh.mesh_name}"')
        await self._offer_models(is_founder=self.mesh.my_role == "founder", tell=tell)
        self._know_members()
        await self.presence.discover(self.options.mdns, tell)
        if self.options.port_mapping:
            self.tasks.spawn("port mapping", self.reach.keep_mapped(tell))
        self.tasks.spawn("record clock", self._tick())
        self.tasks.spawn("witnesses", self.witnessing.run())
        self.tasks.spawn("hops", self.hops.run())
        self.tasks.spawn("backends", self.backends.run())
        self.tasks.spawn("histories", self.histories.run())
        self.tasks.spawn("auto mode", self.auto_mode.run())
        self.tasks.spawn("measuring", self._measure())
        self.is_started = True

    async def _ask_to_join(self, tell: Tell) -> None:
        """Without a ticket: ask the member given with --peer, or the mesh that is near."""
        for address, peer_id in map(peer_address, self.options.peers):
            await ask(self.mesh, self.transport, peer_id, [address], tell)
            return
        tell("looking for a mesh on this network")
        await ask_nearby(self.mesh, self.transport, await listen_nearby(self.me), tell)

    async def _offer_models(self, *, is_founder: bool, tell: Tell) -> None:
        await asyncio.to_thread(self.store.collect)  # what a crash left behind
        demo = demo_model_path()
        if is_founder and demo is not None:
            await self.offer(await asyncio.to_thread(self.store.add_demo, demo))
        for path in self.options.models:
            model = await asyncio.to_thread(self.store.add_file, path)
            await self.offer(model)
            tell(f"model {model.name}: {model.manifest.size / 1e6:.1f} MB")

    async def offer(self, model: StoredModel) -> None:
        summary = model.manifest.summary()
        await self.ledger.do(
            c.AddModel(
                model=facts.ModelAdded(
                    model=model.content_id,
                    name=model.name[:128],
                    architecture=str(summary["architecture"])[:128],
                    quantisation=str(summary["quantisation"] or "")[:128],
                    size_bytes=model.manifest.size,
                    layer_count=int(summary["layers"] or 0),
                    source="file" if model.imported else "peer",
                    context_length=int(summary["context_length"] or 0),
                )
            )
        )

    def _request_finished(self, running: Running) -> None:
        self.choosing.learn(running)
        self.hops.finished(running)

    async def _model_came(self, model: StoredModel) -> None:
        await self.offer(model)
        self.links.status_changed()

    def _know_members(self) -> None:
        remembered = self.mesh.remembered()
        assert self.mesh.membership is not None
        for key in self.mesh.membership.members():
            peer = peer_of(key)
            if peer != self.me:
                self.links.know(peer, addresses=remembered.get(peer, []))
        for address, peer_id in map(peer_address, self.options.peers):
            self.links.know(peer_id, addresses=[address])

    async def _measure(self) -> None:
        self.capability.measured.update(await machine_rates(self.options.data, self.threads, now_ms))
        self.capability.measured.update(build=await self.tunnel.build(), can_rpc=True)
        self._rates_changed()
        self.tasks.spawn("link times", self.link_times.run())
        await self.layer_rates.run()

    def _rates_changed(self) -> None:
        self.capability.measured["rates"] = self.layer_rates.view()
        self.links.status_changed()

    def _is_busy(self) -> bool:
        """Whether something computes here: measuring would disturb it, and be disturbed."""
        return bool(self.requests.running) or not self.hosting.idle.is_set()

    async def _link_timed(self, link: Link, found: LinkTime) -> None:
        """Into the record, which keeps only what changed much."""
        said = link.status.capability if link.status is not None else {}

        def number(key: str) -> int:
            value = said.get(key, 0)
            return int(value) if isinstance(value, int | float) and value > 0 else 0

        measured = facts.PeerMeasured(
            peer=link.peer_id,
            rtt_us=int(found.rtt_s * 1e6),
            bytes_per_s=int(found.bytes_per_s),
            memory_bytes=number("memory_total_bytes"),
            memory_free_bytes=number("memory_free_bytes"),
            flops_mega=0,
            memory_bytes_per_s=number("memory_bytes_per_s"),
        )
        await self.ledger.do(c.RecordMeasurement(measured=measured))
        self.links.status_changed()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(limits.TICK_S)
            self._pin_used()
            await asyncio.to_thread(self.mesh.remember, self.where())
            await self.hosting.end_orphans(self._is_there, asyncio.get_running_loop().time())
            self.grants.tick()
            await self.ledger.log.tick()
            await self.ledger.do(c.ExpireHolds())

    def _is_there(self, peer: str) -> bool:
        link = self.links.links.get(PeerId(peer))
        return peer == self.me or (link is not None and link.is_up)

    def _pin_used(self) -> None:
        """Models that serve now are never dropped to make room for others."""
        used = {active.model.content_id for active in self.routing.active.values()}
        self.store.pin(used | {ContentId(hosted.order.model) for hosted in self.hosting.stages.values()})

    async def stop(self, reason: str) -> None:
        """Frees engines and streams, seals the record, closes the socket."""
        self.is_started = False
        await self._say_goodbye()
        self.stopping.set()
        self.links.close()
        steps = (
            self.presence.end_discovery,
            self.routing.close,
            self.embedding.close,
            self.tools.close,
            self.tunnel.close,
            self.hosting.close,
            lambda: asyncio.to_thread(self.mesh.remember, self.where()),
            self.tasks.close,
            self.transport.close,
            lambda: self.ledger.do(c.StopNode(reason=reason)),
            self.ledger.close,
            lambda: asyncio.to_thread(self.store.close),
        )
        for step in steps:
            try:
                await step()
            except (
                P2PNodeError
            ) as error:  # one room that ends badly must not keep the others from ending well
                self._report("stopping", error)

    async def _say_goodbye(self) -> None:
        """Tell the others first, so that heads move their answers while this device still works for them."""
        self.state = "leaving"
        if self.hosting.stages and any(link.is_up for link in self.links.links.values()):
            self.links.status_changed()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.GOODBYE_S_MAX):
                    await self.hosting.idle.wait()

    # --- the mesh ------------------------------------------------------------------------------------
    def addresses(self) -> list[str]:
        return self.reach.addresses()

    def where(self) -> dict[str, list[str]]:
        """Addresses of every other member, as far as known."""
        return {peer: list(link.addresses) for peer, link in self.links.links.items() if link.addresses}

    def _heard(self, link: Link, status: messages.Status) -> None:
        self.presence.heard(link, status)
        for note, binding in ((status.checkpoint, b""), *status.extra.get("witnessed", [])):
            self.histories.hear(note, binding)

    def _member_added(self, peer: PeerId, name: str, addresses: list[str]) -> None:
        self.links.know(peer, name=name, addresses=addresses)
        self.links.status_changed()

    def _link_changed(self, link: Link, is_up: bool) -> None:
        self.presence.link_changed(link, is_up)
        if is_up:  # what was not signed when the device went is signed now that it is back
            self.tasks.spawn(f"receipts {link.peer_id[-6:]}", self.receipts.make_up(link.peer_id))

    def _member_removed(self, peer: PeerId) -> None:
        """The gate refuses new streams; what is open ends with the connection."""
        link = self.links.links.get(peer)
        self.links.forget(peer)
        self.duplicates.forget(peer)
        self.reach.observed.forget(peer)
        self.routing.lose_peer(peer, "its membership was revoked")
        if link is not None and link.connection is not None:
            self.tasks.spawn("close revoked", link.connection.close(CLOSE_GATED, "membership revoked"))
        self.links.status_changed()

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """Here when this device can, else whole by the nearest device that holds the model."""
        if self.is_external(request.model):
            if self.backends.here(request.model):
                return self.backends.generate(request)
            holder = nearest_holder(self.links, self.backends.holders(request.model))
            return self.forwarding.generate(holder, request.model or "", request)
        model = self.catalog.resolve(request.model)
        if request.mode != "auto" or self.choosing.is_mine(model) or not model.holders:
            return self.requests.generate(request)
        holder = nearest_holder(self.links, model.holders)
        return self.forwarding.generate(holder, model.content_id, request)

    def _generate_here(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """What another member asks for is never handed on to a third."""
        if self.is_external(request.model) and self.backends.here(request.model):
            return self.backends.generate(request)
        return self.requests.generate(request)

    def is_external(self, name: str | None) -> bool:
        """Whether external servers alone have a model of this name: what the mesh itself holds goes before."""
        known = self.catalog.known()
        if name is None or any(name in (model.name, model.content_id) for model in known):
            return False
        return name in self.backends.known()

    # --- small things --------------------------------------------------------------------------------
    def say(self, item: dict[str, Any]) -> None:
        """Ephemeral news for the live feed."""
        for listener in list(self.telemetry):
            listener(item)

    def _unloaded(self, active: Active) -> None:
        data = {"model": active.model.name, "plan_id": active.plan_id, "mode": active.mode}
        self.say({"kind": "unloaded", "data": data})

    def _new_engine(self, purpose: str) -> EngineHost:
        host = EngineHost(purpose, tasks=self.tasks, notice=self._engine_notice)
        self.engine_hosts.add(host)
        return host

    async def _engine_notice(self, what: str, purpose: str, details: dict[str, int | str]) -> None:
        fact: facts.EngineDied | facts.EngineRestarted
        if what == "died":
            fact = facts.EngineDied(
                model=purpose[:128], exit_code=int(details["exit_code"]), reason=str(details["reason"])[:500]
            )
        else:
            fact = facts.EngineRestarted(
                model=purpose[:128], attempt=int(details["attempt"]), duration_ms=int(details["duration_ms"])
            )
        await self.ledger.do(c.RecordFact(fact=fact))
        self.say({"kind": f"engine_{what}", "data": {"purpose": purpose, **details}})

    async def _stage_stored(self, hosted: HostedStage) -> None:
        self._pin_used()
        if hosted.bytes_fetched == 0:
            return
        await self.ledger.do(
            c.StoreShard(
                shard=facts.ShardStored(
                    model=hosted.order.model,
                    content=f"{hosted.order.model[-24:]}:{hosted.layers[0]}-{hosted.layers[1]}",
                    layer_first=hosted.layers[0],
                    layer_end=hosted.layers[1],
                    size_bytes=hosted.bytes_fetched,
                    source="mesh",
                )
            )
        )

    async def _tool_called(self, about: dict[str, Any]) -> None:
        arguments = msgspec.json.encode(about.pop("arguments"))
        commitment = self.ledger.log.commit_secret(about["request_id"], arguments)
        await self.ledger.do(c.RecordFact(fact=facts.ToolCalled(arguments_commitment=commitment, **about)))

    def _blob_refused(self, peer: str, error: P2PNodeError) -> None:
        fact = facts.BlobRefused(content="", peer=peer[:128], reason=f"{error.code}: {error.message}"[:500])
        self._record_soon("blob refused", fact)

    def _record_soon(self, what: str, fact: facts.BlobRefused | facts.IdentityDuplicated) -> None:
        self.tasks.spawn(what, self.ledger.do(c.RecordFact(fact=fact)))

    def _report(self, what: str, error: BaseException) -> None:
        if isinstance(error, P2PNodeError):
            _log.info("work ended", what=what, why=describe(error))
        else:
            _log.error("work failed", what=what, exc_info=error)


def demo_model_path() -> Path | None:
    """The embedded model: beside the package in a checkout, under the prefix when a wheel was installed."""
    here = Path(__file__).resolve()
    for folder in (here.parents[2] / "models", Path(sys.prefix) / "share" / "p2pnode" / "models"):
        if (path := folder / "p2pnode-demo.gguf").is_file():
            return path
    return None


__all__ = ["Node", "demo_model_path", "key_of", "now_ms"]
