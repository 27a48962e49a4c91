"""What faces see of the node: `NodeFacade` over the projections, the live links and the running work."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from p2pnode import __version__, limits
from p2pnode.compute import other_meshes
from p2pnode.config import describe
from p2pnode.errors import Busy, ModelUnknown, NotFound, RequestError
from p2pnode.events.codec import Record
from p2pnode.events.witness_view import witness_view
from p2pnode.facade import GenerateEvent, GenerateRequest, JsonObject, Ranking
from p2pnode.multiformats import DecodeError
from p2pnode.node import wire_counts
from p2pnode.node.adapter_commands import AdapterCommands
from p2pnode.node.core import Node
from p2pnode.node.face_views import links_view, models_view, peers_view, proposal_view
from p2pnode.node.hops import chrome_trace
from p2pnode.node.lane_bytes import LaneBytes
from p2pnode.node.memory_use import memory_use
from p2pnode.node.mode_commands import ModeCommands
from p2pnode.node.owner_commands import OwnerCommands
from p2pnode.node.planning import PlanRequest, engine_over
from p2pnode.node.queries import LogQueries
from p2pnode.node.roles import GUEST
from p2pnode.units import PeerId

Command = Callable[[Mapping[str, Any]], Awaitable[JsonObject]]


class Faces:
    """Implements `NodeFacade` for one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._queries = LogQueries(node.ledger, self._witnesses)
        self._lane_bytes = LaneBytes()
        self.modes = ModeCommands(node)
        self._commands: dict[str, Command] = {
            **self.modes.table(),
            **AdapterCommands(node).table(),
            **OwnerCommands(node, self.peers).table(),
        }

    @property
    def peer_id(self) -> PeerId:
        return self._node.me

    @property
    def name(self) -> str:
        return self._node.name

    # --- views ---------------------------------------------------------------------------------------
    def health(self) -> JsonObject:
        node = self._node
        return {
            "status": "ok",
            "ready": node.is_started
            and node.state == "active"
            and not node.readiness.missing()
            and node.ledger.log.failure is None,
            "peer_id": node.me,
            "name": node.name,
            "version": __version__,
        }

    def status(self) -> JsonObject:
        node = self._node
        return {
            **self.health(),
            "mesh": {
                "name": node.mesh.mesh_name,
                "role": node.mesh.my_role,
                "members": sum(
                    peer["state"] != "pending" and peer["role"] != GUEST
                    for peer in peers_view(self._node)["peers"]
                ),
            },
            "state": node.state,
            "schedule": node.lending.view(),
            "missing": node.readiness.missing(),
            "started_ms": node.started_ms,
            "addresses": [f"{a}/p2p/{node.me}" for a in node.addresses()],
            "capability": node.capability.view(),
            "memory": memory_use(node.engine_hosts),
            "hosted_stages": [
                {
                    "plan_id": hosted.order.plan_id,
                    "model": hosted.order.model_name,
                    "layers": list(hosted.layers),
                    "head": hosted.order.head,
                    "bytes_fetched": hosted.bytes_fetched,
                    "bytes_wanted": hosted.bytes_wanted,
                    "engine_pid": hosted.engine.pid,
                    "up": hosted.engine.is_up,
                    "sessions": hosted.sessions,
                }
                for hosted in node.hosting.stages.values()
            ],
            "engines": [
                {"purpose": a.engine.purpose, "pid": a.engine.pid, "plan_id": a.plan_id, "up": a.engine.is_up}
                for a in node.routing.active.values()
            ],
            "log": {
                "size": node.ledger.log.size,
                "blocks": node.ledger.log.block_count,
                "rebuilding": node.ledger.rebuilding(),
            },
            "running": len(node.requests.running),
            "recovering": sum(r.recovery is not None for r in node.requests.running.values()),
            "backends": node.backends.view(),
            "meshes": node.others.view(),
        }

    def peers(self) -> JsonObject:
        return {**peers_view(self._node), "links": links_view(self._node)}

    def models(self) -> JsonObject:
        return models_view(self._node)

    def sessions(self) -> JsonObject:
        view = self._node.ledger.view("sessions")
        live = {request_id: running.view() for request_id, running in self._node.requests.running.items()}
        for entry in view["sessions"]:
            if entry["request_id"] in live:
                entry.update(live[entry["request_id"]])
        return view

    def plans(self) -> JsonObject:
        view = self._node.ledger.view("plans")
        for entry in view["plans"]:
            active = self._node.routing.active.get(entry["plan_id"])
            if active is not None:
                entry["live"] = active.lost is None
                entry["stages"] = active.stages
                entry["probe_ms"] = round(active.probe_s * 1000, 2)
                entry["lost"] = active.lost.message if active.lost else None
        return view

    def billing(self) -> JsonObject:
        return self._node.ledger.view("billing")

    def settings(self) -> JsonObject:
        return self._node.ledger.view("settings")

    async def count(self) -> None:
        await self._lane_bytes.look(self._node.engine_hosts)

    def metrics(self) -> JsonObject:
        view = self._node.ledger.view("metrics")
        node = self._node
        counted = wire_counts.families(
            node.transport.counters(), node.streams.refused, self._lane_bytes.total()
        )
        return {**view, "metrics": [*view["metrics"], *counted, self._node.ledger.append_metric()]}

    def options(self) -> JsonObject:
        return {"settings": describe(self._node.options)}

    # --- models --------------------------------------------------------------------------------------
    def resolve_model(self, name: str | None) -> str:
        if name is not None and self._node.is_external(name):
            return name
        try:
            return self._node.catalog.resolve(name).name
        except ModelUnknown:
            offers = self._node.others.named(name)
            if not offers:
                raise
            return offers[0].name

    def loading(self, model: str) -> JsonObject | None:
        return self._node.loads.view(model)

    def transfer(self, model: str) -> JsonObject | None:
        return self._node.transfers.view(model)

    async def model_metadata(self, name: str) -> JsonObject:
        if self._node.is_external(name):
            return {"external": True, "chat_template": None, "bos_token": "", "eos_token": ""}
        try:
            return await self._node.catalog.whole_metadata(self._node.catalog.resolve(name))
        except ModelUnknown:
            offers = self._node.others.named(name)
            if not offers:
                raise
            return other_meshes.metadata(offers[0])

    def _own(self, model: str) -> str:
        """RequestError for a model that only external servers or other meshes have."""
        if self._node.is_external(model):
            raise RequestError(
                f"{model} is computed by an external server: ask that one for this", param="model"
            )
        offers = [] if self._node.catalog.is_known(model) else self._node.others.named(model)
        if offers:
            raise RequestError(
                f"{offers[0].mesh} answers whole requests for {offers[0].model.name} and nothing else",
                hint="ask a device of that mesh for this",
                param="model",
            )
        return model

    async def tokenize(self, model: str, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return await self._node.choosing.with_vocabulary(
            self._own(model),
            lambda engine, unit: engine.tokenize(
                unit, text, add_special=add_special, parse_special=parse_special
            ),
        )

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        text = await self._node.choosing.with_vocabulary(
            self._own(model), lambda engine, unit: engine.detokenize(unit, list(tokens))
        )
        return text.decode("utf-8", "replace")

    async def rerank(self, model: str, query: str, documents: Sequence[str]) -> Ranking:
        return await self._node.embedding.rank(self._node.catalog.resolve(self._own(model)), query, documents)

    async def embed(self, model: str, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        return await self._node.embedding.embed(self._node.catalog.resolve(self._own(model)), inputs)

    # --- doing ---------------------------------------------------------------------------------------
    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        return self._node.generate(request)

    async def plan(self, request: Mapping[str, Any]) -> JsonObject:
        node = self._node
        try:
            asked = msgspec.convert(dict(request), PlanRequest)
        except msgspec.ValidationError as error:
            raise RequestError(f"this plan request cannot be read: {error}") from None
        model = await node.catalog.resolve_or_add(asked.model)
        planned = await node.planning.make(asked, model)
        answer = proposal_view(planned, model.name, node.links.name_of, anyway=asked.anyway)
        answer["measured"] = node.learning.of(planned.plan.plan_id)
        if asked.apply:
            over = functools.partial(engine_over, request=asked)
            asked = msgspec.structs.replace(asked, engine=None)  # from now on it is the model's own
            async with node.engine_options.changed(model.content_id, over, node.choosing.renew) as engine:
                active = await node.choosing.apply(model, planned.plan.with_engine(engine.text), asked)
            answer.update(applied=True, plan_id=active.plan_id, probe_ms=round(active.probe_s * 1000, 2))
            answer.update(engine=engine.text)
            by_peer = {(s["peer"], s["layers"][0]): s for s in active.stages}
            for stage in answer["stages"]:
                stage.update(by_peer.get((stage["peer"], stage["layers"][0]), {}))
        return answer

    async def invite(self, *, uses: int, expires_s: int, role: str, label: str) -> JsonObject:
        return await self._node.mesh.invite(uses=uses, expires_s=expires_s, role=role, label=label)

    async def command(self, name: str, arguments: Mapping[str, Any]) -> JsonObject:
        command = self._commands.get(name)
        if command is None:
            raise RequestError(
                f"there is no command {name!r}", hint=f"known: {', '.join(sorted(self._commands))}"
            )
        try:
            return await command(arguments)
        except KeyError as error:
            raise RequestError(f"the argument {error} is missing") from None
        except DecodeError as error:
            raise RequestError(f"an argument is not what it should be: {error}") from None

    def hops(self) -> JsonObject:
        hops = self._node.hops
        return {
            "totals": {stage: list(counts) for stage, counts in hops.totals.items()},
            "requests": list(hops.traces),
        }

    def trace(self, request_id: str) -> JsonObject:
        trace = self._node.hops.traces.get(request_id)
        if trace is None:
            kept = limits.TRACES_KEPT_MAX
            raise NotFound(
                f"no trace of {request_id[:64]!r} is kept", hint=f"the newest {kept} are, while the node runs"
            )
        return chrome_trace(trace)

    async def tools(self) -> JsonObject:
        return await self._node.tools.view()

    async def call_tool(
        self, server: str, tool: str, arguments: Mapping[str, Any], *, request_id: str
    ) -> JsonObject:
        return await self._node.tools.call(server, tool, arguments, request_id=request_id)

    # --- the record ----------------------------------------------------------------------------------
    def log_query(self, name: str, arguments: Mapping[str, Any]) -> Any:
        return self._queries.ask(name, arguments)

    def _witnesses(self) -> JsonObject:
        node = self._node
        return witness_view(
            node.ledger.log.reader,
            node.witnessing.known_bindings().values(),
            list(node.histories.doubts.values()),
            node.witnessing.policy,
        )

    async def live(self, after_index: int | None) -> AsyncIterator[JsonObject]:
        """Events from the record as they are committed, telemetry between; a reader too slow is let go."""
        node = self._node
        queue: asyncio.Queue[JsonObject] = asyncio.Queue(limits.LIVE_ITEMS_WAITING_MAX)
        overflow = asyncio.Event()

        def put(item: JsonObject) -> None:
            if queue.full():
                overflow.set()
            else:
                queue.put_nowait(item)

        def committed(record: Record) -> None:
            put(self._queries.record_view(record))

        stop = node.ledger.log.subscribe(committed)
        node.telemetry.append(put)
        try:
            if after_index is not None:
                first = max(0, after_index + 1)
                for record in node.ledger.log.read(first, node.ledger.log.size):
                    yield self._queries.record_view(record)
            while not node.stopping.is_set():
                if overflow.is_set():
                    raise Busy("this reader was too slow for the live feed")
                try:
                    async with asyncio.timeout(limits.STATUS_INTERVAL_S):
                        yield await queue.get()
                except TimeoutError:
                    running = [r.view() for r in node.requests.running.values()]
                    yield {"kind": "pulse", "data": {"peers": peers_view(node)["peers"], "running": running}}
        finally:
            stop()
            node.telemetry.remove(put)
