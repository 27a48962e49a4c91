"""The node itself: its rooms put together, started in order and ended in the other."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import structlog

from p2pnode import __version__, limits
from p2pnode import commands as c
from p2pnode.compute.calibration import Measured
from p2pnode.compute.plan import Plan
from p2pnode.config import JoinOptions
from p2pnode.errors import P2PNodeError, StageLost
from p2pnode.events import types as facts
from p2pnode.facade import GenerateEvent, GenerateRequest
from p2pnode.identity import Identity
from p2pnode.models.serve import BlobServer
from p2pnode.models.store import ModelStore, StoredModel
from p2pnode.network import path_of
from p2pnode.node.active import Active
from p2pnode.node.approval import Approvals, ask, ask_nearby
from p2pnode.node.auto_mode import AutoMode
from p2pnode.node.books import Books
from p2pnode.node.bringing import Bringing
from p2pnode.node.capability import Capability, cores
from p2pnode.node.catalog import BLOB, Catalog, KnownModel
from p2pnode.node.embedding import Embedding
from p2pnode.node.engines import EngineHost, EnginePool
from p2pnode.node.federation import Federation, nearest_holder
from p2pnode.node.hosting import HostedStage, Hosting
from p2pnode.node.ledger import Ledger
from p2pnode.node.links import Link, Links
from p2pnode.node.measuring import machine_rates
from p2pnode.node.mesh import Mesh, key_of, peer_of
from p2pnode.node.nearby import listen_nearby
from p2pnode.node.omni import OmniStages
from p2pnode.node.planning import Planning, PlanRequest, parts_of
from p2pnode.node.pulling import Pulling
from p2pnode.node.receipts import Receipts
from p2pnode.node.requests import Requests, Running
from p2pnode.node.rings import Rings
from p2pnode.node.routing import Routing
from p2pnode.node.rpc_tunnel import RpcTunnel
from p2pnode.node.stage_streams import StageStreams
from p2pnode.node.tasks import Tasks, describe
from p2pnode.node.whole import Whole
from p2pnode.node.witnessing import Witnessing
from p2pnode.transport import messages
from p2pnode.transport.discovery import Discovery
from p2pnode.transport.port import Transport
from p2pnode.units import ContentId, PeerId

Tell = Callable[[str], None]
_log = structlog.get_logger("p2pnode.node")


CLOSE_GATED = 0x1007
"""libp2p's code for: this peer may not be here."""


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
        self.tasks = Tasks(self._report)
        self.capability = Capability(
            options.data, threads=self.threads, memory_max_bytes=options.memory_max_bytes
        )
        self.links = Links(
            transport,
            tasks=self.tasks,
            rng=Random(secrets.randbits(64)),  # noqa: S311 - jitter, not a secret
            my_status=self._status,
            on_status=self._on_status,
            on_link=self._on_link,
            is_member=lambda peer: self.mesh.is_member(peer),
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
        self.catalog = Catalog(store, self.links, report=self._blob_refused)
        self.hosting = Hosting(
            catalog=self.catalog,
            links=self.links,
            threads=self.threads,
            new_engine=self._new_engine,
            stored=self._stage_stored,
        )
        self.streams = StageStreams(
            hosting=self.hosting, links=self.links, transport=transport, tasks=self.tasks
        )
        self.omni = OmniStages(hosting=self.hosting, transport=transport)
        self.tunnel = RpcTunnel(transport=transport, links=self.links, threads=self.threads)
        self.bringing = Bringing(self.catalog, self.threads)
        engines = EnginePool(self._new_engine)
        self.routing = Routing(
            me=self.me,
            bringing=self.bringing,
            engines=engines,
            whole=Whole(
                me=self.me,
                name_of=self.links.name_of,
                bringing=self.bringing,
                engines=engines,
                tunnel=self.tunnel,
            ),
            rings=Rings(
                me=self.me,
                my_addresses=self.addresses,
                links=self.links,
                streams=self.streams,
                tasks=self.tasks,
                bringing=self.bringing,
                engines=engines,
            ),
        )
        self.planning = Planning(
            me=self.me,
            catalog=self.catalog,
            links=self.links,
            capability=self.capability.view,
            name=self.name,
        )
        self.receipts = Receipts(
            me=self.me,
            record=ledger,
            tallies=self.hosting.tallies,
            call=self.links.call,
            serve=self.links.serve,
            keys=lambda: ledger.log.keys,
            checkpoint=ledger.log.checkpoint,
            now_ms=now_ms,
            rng=secrets.token_bytes,
        )
        self.requests = Requests(
            choose=self.choose,
            choose_again=self.choose_again,
            book=Books(ledger, self.receipts, self.tasks),
            new_id=lambda: f"req-{secrets.token_hex(8)}",
            finished=self._learn,
        )
        self.federation = Federation(transport=transport, links=self.links, generate=self.requests.generate)
        self.embedding = Embedding(self.bringing, self._new_engine)
        self.witnessing = Witnessing(ledger=ledger, links=self.links)
        self.auto_mode = AutoMode(self)
        self.pulling = Pulling(self.catalog, options.data, self.say)
        self.plans_made: dict[str, Plan] = {}
        self.applied: dict[ContentId, tuple[Plan, PlanRequest]] = {}
        """Plans somebody applied: carried out again after a loss, on the same devices while they are there."""
        self.discovery: Discovery | None = None
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
        await self._discover(tell)
        self.tasks.spawn("record clock", self._tick())
        self.tasks.spawn("witnesses", self.witnessing.run())
        self.tasks.spawn("auto mode", self.auto_mode.run())
        self.tasks.spawn("measuring", self._measure())
        self.is_started = True

    async def _ask_to_join(self, tell: Tell) -> None:
        """Without a ticket: ask the member given with --peer, or the mesh that is near."""
        for address in self.options.peers:
            before, _, peer_text = address.partition("/p2p/")
            await ask(self.mesh, self.transport, PeerId(peer_text), [before], tell)
            return
        tell("looking for a mesh on this network")
        await ask_nearby(self.mesh, self.transport, await listen_nearby(self.me), tell)

    async def _offer_models(self, *, is_founder: bool, tell: Tell) -> None:
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

    def _know_members(self) -> None:
        remembered = self.mesh.remembered()
        assert self.mesh.membership is not None
        for key in self.mesh.membership.members():
            peer = peer_of(key)
            if peer != self.me:
                self.links.know(peer, addresses=remembered.get(peer, []))
        for address in self.options.peers:
            before, _, peer_text = address.partition("/p2p/")
            self.links.know(PeerId(peer_text), addresses=[before])

    async def _discover(self, tell: Tell) -> None:
        """mDNS is a convenience: without multicast everything else works and `doctor` says so."""
        if not self.options.mdns:
            return
        self.discovery = Discovery(self.me, self.addresses, self._heard_nearby)
        try:
            await self.discovery.start()
        except P2PNodeError as error:
            self.discovery = None
            tell(error.message)

    def _heard_nearby(self, peer_id: PeerId, addresses: list[str]) -> None:
        if self.mesh.is_member(peer_id) and not self.stopping.is_set():
            self.links.know(peer_id, addresses=addresses)

    async def _end_discovery(self) -> None:
        if self.discovery is not None:
            await self.discovery.close()

    async def _measure(self) -> None:
        self.capability.measured.update(await machine_rates(self.options.data, self.threads, now_ms))
        self.capability.measured.update(build=await self.tunnel.build(), can_rpc=True)
        self.links.status_changed()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(limits.TICK_S)
            await self.ledger.log.tick()
            await self.ledger.do(c.ExpireHolds())

    async def stop(self, reason: str) -> None:
        """Frees engines and streams, seals the record, closes the socket."""
        self.is_started = False
        await self._say_goodbye()
        self.stopping.set()
        self.links.close()
        steps = (
            self._end_discovery,
            self.routing.close,
            self.embedding.close,
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

    # --- what others hear and say --------------------------------------------------------------------
    def addresses(self) -> list[str]:
        return list(self.transport.listen_multiaddrs)[: limits.TICKET_ADDRESSES_MAX]

    def where(self) -> dict[str, list[str]]:
        """Addresses of every other member, as far as known."""
        return {peer: list(link.addresses) for peer, link in self.links.links.items() if link.addresses}

    def _status(self) -> messages.Status:
        membership = self.mesh.membership
        rtt_ms = {
            link.peer_id: round(link.connection.stats().rtt_s * 1000, 3)
            for link in self.links.links.values()
            if link.connection is not None and link.is_up
        }
        return messages.Status(
            name=self.name,
            version=__version__,
            role=self.mesh.my_role,
            mesh_key=membership.mesh_key if membership else b"",
            addresses=self.addresses(),
            grants=membership.export() if membership else [],
            revocations=membership.export_revocations() if membership else [],
            models=self.catalog.announce(),
            capability=self.capability.view(),
            state=self.state,
            now_ms=now_ms(),
            checkpoint=self.ledger.log.checkpoint() or "",
            extra={
                "rtt_ms": rtt_ms,
                "peers": self.where(),
                "stages": [self._hosted_view(h) for h in self.hosting.stages.values()],
            },
        )

    def _hosted_view(self, hosted: HostedStage) -> dict[str, Any]:
        return {
            "plan_id": hosted.order.plan_id,
            "model": hosted.order.model_name,
            "layers": list(hosted.layers),
            "bytes_fetched": hosted.bytes_fetched,
            "up": hosted.engine.is_up,
        }

    def _on_status(self, link: Link, status: messages.Status) -> None:
        for address in status.addresses[: limits.PEER_ADDRESSES_MAX]:
            if address.startswith("/") and address not in link.addresses and len(link.addresses) < 16:
                link.addresses.append(address)
        if status.state != "active":
            self.routing.lose_peer(link.peer_id, f"{link.name} is {status.state}")
        if not self.stopping.is_set():
            self.tasks.spawn("hear status", self._hear(link, status))

    async def _hear(self, link: Link, status: messages.Status) -> None:
        await self.mesh.hear(status)
        self._hear_of_others(status)
        entry = self.ledger.state.peers.peers.get(link.peer_id)
        if link.connection is not None and (
            entry is None or not entry.online or entry.version != status.version
        ):
            remote = link.connection.remote_multiaddr.split("/")
            path = path_of(remote[2] if len(remote) > 2 else "")
            await self.ledger.do(
                c.RecordPeerSeen(
                    peer=link.peer_id,
                    device_name=link.name,
                    path=path,
                    address_commitment=self.ledger.log.commit_secret(
                        f"address of {link.peer_id}", link.connection.remote_multiaddr.encode()
                    ),
                    version=status.version[:128],
                )
            )
        for model in status.models:
            await self._learn_model(str(model.get("manifest", "")), str(model.get("name", ""))[:128], link)

    def _hear_of_others(self, status: messages.Status) -> None:
        """Members tell where members are; who answers there is checked when dialling."""
        for peer, addresses in list(dict(status.extra.get("peers", {})).items())[: limits.MESH_MEMBERS_MAX]:
            peer_id = PeerId(str(peer))
            link = self.links.links.get(peer_id)
            if peer_id != self.me and (link is None or not link.is_up) and self.mesh.is_member(peer_id):
                said = [str(a) for a in addresses if str(a).startswith("/")][: limits.PEER_ADDRESSES_MAX]
                self.links.know(peer_id, addresses=said)

    async def _learn_model(self, content_id: str, name: str, link: Link) -> None:
        """Keep the manifest (never the weights) of what others offer, so that it can be planned for at once."""
        if not content_id or not name or any(m.content_id == content_id for m in self.store.models()):
            return
        await self.catalog.manifest(ContentId(content_id), name=name, extra_holders=[link.peer_id])

    def _on_link(self, link: Link, is_up: bool) -> None:
        if not is_up and not self.stopping.is_set():
            self.tasks.spawn(
                "peer lost", self.ledger.do(c.RecordPeerLost(peer=link.peer_id, reason="connection lost"))
            )
        self.say({"kind": "link", "data": {"peer": link.peer_id, "name": link.name, "up": is_up}})

    def _member_added(self, peer: PeerId, name: str, addresses: list[str]) -> None:
        self.links.know(peer, name=name, addresses=addresses)
        self.links.status_changed()

    def _member_removed(self, peer: PeerId) -> None:
        """The gate refuses new streams; what is open ends with the connection."""
        link = self.links.links.get(peer)
        self.links.forget(peer)
        self.routing.lose_peer(peer, "its membership was revoked")
        if link is not None and link.connection is not None:
            self.tasks.spawn("close revoked", link.connection.close(CLOSE_GATED, "membership revoked"))
        self.links.status_changed()

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """Here when this device can, else whole by the nearest device that holds the model."""
        model = self.catalog.resolve(request.model)
        is_mine = (
            model.is_complete_here
            or self.routing.of_model(model.content_id)
            or model.content_id in self.applied
        )
        if request.mode != "auto" or is_mine or not model.holders:
            return self.requests.generate(request)
        return self.federation.ask(nearest_holder(self.links, model.holders), request)

    # --- plans ---------------------------------------------------------------------------------------
    async def choose(self, request: GenerateRequest) -> Active:
        """The plan a request runs on: the one applied for its model, else this device alone, else a new plan."""
        model = self.catalog.resolve(request.model)
        if request.mode == "local":
            return await self._locally(model)
        applied = self.applied.get(model.content_id)
        active = self.routing.of_model(model.content_id, None if request.mode == "auto" else request.mode)
        if active is not None and (active.mode != "local" or applied is None):
            return active
        if applied is not None:
            try:
                return await self._carry_out_again(model, *applied)
            except P2PNodeError as error:
                if not model.is_complete_here:
                    raise StageLost(
                        f"the plan for {model.name} cannot be carried out: {error.message}"
                    ) from error
                self.say({"kind": "fallback", "data": {"model": model.name, "reason": error.message}})
                return await self._locally(model)
        if request.mode == "auto" and model.is_complete_here:
            return await self._locally(model)
        return await self.activate(model, PlanRequest(model=model.name, mode=request.mode))  # type: ignore[arg-type]

    async def _locally(self, model: KnownModel) -> Active:
        return await self.routing.local(model, lambda data: self.say({"kind": "loading", "data": data}))

    async def choose_again(self, running: Running, error: P2PNodeError) -> Active:
        """Where a running request goes on: without the devices that do not answer now, here alone if that is best."""
        model = running.active.model
        gone = await self._silent(running.active)
        self.say(
            {
                "kind": "stage_lost",
                "data": {"request_id": running.request_id, "reason": error.message, "gone": gone},
            }
        )
        self.routing.give_up(running.active, error)
        active = await self._instead(model, running.active, gone)
        if active.plan_id != running.active.plan_id:
            # What the devices that are left had loaded for the old plan serves nobody now.
            self.tasks.spawn("release", self.routing.release_left(running.active.plan_id))
        return active

    async def _instead(self, model: KnownModel, before: Active, gone: list[str]) -> Active:
        if before.plan_id.startswith("local-"):
            return await self._locally(model)
        if not gone and model.content_id in self.applied:
            return await self._carry_out_again(model, *self.applied[model.content_id])
        wish = PlanRequest(model=model.name, mode="auto", exclude=gone)
        made = (await self.planning.make(wish, model)).plan
        if made.mode == "local":
            return await self.routing.alone(model, lambda data: self.say({"kind": "loading", "data": data}))
        return await self.carry_out(model, made)

    async def _silent(self, active: Active) -> list[str]:
        """Devices of a plan that do not answer a ping now."""

        async def answers(peer: str) -> bool:
            link = self.links.links.get(PeerId(peer))
            if peer == self.me:
                return True
            if link is None or link.connection is None or not link.is_up:
                return False
            if link.status is not None and link.status.state != "active":
                return False
            try:
                await link.connection.ping(timeout_s=limits.SILENCE_PING_S)
            except (P2PNodeError, TimeoutError):
                return False
            return True

        peers = sorted({str(stage["peer"]) for stage in active.stages})
        found = await asyncio.gather(*(answers(peer) for peer in peers))
        return [peer for peer, is_there in zip(peers, found, strict=True) if not is_there]

    async def _carry_out_again(self, model: KnownModel, made: Plan, request: PlanRequest) -> Active:
        up = {link.peer_id for link in self.links.links.values() if link.is_up} | {self.me}
        if set(made.peers) <= up:
            return await self.carry_out(model, made)
        return await self.activate(model, request)

    async def activate(self, model: KnownModel, request: PlanRequest) -> Active:
        """Plan and carry out."""
        made = (await self.planning.make(request, model)).plan
        active = await self.carry_out(model, made)
        if model.content_id in self.applied:
            self.applied[model.content_id] = (made, request)
        return active

    async def carry_out(self, model: KnownModel, made: Plan) -> Active:
        """Record a plan, prepare its devices, probe it; what failed is said to whoever watches."""
        if made.mode == "local":
            return await self._locally(model)
        started_s = time.monotonic()
        await self._propose(made, model)
        self.plans_made[made.plan_id] = made
        try:
            active = await self._build(model, made)
        except P2PNodeError as error:
            self.say({"kind": "plan_failed", "data": {"plan_id": made.plan_id, "reason": error.message}})
            raise
        plan = self.ledger.state.plans.plans.get(made.plan_id)
        if plan is None or plan.state == "proposed":
            await self.ledger.do(
                c.ActivatePlan(plan_id=made.plan_id, duration_ms=int((time.monotonic() - started_s) * 1000))
            )
        self.links.status_changed()
        return active

    async def _build(self, model: KnownModel, made: Plan) -> Active:
        def say(data: dict[str, Any]) -> None:
            self.say({"kind": "loading", "data": data})

        if made.mode == "streamed":
            return await self.routing.streamed(model, self._resident_bytes(model), say)
        if made.mode == "tensor_rpc":
            workers = [PeerId(peer) for peer in made.peers if peer != self.me]
            return await self.routing.rpc(made.plan_id, model, workers, say)
        return await self.routing.pipeline(made.plan_id, model, parts_of(made), say)

    def _resident_bytes(self, model: KnownModel) -> int:
        """What `--memory-max` leaves, or half of the model where nothing was said."""
        half = int(model.summary.get("size_bytes") or 0) // 2
        return min(self.options.memory_max_bytes or half, half)

    async def _propose(self, made: Plan, model: KnownModel) -> None:
        if made.plan_id in self.ledger.state.plans.plans:
            return
        await self.ledger.do(
            c.ProposePlan(
                plan=facts.PlanProposed(
                    plan_id=made.plan_id,
                    model=model.content_id,
                    mode=made.mode,
                    stages=tuple((stage.peer, stage.layer_first, stage.layer_end) for stage in made.stages),
                    tokens_per_s_milli=int(made.prediction.tokens_per_s * 1000),
                    why="; ".join(made.reasons)[:500],
                )
            )
        )

    def _learn(self, running: Running) -> None:
        """Prediction beside measurement: the next plan believes what this request showed."""
        made, session = self.plans_made.get(running.active.plan_id), running.session
        if made is not None and not running.recoveries and len(session.generated) > 1:
            per_token_s = session.decode_s / (len(session.generated) - 1)
            self.planning.learn(made, Measured(session.prefill_s, per_token_s, len(session.generated)))

    # --- small things --------------------------------------------------------------------------------
    def say(self, item: dict[str, Any]) -> None:
        """Ephemeral news for the live feed."""
        for listener in list(self.telemetry):
            listener(item)

    def _new_engine(self, purpose: str) -> EngineHost:
        return EngineHost(purpose, tasks=self.tasks, notice=self._engine_notice)

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

    def _blob_refused(self, peer: str, error: P2PNodeError) -> None:
        fact = facts.BlobRefused(content="", peer=peer[:128], reason=f"{error.code}: {error.message}"[:500])
        self.tasks.spawn("blob refused", self.ledger.do(c.RecordFact(fact=fact)))

    def _report(self, what: str, error: BaseException) -> None:
        if isinstance(error, P2PNodeError):
            _log.info("work ended", what=what, why=describe(error))
        else:
            _log.error("work failed", what=what, exc_info=error)


def demo_model_path() -> Path | None:
    """The embedded model: beside the package in a checkout, inside it when installed."""
    here = Path(__file__).resolve()
    for folder in (here.parents[2] / "models", here.parents[1] / "data"):
        if (path := folder / "p2pnode-demo.gguf").is_file():
            return path
    return None


__all__ = ["Node", "demo_model_path", "key_of", "now_ms"]
