"""The node itself: its rooms put together, started in order and ended in the other.

Long for being the one list of all rooms and of what each is given; what they do stands in files of their own.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any
from weakref import WeakSet

from p2pnode.compute.care import Policy
from p2pnode.compute.elsewhere import SETTING as ELSEWHERE
from p2pnode.compute.elsewhere import elsewhere_of
from p2pnode.compute.other_meshes import SETTING as BEYOND
from p2pnode.compute.other_meshes import beyond_of
from p2pnode.config import JoinOptions, parse_host_port
from p2pnode.errors import P2PNodeError
from p2pnode.events.folder import read_policy
from p2pnode.facade import GenerateEvent, GenerateRequest
from p2pnode.identity import Identity
from p2pnode.logs import structlog
from p2pnode.machine import host_name, now_ms
from p2pnode.models.serve import BlobServer
from p2pnode.models.store import ModelStore
from p2pnode.node.adapters import Adapters
from p2pnode.node.address_book import AddressBook
from p2pnode.node.admission import Admission
from p2pnode.node.answering import Answering
from p2pnode.node.approval import Approvals
from p2pnode.node.auto_mode import AutoMode
from p2pnode.node.backends import DISCOVER, Backends
from p2pnode.node.books import Books
from p2pnode.node.bringing import PREFIXES, Bringing, prefix_bytes_of
from p2pnode.node.capability import Capability, cores
from p2pnode.node.carrying_out import CarryingOut
from p2pnode.node.catalog import BLOB, Catalog
from p2pnode.node.choosing import Choosing
from p2pnode.node.duplicates import Duplicates
from p2pnode.node.embedding import Embedding
from p2pnode.node.engine_settings import EngineSettings
from p2pnode.node.engines import EngineHost
from p2pnode.node.failover import Failover
from p2pnode.node.federation import Federation
from p2pnode.node.forwarding import Forwarding, repeatable
from p2pnode.node.grants import Grants
from p2pnode.node.histories import Histories
from p2pnode.node.hops import Hops
from p2pnode.node.hosting import Hosting
from p2pnode.node.instances import Instance
from p2pnode.node.joining import Joins
from p2pnode.node.kv_transfers import KvTransfers
from p2pnode.node.layer_rates import RATES_DOUBT, LayerRates
from p2pnode.node.learning import Learning
from p2pnode.node.ledger import Ledger
from p2pnode.node.lending import Lending
from p2pnode.node.life import Life, Tell
from p2pnode.node.link_times import LinkTimes
from p2pnode.node.links import Links
from p2pnode.node.loading import Loads
from p2pnode.node.log_sharing import LogSharing
from p2pnode.node.mcp import Tools, read_file
from p2pnode.node.mesh import Mesh
from p2pnode.node.offering import Offering
from p2pnode.node.omni import OmniStages
from p2pnode.node.other_meshes import OtherMeshes
from p2pnode.node.planning import Planning
from p2pnode.node.pooling import Pooling
from p2pnode.node.presence import Presence
from p2pnode.node.processes import Processes
from p2pnode.node.pulling import Pulling
from p2pnode.node.reach import Reach
from p2pnode.node.readiness import Readiness
from p2pnode.node.receipts import Receipts
from p2pnode.node.recording import Recording
from p2pnode.node.reduce_streams import ReduceStreams
from p2pnode.node.requests import Requests
from p2pnode.node.rpc_tunnel import RpcTunnel
from p2pnode.node.stage_loading import StageLoader
from p2pnode.node.stage_streams import StageStreams
from p2pnode.node.tasks import Tasks, describe
from p2pnode.node.tensor import Lanes
from p2pnode.node.tidings import Tidings
from p2pnode.node.ways import routing_of
from p2pnode.node.witnessing import Witnessing, fetch_binding
from p2pnode.projections.settings import value_of
from p2pnode.projections.views import default_model
from p2pnode.transport.port import Transport

_log = structlog.get_logger("p2pnode.node")


def _request_id() -> str:
    return f"req-{secrets.token_hex(8)}"


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
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        self.options = options
        self.identity = identity
        self.ledger = ledger
        self.transport = transport
        self.store = store
        self.clock_ms = clock_ms
        self.name = options.name
        self.me = identity.peer_id
        self.started_ms = now_ms()
        self.threads = options.threads or cores()
        self.state = "active"
        self.is_started = False
        self.stopping = asyncio.Event()
        self.engine_hosts: WeakSet[EngineHost] = WeakSet()
        self.tasks = Tasks(self.report)
        self.processes = Processes()
        self.recording = Recording(ledger, self.tasks, self.say)
        self.life = Life(self)
        self.tidings = Tidings(self)
        self.telemetry: list[Callable[[dict[str, Any]], None]] = []
        self._know_devices()
        self._host()
        self._plan()
        self._tell()
        self._answer()
        self._vouch()
        self._look_after()
        transport.handle(BLOB, BlobServer(store).handle)

    # --- the rooms, each after those that it is built from --------------------------------------------
    def _know_devices(self) -> None:
        """This one, the others, and what models all of them have."""
        options, ledger, transport = self.options, self.ledger, self.transport
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
            on_status=self.tidings.heard,
            on_link=self.tidings.link_changed,
            is_member=lambda peer: self.mesh.is_member(peer),
            is_forwarded=bool(options.announce),
        )
        self.mesh = Mesh(
            identity=self.identity,
            ledger=ledger,
            transport=transport,
            name=self.name,
            addresses=self.addresses,
            now_ms=now_ms,
            member_added=self.tidings.member_added,
            where=self.where,
        )
        self.mesh.member_removed = self.tidings.member_removed
        self.address_book = AddressBook(options.data)
        self.joins = Joins(now_ms=now_ms)
        self.joins.changed = lambda: self.say({"kind": "joining", "data": {}})
        admission = Admission(mesh=self.mesh, ledger=ledger, transport=transport, joins=self.joins)
        self.approvals = Approvals(
            mesh=self.mesh,
            admission=admission,
            joins=self.joins,
            now_ms=now_ms,
            changed=lambda: self.say({"kind": "approvals", "data": {"waiting": len(self.approvals.waiting)}}),
        )
        self.catalog = Catalog(
            self.store,
            self.links,
            report=self.recording.blob_refused,
            default_name=lambda: default_model(ledger.state),
        )

    def _host(self) -> None:
        """What this device computes for others, and the ways on which rows come to it."""
        options, ledger, transport = self.options, self.ledger, self.transport
        self.engine_options = EngineSettings(ledger)
        self.capability.gpu_layers = lambda: self.engine_options.of_device().gpu_layers
        self.adapters = Adapters(options.data / "adapters", self.links)
        lanes = Lanes(self.links)
        self.hosting = Hosting(
            loader=StageLoader(
                catalog=self.catalog,
                lanes=lanes,
                threads=self.threads,
                new_engine=self.new_engine,
                device=self.engine_options.of_device,
                adapters=self.adapters,
            ),
            lanes=lanes,
            links=self.links,
            stored=self.tidings.stage_stored,
            check_head=lambda head: self.grants.check(head),
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
            processes=self.processes,
        )
        self.bringing = Bringing(
            self.catalog,
            self.threads,
            lambda: prefix_bytes_of(value_of(ledger.state.settings, PREFIXES)),
            engine=self.engine_options.of_model,
            device=self.engine_options.of_device,
            adapters=self.adapters,
        )
        self.kv_transfers = KvTransfers(hosting=self.hosting, links=self.links, transport=transport)

    def _plan(self) -> None:
        """Which devices compute what: measured, chosen, loaded."""
        options, ledger = self.options, self.ledger
        self.routing = routing_of(self)
        self.link_times = LinkTimes(
            self.links, is_busy=lambda: bool(self.requests.running), tell=self.tidings.link_timed
        )
        self.layer_rates = LayerRates(
            said=self.capability.engine_said,
            catalog=self.catalog,
            path=options.data / "rates.json",
            threads=self.threads,
            is_busy=self._is_busy,
            now_ms=now_ms,
            changed=self.tidings.rates_changed,
            processes=self.processes,
        )
        self.links.serve(RATES_DOUBT, self.layer_rates.asked_to_doubt)
        self.planning = Planning(
            me=self.me,
            catalog=self.catalog,
            links=self.links,
            capability=self.capability.view,
            link_times=self.link_times.times,
            name=self.name,
            engine=self.engine_options.of_model,
            policy=self.policy,
            elsewhere=lambda: elsewhere_of(value_of(ledger.state.settings, ELSEWHERE)),
        )
        self.loads = Loads(kind="loading", name=self.name, say=self.say, clock=time.monotonic)
        self.transfers = Loads(kind="transfer", name=self.name, say=self.say, clock=time.monotonic)
        self.carrying_out = CarryingOut(
            me=self.me,
            ledger=ledger,
            links=self.links,
            routing=self.routing,
            tasks=self.tasks,
            memory_max_bytes=options.memory_max_bytes,
            loads=self.loads,
            say=self.say,
        )
        self.learning = Learning(
            links=self.links, planning=self.planning, carrying_out=self.carrying_out, say=self.say
        )
        self.choosing = Choosing(
            me=self.me,
            catalog=self.catalog,
            links=self.links,
            planning=self.planning,
            routing=self.routing,
            carrying_out=self.carrying_out,
            say=self.say,
        )
        self.failover = Failover(
            me=self.me,
            links=self.links,
            planning=self.planning,
            routing=self.routing,
            choosing=self.choosing,
            carrying_out=self.carrying_out,
            tasks=self.tasks,
            loads=self.loads,
            say=self.say,
        )

    def _tell(self) -> None:
        """What other devices hear of this one."""
        ledger, transport = self.ledger, self.transport
        self.duplicates = Duplicates(
            me=self.me,
            mine=Instance(secrets.token_hex(8), f"{host_name()} (process {os.getpid()})"),
            record=lambda fact: self.recording.record_soon("duplicate identity", fact),
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
            lending=lambda: self.lending.says(),
            addresses=self.addresses,
            where=self.where,
            duplicates=self.duplicates,
            external=lambda: self.backends.told(),
            witnessed=lambda: self.histories.told(),
            heard_other=lambda peer, addresses: self.others.heard_nearby(peer, addresses),
            now_ms=now_ms,
            say=self.say,
        )

    def _answer(self) -> None:
        """Requests, wherever they are computed, and what they cost."""
        options, ledger, transport = self.options, self.ledger, self.transport
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
            choose_again=self.failover.choose_again,
            book=Books(ledger, self.receipts, self.tasks),
            new_id=_request_id,
            seeded=repeatable,
            finished=self.tidings.request_finished,
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
        self.others = OtherMeshes(
            me=self.me,
            name=self.name,
            ledger=ledger,
            transport=transport,
            data_dir=options.data,
            policy=lambda: beyond_of(value_of(ledger.state.settings, BEYOND)),
            now_ms=now_ms,
            say=self.say,
        )
        self.federation = Federation(
            transport=transport,
            links=self.links,
            generate=lambda request: self.answering.generate_here(request),
            loading=lambda model: self.answering.loading_here(model),
            others=self.others,
            offering=Offering(
                me=self.me,
                name=self.name,
                mesh=self.mesh,
                catalog=self.catalog,
                backends=self.backends,
                addresses=self.addresses,
                where=self.where,
            ),
            is_guest=self.mesh.is_guest,
        )
        self.forwarding = Forwarding(
            ledger=ledger, ask=self.federation.ask, loads=self.loads, new_id=_request_id
        )
        self.answering = Answering(
            catalog=self.catalog,
            links=self.links,
            choosing=self.choosing,
            planning=self.planning,
            requests=self.requests,
            backends=self.backends,
            forwarding=self.forwarding,
            loads=self.loads,
            others=self.others,
        )
        self.embedding = Embedding(
            self.bringing,
            self.new_engine,
            self.loads,
            Pooling(
                me=self.me,
                bringing=self.bringing,
                choosing=self.choosing,
                failover=self.failover,
                path=self.links.path,
                loads=self.loads,
                new_session=self.requests.new_session,
                new_id=_request_id,
            ),
        )

    def _vouch(self) -> None:
        """The record before others, and theirs before this node."""
        options, ledger, transport = self.options, self.ledger, self.transport
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

    def _look_after(self) -> None:
        """What goes on without being asked, and tools."""
        options = self.options
        self.auto_mode = AutoMode(self)
        self.lending = Lending(
            ledger=self.ledger,
            enter=self._enter,
            may_change=lambda: self.state != "leaving",
            is_busy=self._is_busy,
            now_ms=self.clock_ms,
        )
        self.pulling = Pulling(
            catalog=self.catalog,
            links=self.links,
            mesh=self.mesh,
            transfers=self.transfers,
            came=self.tidings.model_came,
        )
        self.readiness = Readiness(
            me=self.me,
            links=self.links,
            catalog=self.catalog,
            routing=self.routing,
            choosing=self.choosing,
            is_at_work=self.carrying_out.is_at_work,
            running=self.requests.on_plans,
            may_act=lambda: self.state == "active" and not self.auto_mode.is_on,
            say=self.say,
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
        self.tools = Tools(read_file(options.mcp) if options.mcp else {}, self.recording.tool_called)

    # --- life ----------------------------------------------------------------------------------------
    async def start(self, tell: Tell) -> None:
        await self.life.start(tell)

    async def stop(self, reason: str) -> None:
        await self.life.stop(reason)

    def _enter(self, state: str) -> None:
        """Active, paused or draining from now on; whoever plans with this device hears it at once."""
        if self.state != "leaving":
            self.state = state
            self.links.status_changed()

    def _is_busy(self) -> bool:
        """Whether something computes here: measuring would disturb it, and be disturbed."""
        return bool(self.requests.running) or not self.hosting.idle.is_set()

    # --- the mesh ------------------------------------------------------------------------------------
    def addresses(self) -> list[str]:
        return self.reach.addresses()

    def where(self) -> dict[str, list[str]]:
        """Addresses of every other member, as far as known."""
        return {peer: list(link.addresses) for peer, link in self.links.links.items() if link.addresses}

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        return self.answering.generate(request)

    def is_external(self, name: str | None) -> bool:
        return self.answering.is_external(name)

    # --- small things --------------------------------------------------------------------------------
    def policy(self) -> Policy:
        """What this device's operator thinks of others, when it plans."""
        return Policy.of(lambda key: value_of(self.ledger.state.settings, key))

    def say(self, item: dict[str, Any]) -> None:
        """Ephemeral news for the live feed."""
        for listener in list(self.telemetry):
            listener(item)

    def new_engine(self, purpose: str) -> EngineHost:
        said = self.capability.engine_said
        host = EngineHost(
            purpose,
            tasks=self.tasks,
            notice=self.recording.engine_notice,
            said=said,
            processes=self.processes,
        )
        self.engine_hosts.add(host)
        return host

    def report(self, what: str, error: BaseException) -> None:
        if isinstance(error, P2PNodeError):
            _log.info("work ended", what=what, why=describe(error))
        else:
            _log.error("work failed", what=what, exc_info=error)
