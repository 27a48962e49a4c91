"""Stages this device holds for heads: prepared on request, linked to lanes, kept for a while, given back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

from p2pnode import limits
from p2pnode.compute.engine_options import EngineOptions
from p2pnode.compute.engine_version import engine_version
from p2pnode.compute.row_tally import RowTallies, TalliedStage
from p2pnode.errors import NotFound, RemoteProtocolError, RequestError
from p2pnode.node.calls import ProgressCallback
from p2pnode.node.engine_share import StageEngine
from p2pnode.node.hosted_stage import UNIT, HostedStage
from p2pnode.node.keyed_locks import KeyedLocks
from p2pnode.node.links import Links
from p2pnode.node.orders import RETURN, HoldOrder, StageOrder, check_versions, slot
from p2pnode.node.tensor import Lanes
from p2pnode.units import PeerId


class Loader(Protocol):
    """What brings stages to this device: `node.stage_loading`."""

    async def load(
        self,
        order: StageOrder,
        progress: ProgressCallback,
        take_loaded: Callable[[StageOrder], Awaitable[StageEngine | None]],
    ) -> HostedStage: ...
    async def fetch_only(self, order: HoldOrder, head: PeerId, progress: ProgressCallback) -> int: ...
    async def open_lanes(self, order: StageOrder, engine: StageEngine) -> tuple[list[int], list[int]]: ...


class Hosting:
    def __init__(
        self,
        *,
        loader: Loader,
        lanes: Lanes,
        links: Links,
        stored: Callable[[HostedStage], Awaitable[None]],
        check_head: Callable[[PeerId], None] = lambda _: None,
    ) -> None:
        self._loader = loader
        self.lanes = lanes
        self._links = links
        self._stored = stored
        self._check_head = check_head
        self._locks: KeyedLocks[tuple[str, int]] = KeyedLocks()
        self.stages: dict[tuple[str, int], HostedStage] = {}
        self._kept: list[tuple[HostedStage, float]] = []
        """Given back since adapters change, and when: their weights wait for the order that follows."""
        self.said: Callable[[str], None] = lambda _: None
        """Told in words what this device holds from now on, for the person who let it join."""
        self._loading = 0
        self.tallies = RowTallies()
        """What was computed here for each session, for receipts."""
        self.idle = asyncio.Event()
        """Set while no ring runs through this device."""
        self.idle.set()
        links.serve("stage.prepare", self._prepare)
        links.serve("stage.hold", self._hold)
        links.serve("stage.release", self._release)
        links.serve("stage.link", self._link)

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
        self._check_head(peer)
        check_versions(order, engine_version(), "this device")  # before anything is fetched for nothing
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
            "ring_ports": hosted.ring_ports,
            "rollback": info.rollback,
            "engine": order.engine,
            "llama": str(hosted.engine.client.hello.get("llama", "")),
        }

    async def prepare(self, order: StageOrder, progress: ProgressCallback) -> HostedStage:
        """Fetch, cut and load one stage; a second call with the same order answers at once."""
        key = (order.plan_id, slot(order.stage, order.rank))
        async with self._locks.hold(key):
            hosted = self.stages.get(key)
            if hosted is not None:
                await hosted.end_ring()  # the head prepares what it is about to attach to
                if hosted.order == order and await hosted.engine.revived():
                    # Lanes serve once, and those of an engine that died are gone with it.
                    hosted.ports, hosted.ring_ports = await self._loader.open_lanes(order, hosted.engine)
                    return hosted
                await self._drop(key)
            if len(self.stages) + len(self._kept) + self._loading >= limits.HOSTED_STAGES_MAX:
                await self.drop_kept(lambda hosted: not _has_weights_of(hosted.order, order))
            if len(self.stages) + self._loading >= limits.HOSTED_STAGES_MAX:
                raise RequestError(f"this device holds {len(self.stages)} stages already")
            self._loading += 1
            try:
                self.stages[key] = hosted = await self._loader.load(order, progress, self._take_kept)
            finally:
                self._loading -= 1
            await self._stored(hosted)
            layers = f"layers {order.layer_first}–{order.layer_end - 1} of {order.model_name}"
            self.said(f"holds {layers}, {hosted.bytes_fetched / 1e6:.1f} MB fetched for it")
            return hosted

    async def _hold(
        self, peer: PeerId, arguments: Mapping[str, Any], progress: ProgressCallback
    ) -> dict[str, Any]:
        """Bring the bytes of layers to this disk; nothing is loaded."""
        try:
            order = msgspec.convert(arguments, HoldOrder)
        except msgspec.ValidationError as error:
            raise RemoteProtocolError(f"an order for a spare that cannot be read: {error}") from None
        self._check_head(peer)
        fetched_bytes = await self._loader.fetch_only(order, peer, progress)
        self._links.status_changed()
        return {"bytes_fetched": fetched_bytes}

    async def _link(self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback) -> dict[str, Any]:
        """Connect this rank's lanes; both ends are asked at about the same time."""
        plan_id, number = str(arguments.get("plan_id")), arguments.get("slot")
        hosted = self.stages.get((plan_id, number if isinstance(number, int) else RETURN))
        if hosted is None or hosted.order.head != peer:
            raise NotFound("this device holds no such rank")
        ends = arguments.get("ends")
        if not isinstance(ends, list) or len(ends) >= limits.RANKS_MAX:
            raise RemoteProtocolError("the ends of lanes are a short list")
        await self.lanes.link(hosted.engine.client, hosted.engine.unit(UNIT), ends, half=hosted.sends_halves)
        return {}

    async def _release(
        self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback
    ) -> dict[str, Any]:
        plan_id = str(arguments.get("plan_id", ""))
        keys = [k for k, hosted in self.stages.items() if k[0] == plan_id and hosted.order.head == peer]
        for key in keys:
            if arguments.get("keep") is True:
                hosted = self.stages.pop(key)
                await (
                    hosted.end_ring()
                )  # what it frees in the end must not be what the next plan computes for
                self._kept.append((hosted, asyncio.get_running_loop().time()))
            else:
                await self._drop(key)
        return {"released": len(keys)}

    async def _take_kept(self, order: StageOrder) -> StageEngine | None:
        """The engine that has the weights of this order; what waits with the same layers otherwise cut makes room."""
        for at, (hosted, _) in enumerate(self._kept):
            if hosted.engine.is_up and _has_weights_of(hosted.order, order):
                del self._kept[at]
                return hosted.engine
        await self.drop_kept(lambda hosted: _overlaps(hosted.order, order))
        return None

    async def drop_kept(self, goes: Callable[[HostedStage], bool], *, before_s: float = math.inf) -> None:
        """Memory of what waits is given back."""
        gone = [hosted for hosted, at_s in self._kept if at_s < before_s and goes(hosted)]
        self._kept = [one for one in self._kept if not any(one[0] is hosted for hosted in gone)]
        for hosted in gone:
            await hosted.engine.close()

    async def end_orphans(self, is_there: Callable[[str], bool], now_s: float) -> None:
        """Nobody else would ever release the stages of a head that does not come back."""
        await self.drop_kept(lambda _: True, before_s=now_s - limits.ADAPTED_KEPT_S)
        for key, hosted in list(self.stages.items()):
            if hosted.servers or is_there(hosted.order.head):
                hosted.alone_since_s = None
            elif hosted.alone_since_s is None:
                hosted.alone_since_s = now_s
            elif now_s - hosted.alone_since_s > limits.HOSTED_ALONE_S_MAX:
                await self._drop(key)

    def served(self, hosted: HostedStage, change: int) -> None:
        """A ring through a stage begins (+1) or ends (-1)."""
        hosted.servers += change
        if any(stage.servers for stage in (*self.stages.values(), hosted)):
            self.idle.clear()
        else:
            self.idle.set()

    def of_head(self, plan_id: str, head: str) -> list[TalliedStage]:
        """The stages of a plan that a head had prepared here."""
        return [
            hosted.tallied
            for (of_plan, _), hosted in self.stages.items()
            if of_plan == plan_id and hosted.order.head == head
        ]

    async def _drop(self, key: tuple[str, int]) -> None:
        hosted = self.stages.pop(key, None)
        if hosted is not None:
            await hosted.end_ring()
            await hosted.engine.close()

    async def close(self) -> None:
        await self.drop_kept(lambda _: True)
        for key in list(self.stages):
            await self._drop(key)


def _overlaps(held: StageOrder, wanted: StageOrder) -> bool:
    """Whether a plan with the one stage has no use for the other; a device may have several stages of a plan."""
    return (
        (held.head, held.model) == (wanted.head, wanted.model)
        and held.layer_first < wanted.layer_end
        and wanted.layer_first < held.layer_end
    )


def _has_weights_of(held: StageOrder, wanted: StageOrder) -> bool:
    """Whether two orders differ in nothing that is loaded but adapters."""
    named = ("head", "model", "layer_first", "layer_end", "is_last", "context_tokens", "sessions", "threads")
    return (
        all(
            getattr(held, name) == getattr(wanted, name)
            for name in (*named, "prefix_bytes", "rank", "shares")
        )
        and EngineOptions.parse(held.engine).without_adapters
        == EngineOptions.parse(wanted.engine).without_adapters
    )
