"""Stages this device computes for a head, and the streams of frames through them.

A head asks each device to prepare its stage (fetch, cut, load). Then it attaches to the first one, which
attaches to the next, and so on until the last is attached to the head again: when the head hears "yes",
the whole ring stands. Trouble travels back along the same streams, against the frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from p2pnode import limits
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.row_tally import RowTallies
from p2pnode.compute.stage import StageServer
from p2pnode.errors import NotFound, P2PNodeError, RemoteProtocolError, RequestError, StageLost
from p2pnode.frame import Frame, FrameReader, Kind, encode
from p2pnode.node.catalog import Catalog
from p2pnode.node.engines import EngineHost
from p2pnode.node.links import Links, ProgressCallback
from p2pnode.node.loopback import LoopbackStream
from p2pnode.node.tasks import Tasks
from p2pnode.node.tensor import GroupEngine, Lanes, listen_to_follower
from p2pnode.node.units import UnitOptions, part_of_stage, unit_spec, wanted_tensors
from p2pnode.transport import messages
from p2pnode.transport.port import Stream, Transport
from p2pnode.units import ContentId, PeerId

STAGE = "/p2pnode/stage/1"
UNIT = "stage"
RETURN = -1
"""Stage number of the head's end of a ring."""


class StageOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a head asks of one device; the wire form of `stage.prepare`'s arguments."""

    plan_id: str
    stage: int
    model: str
    model_name: str
    layer_first: int
    layer_end: int
    is_last: bool
    context_tokens: int
    sessions: int
    head: str
    next_peer: str
    next_stage: int
    next_addresses: list[str] = []
    threads: int = 0
    rank: int = 0
    shares: list[int] = []
    """Weights of all ranks of this stage's tensor group; empty when one device has it alone."""
    followers: list[str] = []
    """Peers of ranks 1.. for the leader."""


def slot(stage: int, rank: int) -> int:
    """Number under which a device holds a rank of a stage: leaders have the stage's own."""
    return stage + rank * limits.PLAN_STAGES_MAX


@dataclass(slots=True)
class HostedStage:
    """A stage as it stands on this device."""

    order: StageOrder
    engine: EngineHost
    bytes_fetched: int
    bytes_wanted: int
    servers: int = 0
    ports: list[int] = field(default_factory=list)
    """Lanes to the other ranks."""

    @property
    def layers(self) -> tuple[int, int]:
        return (self.order.layer_first, self.order.layer_end)


class OutboundFrames:
    """Frames to one stream, whole frames in order whoever sends."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._lock = asyncio.Lock()
        self.bytes_sent = 0

    async def send(self, frame: Frame) -> None:
        views = encode(frame)
        async with self._lock:
            await self.stream.write(*views)
        self.bytes_sent += sum(view.nbytes for view in views)


ReturnHandler = Callable[[Stream], Awaitable[None]]


class Hosting:
    def __init__(
        self,
        *,
        catalog: Catalog,
        links: Links,
        transport: Transport,
        tasks: Tasks,
        threads: int,
        new_engine: Callable[[str], EngineHost],
        stored: Callable[[HostedStage], Awaitable[None]],
        report: Callable[[str, BaseException], None],
    ) -> None:
        self._catalog = catalog
        self._links = links
        self._me = transport.peer_id
        self._tasks = tasks
        self._threads = threads
        self._new_engine = new_engine
        self._stored = stored
        self._report = report
        self.lanes = Lanes(links)
        self._locks: dict[tuple[str, int], asyncio.Lock] = {}
        self.stages: dict[tuple[str, int], HostedStage] = {}
        self.tallies = RowTallies()
        """What was computed here for each session, for receipts."""
        self.idle = asyncio.Event()
        """Set while no ring runs through this device."""
        self.idle.set()
        self.returns: dict[str, ReturnHandler] = {}
        """By plan: where a head takes the frames of its last stage."""
        links.serve("stage.prepare", self._prepare)
        links.serve("stage.release", self._release)
        links.serve("stage.link", self._link)
        transport.handle(STAGE, self._serve_stream)

    # --- preparing -----------------------------------------------------------------------------------
    async def _prepare(
        self, peer: PeerId, arguments: Mapping[str, Any], progress: ProgressCallback
    ) -> dict[str, Any]:
        try:
            order = msgspec.convert(arguments, StageOrder)
        except msgspec.ValidationError as error:
            raise RemoteProtocolError(f"a stage order that cannot be read: {error}") from None
        if order.head != peer:
            raise RequestError("only the head itself can ask for its stages")
        hosted = await self.prepare(order, progress)
        info = hosted.engine.infos[UNIT]
        return {
            "layers": list(hosted.layers),
            "bytes_fetched": hosted.bytes_fetched,
            "bytes_wanted": hosted.bytes_wanted,
            "model_bytes": info.model_bytes,
            "columns": info.columns,
            "session_tokens": info.session_tokens,
            "ports": hosted.ports,
        }

    async def prepare(self, order: StageOrder, progress: ProgressCallback) -> HostedStage:
        """Fetch, cut and load one stage; a second call with the same order answers at once."""
        key = (order.plan_id, slot(order.stage, order.rank))
        async with self._locks.setdefault(key, asyncio.Lock()):
            hosted = self.stages.get(key)
            if hosted is not None and hosted.engine.is_up:
                if hosted.order == order:
                    return hosted
                await self._drop(key)
            if len(self.stages) >= limits.HOSTED_STAGES_MAX:
                raise RequestError(f"this device holds {len(self.stages)} stages already")
            self.stages[key] = hosted = await self._load(order, progress)
            await self._stored(hosted)
            return hosted

    async def _load(self, order: StageOrder, progress: ProgressCallback) -> HostedStage:
        content_id = ContentId(order.model)
        manifest = await self._catalog.manifest(content_id, name=order.model_name, extra_holders=[order.head])
        index, _ = await self._catalog.index(content_id, vocabulary=False)
        part = part_of_stage(index, order.layer_first, order.layer_end, rank=order.rank, shares=order.shares)
        tensors = wanted_tensors(index, part)
        fetched = await self._catalog.fetch(
            content_id,
            tensors,
            vocabulary=part.embedding,
            extra_holders=[order.head],
            on_progress=lambda done, total: progress({"state": "fetching", "done": done, "total": total}),
        )
        index, paths = await self._catalog.index(content_id, vocabulary=part.embedding)
        options = UnitOptions(order.context_tokens, order.sessions, order.threads or self._threads)
        spec = unit_spec(
            index, paths, part, options, model_id=self._catalog.model_id(content_id), is_last=order.is_last
        )
        engine = self._new_engine(f"{order.model_name} layers {order.layer_first}–{order.layer_end - 1}")
        await engine.ensure(
            UNIT, spec, lambda f: progress({"state": "loading", "done": int(f * 1000), "total": 1000})
        )
        wanted = sum(manifest.tensors[name].size for name in tensors)
        ports = await self.lanes.open(engine.client, len(order.shares)) if len(order.shares) > 1 else []
        return HostedStage(order, engine, fetched.bytes_on_wire, wanted, ports=ports)

    async def _link(self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback) -> dict[str, Any]:
        """Connect this rank's lanes; both ends are asked at about the same time."""
        plan_id, number = str(arguments.get("plan_id")), arguments.get("slot")
        hosted = self.stages.get((plan_id, number if isinstance(number, int) else RETURN))
        if hosted is None or hosted.order.head != peer:
            raise NotFound("this device holds no such rank")
        ends = arguments.get("ends")
        if not isinstance(ends, list) or len(ends) >= limits.RANKS_MAX:
            raise RemoteProtocolError("the ends of lanes are a short list")
        half = arguments.get("half") is True
        await self.lanes.link(hosted.engine.client, hosted.engine.unit(UNIT), ends, half=half)
        return {}

    async def _release(
        self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback
    ) -> dict[str, Any]:
        plan_id = str(arguments.get("plan_id", ""))
        keys = [k for k, hosted in self.stages.items() if k[0] == plan_id and hosted.order.head == peer]
        for key in keys:
            await self._drop(key)
        return {"released": len(keys)}

    async def release_plan(self, plan_id: str) -> None:
        for key in [key for key in self.stages if key[0] == plan_id]:
            await self._drop(key)

    async def _drop(self, key: tuple[str, int]) -> None:
        hosted = self.stages.pop(key, None)
        self._locks.pop(key, None)
        if hosted is not None:
            await hosted.engine.close()

    async def close(self) -> None:
        for key in list(self.stages):
            await self._drop(key)

    # --- frames --------------------------------------------------------------------------------------
    async def _serve_stream(self, stream: Stream) -> None:
        async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
            call = await messages.receive_message(stream)
        try:
            if not isinstance(call, messages.Call) or call.method != "attach":
                raise RemoteProtocolError("a stage stream begins with attach")
            plan_id, stage = str(call.arguments.get("plan_id")), call.arguments.get("stage")
            if stage == RETURN:
                handler = self.returns.get(plan_id)
                if handler is None:
                    raise NotFound(f"no plan {plan_id[:40]} runs here")
                await handler(stream)
                return
            hosted = self.stages.get((plan_id, stage if isinstance(stage, int) else RETURN))
            if hosted is None:
                raise NotFound(f"this device has no stage {stage} of plan {plan_id[:40]}")
            if hosted.order.rank > 0:
                await self._follow(hosted, stream)
                return
            onward = await self.attach(
                PeerId(hosted.order.next_peer), plan_id, hosted.order.next_stage, hosted.order.next_addresses
            )
        except P2PNodeError as error:
            await messages.send_message(stream, messages.refusal(error))
            await stream.close_write()
            return
        await self._run(hosted, stream, onward)

    async def attach(self, peer: PeerId, plan_id: str, stage: int, addresses: list[str]) -> Stream:
        """Open the stream to the next stage; returns once everything behind it is attached too."""
        name = self._links.name_of(peer)
        try:
            async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
                stream = await self._open(peer, addresses)
                call = messages.Call(method="attach", arguments={"plan_id": plan_id, "stage": stage})
                await messages.send_message(stream, call)
                answer = await messages.receive_message(stream)
        except TimeoutError:
            raise StageLost(f"{name} did not attach in time", peer=peer) from None
        if isinstance(answer, messages.Refused):
            stream.reset()
            raise messages.refusal_error(answer)
        return stream

    async def _open(self, peer: PeerId, addresses: list[str]) -> Stream:
        if peer == self._me:
            near, far = LoopbackStream.pair(peer, STAGE)
            self._tasks.spawn(f"loopback {STAGE}", self._serve_stream(far))
            return near
        link = self._links.know(peer, addresses=addresses)
        while not link.is_up or link.connection is None:
            await self._links.wait_for_change()
        return await link.connection.open_stream(STAGE)

    async def _run(self, hosted: HostedStage, inbound: Stream, onward: Stream) -> None:
        """Frames forward, trouble backward, until either side ends."""
        await messages.send_message(inbound, messages.Answer(data={}))
        out = OutboundFrames(onward)
        async with self.group(
            hosted.order.plan_id, hosted.order.stage, hosted.order.followers, hosted.engine
        ) as engine:
            server = StageServer(
                engine,
                hosted.engine.unit(UNIT),
                out.send,
                self._observer(hosted),
            )
            await self._serve_frames(hosted, server, inbound, onward)

    async def _serve_frames(
        self, hosted: HostedStage, server: StageServer, inbound: Stream, onward: Stream
    ) -> None:
        hosted.servers += 1
        self.idle.clear()
        watcher = asyncio.ensure_future(self._pass_trouble_back(hosted, inbound, onward))
        try:
            await server.serve(FrameReader(inbound.read_exactly).read)
        finally:
            hosted.servers -= 1
            if not any(stage.servers for stage in self.stages.values()):
                self.idle.set()
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
            onward.reset()

    @asynccontextmanager
    async def group(
        self, plan_id: str, stage: int, followers: Sequence[str], engine: EngineHost
    ) -> AsyncIterator[EngineClient | GroupEngine]:
        """The engine itself, or the group it leads, attached to its followers for as long as this lasts."""
        if not followers:
            yield engine.client
            return
        streams: dict[str, Stream] = {}
        listeners: list[asyncio.Task[None]] = []
        try:
            for rank, peer in enumerate(followers, start=1):
                streams[peer] = await self.attach(PeerId(peer), plan_id, slot(stage, rank), [])
            made = GroupEngine(engine.client, {peer: OutboundFrames(s).send for peer, s in streams.items()})
            listeners += [
                self._tasks.spawn(
                    f"follower {peer[-6:]}",
                    listen_to_follower(s, self._links.name_of(PeerId(peer)), made.lose),
                )
                for peer, s in streams.items()
            ]
            yield made
        finally:
            for listener in listeners:
                listener.cancel()
            for stream in streams.values():
                stream.reset()

    async def _follow(self, hosted: HostedStage, inbound: Stream) -> None:
        """Compute this rank's share of whatever the leader takes; only trouble is worth a word."""
        await messages.send_message(inbound, messages.Answer(data={}))

        async def watch(frame: Frame) -> None:
            if frame.kind is Kind.ERROR:
                words = messages.Refused(code="stage_lost", message=str(frame.meta.get("message", ""))[:400])
                await messages.send_message(inbound, words)
                inbound.reset()

        client = hosted.engine.client
        server = StageServer(client, hosted.engine.unit(UNIT), watch, self._observer(hosted))
        hosted.servers += 1
        self.idle.clear()
        try:
            await server.serve(FrameReader(inbound.read_exactly).read)
        finally:
            hosted.servers -= 1
            if client.alive:
                client.give_up_exchange()
            if not any(stage.servers for stage in self.stages.values()):
                self.idle.set()

    def _observer(self, hosted: HostedStage) -> Callable[[Frame, Frame], None]:
        return lambda received, sent: self.tallies.add(hosted.order.plan_id, hosted.layers, received, sent)

    async def _pass_trouble_back(self, hosted: HostedStage, inbound: Stream, onward: Stream) -> None:
        try:
            notice = await messages.receive_message(onward)
        except P2PNodeError as error:
            name = self._links.name_of(PeerId(hosted.order.next_peer))
            notice = messages.Refused(code="stage_lost", message=f"the way to {name} broke: {error.message}")
        await messages.send_message(inbound, notice)
        inbound.reset()
