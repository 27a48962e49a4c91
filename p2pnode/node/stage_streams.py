"""Streams of frames through the stages of this device.

A head attaches to its first stage, which attaches to the next, and so on until the last is attached to the
head again: when the head hears "yes", the whole ring stands. Trouble travels back along the same streams,
against the frames.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from p2pnode import limits
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.stage import StageServer
from p2pnode.errors import (
    EngineUnavailable,
    Forbidden,
    NotFound,
    P2PNodeError,
    RemoteProtocolError,
    StageLost,
)
from p2pnode.frame import Frame, Kind
from p2pnode.node.active import first_condition
from p2pnode.node.calls import ProgressCallback
from p2pnode.node.engine_share import StageEngine
from p2pnode.node.grants import Grants, StageGate
from p2pnode.node.hosted_stage import UNIT, HostedStage
from p2pnode.node.hosting import Hosting
from p2pnode.node.links import Links
from p2pnode.node.loopback import LoopbackStream
from p2pnode.node.orders import RETURN, STAGE, OutboundFrames, slot
from p2pnode.node.tasks import Tasks
from p2pnode.node.tensor import GroupEngine, listen_to_follower
from p2pnode.node.timed_frames import TimedFrames
from p2pnode.transport import messages
from p2pnode.transport.port import Stream, Transport
from p2pnode.units import PeerId

ReturnHandler = Callable[[Stream], Awaitable[None]]


class StageStreams:
    def __init__(
        self, *, hosting: Hosting, grants: Grants, links: Links, transport: Transport, tasks: Tasks
    ) -> None:
        self._hosting = hosting
        self._grants = grants
        self._links = links
        self._me = transport.peer_id
        self._tasks = tasks
        self._relaying: set[EngineClient] = set()
        self.refused: Counter[str] = Counter()
        """Streams to stages that were refused or ended for what their peer did, by code."""
        self.returns: dict[str, ReturnHandler] = {}
        """By plan: where a head takes the frames of its last stage."""
        transport.handle(STAGE, self._serve)
        links.serve("stage.ring", self._join_ring)
        hosting.tallies.settle = self._settle

    # --- attaching -----------------------------------------------------------------------------------
    async def attach(self, peer: PeerId, plan_id: str, stage: int, addresses: list[str]) -> Stream:
        """Open the stream to the next stage; returns once everything behind it is attached too."""
        name = self._links.name_of(peer)
        stream: Stream | None = None
        try:
            async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
                stream = await self._open(peer, addresses)
                call = messages.Call(method="attach", arguments={"plan_id": plan_id, "stage": stage})
                await messages.ask(stream, call)
        except BaseException as error:
            if stream is not None:
                stream.reset()
            if isinstance(error, TimeoutError):
                raise StageLost(f"{name} did not attach in time", peer=peer) from None
            raise
        return stream

    async def _open(self, peer: PeerId, addresses: list[str]) -> Stream:
        if peer == self._me:
            near, far = LoopbackStream.pair(peer, STAGE)
            self._tasks.spawn(f"loopback {STAGE}", self._serve_self(far))
            return near
        link = self._links.know(peer, addresses=addresses)
        while not link.is_up or link.connection is None:
            await self._links.wait_for_change()
        return await link.connection.open_stream(STAGE)

    async def _serve_self(self, stream: Stream) -> None:
        """No transport resets a stream to oneself whose handler failed, so that is done here."""
        try:
            await self._serve(stream)
        finally:
            stream.reset()

    # --- lanes ---------------------------------------------------------------------------------------
    async def _join_ring(
        self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback
    ) -> dict[str, Any]:
        """Let decoded tokens pass from engine to engine; all devices of a ring are asked at once."""
        plan_id, stage = str(arguments.get("plan_id")), arguments.get("slot")
        hosted = self._hosting.stages.get((plan_id, stage if isinstance(stage, int) else RETURN))
        if hosted is None or hosted.order.head != peer:
            raise NotFound("this device holds no such stage")
        self._grants.check_uncounted(peer)
        ends = arguments.get("in"), arguments.get("out")
        if not all(isinstance(end, dict) for end in ends):
            raise RemoteProtocolError("the ends of lanes are maps")
        stages = arguments.get("stages", 1)
        if not isinstance(stages, int) or not 0 < stages <= limits.PLAN_STAGES_MAX:
            raise RemoteProtocolError("a ring has some stages")
        into, out = (self._hosting.lanes.hop(end or {}) for end in ends)
        client, unit = hosted.engine.client, hosted.engine.unit(UNIT)
        self._hear_of_lanes(hosted, client, unit)
        async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
            await client.open_relay(unit, into, out, stages=stages)
        return {}

    def _hear_of_lanes(
        self,
        hosted: HostedStage,
        client: EngineClient,
        unit: int,
        failed: Callable[[Frame], None] = lambda _: None,
    ) -> None:
        """Counts what passed by lanes; a session that may not go on is taken from the engine.

        Of a pipeline's stage that could not compute, the head hears by the lanes; of a rank that could not, `failed`.
        """
        observe, reach = self._observer(hosted), self._grants.reach_of(hosted.order.plan_id)

        def look(received: Frame, sent: Frame) -> None:
            if sent.kind is Kind.ERROR:
                failed(sent)
                return
            observe(received, sent)
            if received.position_first + received.rows > reach.get(received.session, 0) and client.alive:
                self._tasks.spawn("end session", client.free_session(unit, received.session))

        client.observe(unit, look)
        self._relaying.add(client)

    async def _settle(self) -> None:
        """Engines tell of rows in bunches, and before they answer anything else."""
        self._relaying = {client for client in self._relaying if client.alive}
        with contextlib.suppress(EngineUnavailable):
            await asyncio.gather(*(client.stats() for client in self._relaying))

    # --- serving -------------------------------------------------------------------------------------
    async def _serve(self, stream: Stream) -> None:
        try:
            async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
                call = await messages.receive_message(stream)
        except (TimeoutError, RemoteProtocolError) as error:
            self.refused["peer_timeout" if isinstance(error, TimeoutError) else error.code] += 1
            raise
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
            hosted = self._hosting.stages.get((plan_id, stage if isinstance(stage, int) else RETURN))
            if hosted is None:
                raise NotFound(f"this device has no stage {stage} of plan {plan_id[:40]}")
            if stream.peer_id != hosted.order.previous_peer:
                raise Forbidden("only the device before it in its ring attaches to a stage")
            serve = self._follow if hosted.order.rank > 0 else self._run
            await hosted.run(serve(hosted, stream))
        except P2PNodeError as error:
            self.refused[error.code] += 1
            await messages.send_message(stream, messages.refusal(error))
            await stream.close_write()

    async def _run(self, hosted: HostedStage, inbound: Stream) -> None:
        """Frames forward, trouble backward, until either side ends."""
        order = hosted.order
        onward = await self.attach(
            PeerId(order.next_peer), order.plan_id, order.next_stage, order.next_addresses
        )
        try:
            async with self.group(order.plan_id, order.stage, order.followers, hosted.engine) as engine:
                unit, send = hosted.engine.unit(UNIT), OutboundFrames(onward).send
                server = StageServer(engine, unit, send, self._observer(hosted), self._gate(hosted))
                await messages.send_message(inbound, messages.Answer(data={}))
                trouble: asyncio.Future[messages.AnyMessage] = asyncio.get_running_loop().create_future()
                watcher = asyncio.ensure_future(self._watch_onward(hosted, onward, trouble))

                def died(reason: str) -> None:
                    """Frames that went by lanes cannot be answered with an error any more."""
                    words = f"the engine for layers {hosted.layers[0]}–{hosted.layers[1] - 1} died ({reason})"
                    _settle(trouble, words)

                hosted.engine.listeners.append(died)
                try:
                    await self._serve_until(trouble, hosted, server, inbound)
                finally:
                    hosted.engine.listeners.remove(died)
                    watcher.cancel()
                    await asyncio.gather(watcher, return_exceptions=True)
        finally:
            onward.reset()

    async def _serve_until(
        self,
        trouble: asyncio.Future[messages.AnyMessage],
        hosted: HostedStage,
        server: StageServer,
        inbound: Stream,
    ) -> None:
        """Frames until their stream ends, or until there is trouble: that is the last word on the stream.

        The stream is ended after it and not reset: a reset overtakes what was sent before it, and whoever is at the
        other end would only hear that it was reset.
        """
        serving = asyncio.ensure_future(self._serve_frames(hosted, server, inbound))
        both: list[asyncio.Future[Any]] = [serving, trouble]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            raise
        if serving.done():
            await serving
            return
        with contextlib.suppress(P2PNodeError):
            await messages.send_message(inbound, trouble.result())
            await inbound.close_write()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    async def _serve_frames(self, hosted: HostedStage, server: StageServer, inbound: Stream) -> None:
        frames = TimedFrames(inbound)
        self._hosting.served(hosted, +1)
        hosted.serving.append(server)
        try:
            async with first_condition():
                await server.serve(frames.read)
        finally:
            hosted.serving.remove(server)
            self._hosting.served(hosted, -1)
        if frames.trouble is not None:
            raise frames.trouble

    async def _follow(self, hosted: HostedStage, inbound: Stream) -> None:
        """Compute this rank's share of whatever the leader takes; only trouble is worth a word."""

        trouble: asyncio.Future[messages.AnyMessage] = asyncio.get_running_loop().create_future()

        def failed(frame: Frame) -> None:
            _settle(trouble, str(frame.meta.get("message", ""))[:400])

        async def watch(frame: Frame) -> None:
            if frame.kind is Kind.ERROR:
                failed(frame)

        client = hosted.engine.client
        unit = hosted.engine.unit(UNIT)
        self._hear_of_lanes(hosted, client, unit, failed)
        server = StageServer(client, unit, watch, self._observer(hosted), self._gate(hosted))
        await messages.send_message(inbound, messages.Answer(data={}))
        try:
            await self._serve_until(trouble, hosted, server, inbound)
        finally:
            if client.alive:
                client.give_up_exchange()

    @asynccontextmanager
    async def group(
        self, plan_id: str, stage: int, followers: Sequence[str], engine: StageEngine
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

    def _observer(self, hosted: HostedStage) -> Callable[[Frame, Frame], None]:
        tallies, stage = self._hosting.tallies, hosted.tallied
        return lambda received, sent: tallies.add(stage, received, sent)

    def _gate(self, hosted: HostedStage) -> StageGate:
        return self._grants.gate(hosted.tallied)

    async def _watch_onward(
        self, hosted: HostedStage, onward: Stream, trouble: asyncio.Future[messages.AnyMessage]
    ) -> None:
        """The next device says nothing unless something is wrong; its words travel back to the head."""
        try:
            notice = await messages.receive_message(onward)
        except P2PNodeError as error:
            name = self._links.name_of(PeerId(hosted.order.next_peer))
            _settle(trouble, f"the way to {name} broke: {error.message}")
            return
        if not trouble.done():
            trouble.set_result(notice)


def _settle(trouble: asyncio.Future[messages.AnyMessage], words: str) -> None:
    """What came first is what went wrong."""
    if not trouble.done():
        trouble.set_result(messages.Refused(code="stage_lost", message=words))
