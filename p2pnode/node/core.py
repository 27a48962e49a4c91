"""The node itself: all its rooms by group, and its life. How each room is made stands in `node.assembly`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from weakref import WeakSet

from p2pnode.compute.care import Policy
from p2pnode.config import JoinOptions
from p2pnode.errors import P2PNodeError
from p2pnode.facade import GenerateEvent, GenerateRequest
from p2pnode.identity import Identity
from p2pnode.logs import structlog
from p2pnode.machine import now_ms
from p2pnode.models.serve import BlobServer
from p2pnode.models.store import ModelStore
from p2pnode.node.adapters import Adapters
from p2pnode.node.address_book import AddressBook
from p2pnode.node.answering import Answering
from p2pnode.node.approval import Approvals
from p2pnode.node.assembly import GROUPS
from p2pnode.node.auto_mode import AutoMode
from p2pnode.node.backends import Backends
from p2pnode.node.bringing import Bringing
from p2pnode.node.capability import Capability, cores
from p2pnode.node.carrying_out import CarryingOut
from p2pnode.node.catalog import BLOB, Catalog
from p2pnode.node.choosing import Choosing
from p2pnode.node.duplicates import Duplicates
from p2pnode.node.embedding import Embedding
from p2pnode.node.engine_settings import EngineSettings
from p2pnode.node.engines import EngineHost, EnginePool
from p2pnode.node.failover import Failover
from p2pnode.node.federation import Federation
from p2pnode.node.forwarding import Forwarding
from p2pnode.node.grants import Grants
from p2pnode.node.heartbeat import Heartbeat
from p2pnode.node.histories import Histories
from p2pnode.node.hops import Hops
from p2pnode.node.hosting import Hosting
from p2pnode.node.joining import Joins
from p2pnode.node.kv_transfers import KvTransfers
from p2pnode.node.layer_rates import LayerRates
from p2pnode.node.learning import Learning
from p2pnode.node.ledger import Ledger
from p2pnode.node.lending import Lending
from p2pnode.node.life import Life, Tell
from p2pnode.node.link_times import LinkTimes
from p2pnode.node.links import Links
from p2pnode.node.loading import Loads
from p2pnode.node.log_sharing import LogSharing
from p2pnode.node.mcp import Tools
from p2pnode.node.mesh import Mesh
from p2pnode.node.omni import OmniStages
from p2pnode.node.other_meshes import OtherMeshes
from p2pnode.node.planning import Planning
from p2pnode.node.presence import Presence
from p2pnode.node.processes import Processes
from p2pnode.node.pulling import Pulling
from p2pnode.node.reach import Reach
from p2pnode.node.readiness import Readiness
from p2pnode.node.receipts import Receipts
from p2pnode.node.recording import Recording
from p2pnode.node.reduce_streams import ReduceStreams
from p2pnode.node.requests import Requests
from p2pnode.node.routing import Routing
from p2pnode.node.rpc_tunnel import RpcTunnel
from p2pnode.node.stage_streams import StageStreams
from p2pnode.node.tasks import Tasks, describe
from p2pnode.node.tidings import Tidings
from p2pnode.node.witnessing import Witnessing
from p2pnode.projections.settings import value_of
from p2pnode.tracing import OFF, Tracing
from p2pnode.transport.port import Transport

_log = structlog.get_logger("p2pnode.node")


class Node:
    """Everything a running device is; faces see it through `node.faces.Faces`."""

    # This device, the others, who of them is in the mesh, and what models all of them have.
    capability: Capability
    """What this device can: memory, threads, rates."""
    reach: Reach
    """Under which addresses others reach it."""
    links: Links
    """A link to each other member: dialled, called, measured."""
    mesh: Mesh
    """Who is a member."""
    address_book: AddressBook
    """Where members were last reached."""
    joins: Joins
    """How far devices came that wanted to join."""
    approvals: Approvals
    """Devices that ask to be let in without a ticket."""
    duplicates: Duplicates
    """Other devices that run with this identity."""
    catalog: Catalog
    """Models here and elsewhere, and how their bytes come here."""

    # Stages that this device computes for others, and the ways on which rows come to them.
    engine_options: EngineSettings
    """How engines are started: this device's options and each model's."""
    adapters: Adapters
    """LoRA adapters and control vectors."""
    hosting: Hosting
    """Stages held for heads."""
    grants: Grants
    """Which heads are computed for, and on how much credit."""
    reduce_streams: ReduceStreams
    """Partial sums between ranks, where lanes cannot go."""
    streams: StageStreams
    """Rings of rows through stages."""
    omni: OmniStages
    """Stages asked in OmniNode's way, without a ring."""
    tunnel: RpcTunnel
    """llama.cpp's RPC inside the mesh."""
    bringing: Bringing
    """Models brought to an engine of this device."""
    kv_transfers: KvTransfers
    """Keys and values of a session, from the devices that computed its prompt."""

    # Which devices compute what: measured, chosen, carried out, and moved when devices go.
    routing: Routing
    """Plans that stand."""
    link_times: LinkTimes
    """How fast links are, measured while nothing runs."""
    layer_rates: LayerRates
    """How fast this device computes layers."""
    planning: Planning
    """Plans made of what was measured."""
    loads: Loads
    """Models being loaded, for whoever watches."""
    transfers: Loads
    """Models being copied, likewise."""
    carrying_out: CarryingOut
    """Plans recorded, their devices prepared and probed."""
    learning: Learning
    """What a plan predicted held against what came."""
    choosing: Choosing
    """Which plan a request runs on."""
    failover: Failover
    """Where it goes on when devices go."""

    # Requests, wherever they are computed, and what they cost.
    receipts: Receipts
    """What was computed for whom, signed by both."""
    requests: Requests
    """Answers that are computed by plans of this node."""
    backends: Backends
    """Other servers on this machine or network."""
    others: OtherMeshes
    """Meshes whose guest this node is."""
    federation: Federation
    """Whole answers for members and guests."""
    forwarding: Forwarding
    """Whole answers by others."""
    answering: Answering
    """Which of these ways a request takes."""
    embedding: Embedding
    """Texts made into vectors."""

    # What others hear of this node, and its record before them and theirs before it.
    heartbeat: Heartbeat
    """Signs of life of connected devices."""
    presence: Presence
    """Status told and heard, discovery."""
    log_sharing: LogSharing
    """Records read by others, and theirs read here."""
    histories: Histories
    """Records of others that contradict each other."""
    witnessing: Witnessing
    """Checkpoints countersigned."""

    # What goes on without being asked, and tools.
    auto_mode: AutoMode
    """Better plans carried out by themselves, where the owner wants that."""
    lending: Lending
    """The hours in which this device computes for others."""
    pulling: Pulling
    """Models copied whole from others."""
    readiness: Readiness
    """Plans that shall stand are carried out again."""
    hops: Hops
    """What each hop of a running plan takes."""
    tools: Tools
    """Programs that a model may call (MCP)."""

    def __init__(
        self,
        *,
        options: JoinOptions,
        identity: Identity,
        ledger: Ledger,
        transport: Transport,
        store: ModelStore,
        clock_ms: Callable[[], int] = now_ms,
        tracing: Tracing = OFF,
    ) -> None:
        self.options = options
        self.identity = identity
        self.ledger = ledger
        self.transport = transport
        self.store = store
        self.clock_ms = clock_ms
        self.tracing = tracing
        self.name = options.name
        self.me = identity.peer_id
        self.started_ms = now_ms()
        self.threads = options.threads or cores()
        self.state = "active"
        self.is_started = False
        self.stopping = asyncio.Event()
        self.engine_hosts: WeakSet[EngineHost] = WeakSet()
        self.engines = EnginePool(self.new_engine)
        self.tasks = Tasks(self.report)
        self.processes = Processes()
        self.recording = Recording(ledger, self.tasks, self.say)
        self.life = Life(self)
        self.tidings = Tidings(self)
        self.telemetry: list[Callable[[dict[str, Any]], None]] = []
        for assemble in GROUPS:
            assemble(self)
        transport.handle(BLOB, BlobServer(store).handle)

    # --- life ----------------------------------------------------------------------------------------
    async def start(self, tell: Tell) -> None:
        await self.life.start(tell)

    async def stop(self, reason: str) -> None:
        await self.life.stop(reason)

    def enter(self, state: str) -> None:
        """Active, paused or draining from now on; whoever plans with this device hears it at once."""
        if self.state != "leaving":
            self.state = state
            self.links.status_changed()

    def is_busy(self) -> bool:
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
