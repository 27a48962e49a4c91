"""All plans of this head: made once each, looked up by model, given up when broken, released with their devices."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from p2pnode import limits
from p2pnode.compute.gguf import ModelIndex
from p2pnode.compute.part import Part, real_layer_count, whole
from p2pnode.errors import P2PNodeError, StageLost
from p2pnode.node.active import Active, Say, StagePart, plan_id_alone
from p2pnode.node.bringing import Bringing, PartsOf
from p2pnode.node.catalog import KnownModel
from p2pnode.node.engines import EngineHost, EnginePool
from p2pnode.node.keyed_locks import KeyedLocks
from p2pnode.node.rings import Rings
from p2pnode.node.room import Room
from p2pnode.node.splits import Splits
from p2pnode.node.tasks import Tasks
from p2pnode.node.units import output_part, part_of_stage
from p2pnode.node.whole import Whole
from p2pnode.units import ContentId, PeerId


class Routing:
    """Active plans; one engine process per model holds this head's own units of rings."""

    def __init__(
        self,
        *,
        me: PeerId,
        bringing: Bringing,
        whole_models: Whole,
        rings: Rings,
        splits: Splits,
        engines: EnginePool,
        tasks: Tasks,
        room: Room,
        unloaded: Callable[[Active], None],
        drop_kept: Callable[[ContentId], Awaitable[None]],
    ) -> None:
        self._me = me
        self._bringing = bringing
        self._whole = whole_models
        self._rings = rings
        self._splits = splits
        self._engines = engines
        self._tasks = tasks
        self._room = room
        self._unloaded = unloaded
        self._drop_hosted = drop_kept
        """What this device keeps loaded of other models for plans of other heads to come."""
        self._locks: KeyedLocks[str] = KeyedLocks()
        self._building: KeyedLocks[ContentId] = KeyedLocks()
        """Rings of one model share the engine here, so they are built one at a time."""
        self._renewing: KeyedLocks[ContentId] = KeyedLocks()
        """Held while plans of a model end since its options change: the next ones find what those leave loaded."""
        self._renewed: Counter[ContentId] = Counter()
        """How often that was; a plan that was being built then was perhaps built with what was wanted before."""
        self._builds: Counter[ContentId] = Counter()
        """Plans of a model that are being built."""
        self._kept: dict[EngineHost, tuple[ContentId, object]] = {}
        """Loaded, and waiting for a plan that differs in adapters alone."""
        self._left: dict[str, Active] = {}
        """Given up after a loss; their other devices keep what they loaded until the plan is released."""
        self.active: dict[str, Active] = {}
        """By plan, in the order in which they came to stand."""

    def of_model(self, content_id: ContentId, mode: str | None = None) -> Active | None:
        """The newest live plan of a model, plans over several devices before local ones."""
        found = [
            a
            for a in self.active.values()
            if a.model.content_id == content_id and a.is_usable and (mode is None or a.mode == mode)
        ]
        spread = [a for a in found if a.mode != "local"]
        return next(reversed(spread or found), None)

    async def settled(self, content_id: ContentId) -> None:
        """Until no ring of this model is being built: then it is known which plan has its layers."""
        async with self._building.hold(content_id):
            return

    # --- making --------------------------------------------------------------------------------------
    async def local(self, model: KnownModel, say: Say) -> Active:
        """The whole model on this device, loaded on first use."""
        plan_id = plan_id_alone("local", model.content_id)
        return await self._once(
            plan_id,
            model,
            lambda: self._in_room(plan_id, model, _whole, self._whole.local(plan_id, model, say), "local"),
        )

    async def streamed(self, model: KnownModel, resident_bytes_max: int, say: Say) -> Active:
        plan_id = plan_id_alone("streamed", model.content_id)
        return await self._once(
            plan_id, model, lambda: self._whole.streamed(plan_id, model, resident_bytes_max, say)
        )

    async def rpc(self, plan_id: str, model: KnownModel, workers: Sequence[PeerId], say: Say) -> Active:
        return await self._once(plan_id, model, lambda: self._whole.rpc(plan_id, model, workers, say))

    async def alone(self, model: KnownModel, say: Say) -> Active:
        """All layers and the output on this device, sampled by the unit that samples for pipelines too.

        A request that lost its ring goes on here with the state of its sampler.
        """
        index = await self._bringing.slim_index(model)
        parts = [StagePart(self._me, 0, real_layer_count(index))]
        return await self.pipeline(f"alone-{model.content_id[-12:]}", model, parts, say)

    async def pipeline(self, plan_id: str, model: KnownModel, parts: Sequence[StagePart], say: Say) -> Active:
        """Prepare every device side by side, attach the ring, probe it."""

        async def build() -> Active:
            async with self._building.hold(model.content_id):
                work = self._rings.build(plan_id, model, parts, say)
                return await self._in_room(plan_id, model, lambda index: self._own_parts(index, parts), work)

        return await self._once(plan_id, model, build)

    async def split(self, plan_id: str, model: KnownModel, parts: Sequence[StagePart], say: Say) -> Active:
        """Prompts on a ring of others, what follows here."""
        return await self._once(
            plan_id,
            model,
            lambda: self._in_room(plan_id, model, _whole, self._splits.build(plan_id, model, parts, say)),
        )

    async def _in_room(
        self,
        plan_id: str,
        model: KnownModel,
        parts_of: PartsOf,
        work: Coroutine[Any, Any, Active],
        purpose: str = "head",
    ) -> Active:
        """Load once there is memory for it; models that nobody uses now make room."""
        try:
            if not self._room.is_limited:
                return await work
            kept = None
            for engine, (content_id, _) in list(self._kept.items()):
                others = self._builds[content_id] - (content_id == model.content_id)
                if self._engines.has(engine, model.content_id, purpose):
                    kept = engine
                elif not others:  # no other plan is about to take it
                    await self._drop_kept(engine)
            await self._drop_hosted(model.content_id)
            needed = await self._bringing.memory_bytes(model, parts_of)
            standing = [*self.active.values(), *self._left.values()]
            async with self._room.of(plan_id, model.content_id, needed, standing, self._unload, kept=kept):
                return await work
        finally:
            work.close()  # where it never began

    def _own_parts(self, index: ModelIndex, parts: Sequence[StagePart]) -> list[Part]:
        """The units of this device in a ring: the output, with the last layers in one where it holds those."""
        own = [part for part in parts if part.peer == self._me and not part.followers]
        units = [part_of_stage(index, part.layer_first, part.layer_end) for part in own]
        if units and units[-1].layer_end == real_layer_count(index):
            return [*units[:-1], replace(units[-1], embedding=False, output=True)]
        return [*units, output_part(index)]

    async def _unload(self, active: Active) -> None:
        """An idle plan's memory is given back; the plan is carried out again when its model is asked for."""
        self._unloaded(active)
        await self.release(active.plan_id, reason="its memory is wanted for another model")

    async def _once(self, plan_id: str, model: KnownModel, build: Callable[[], Awaitable[Active]]) -> Active:
        """The plan as it stands, or built now; whoever asks meanwhile waits for the same one."""
        async with self._renewing.hold(model.content_id):
            pass  # not before a wait for the plan: its end waits for that too
        async with self._locks.hold(plan_id):
            active = self.active.get(plan_id)
            if active is not None:
                if active.is_usable:
                    return active
                active.end(StageLost("what this plan had loaded here is gone"))
            active = await self._built(model.content_id, build)
            self.active.pop(plan_id, None)
            self.active[plan_id] = active
            self._kept.pop(active.engine, None)
            self._left.pop(plan_id, None)  # the same devices: what they kept serves again
            for other in list(self.active.values()):
                if other.engine is active.engine and other.engine.is_up and not other.is_usable:
                    self.give_up(other, StageLost("another plan took the place of its layers on this device"))
                    self._tasks.spawn(f"release {other.plan_id}", self.release_left(other.plan_id))
            return active

    async def _built(self, content_id: ContentId, build: Callable[[], Awaitable[Active]]) -> Active:
        """With the options that are wanted when it is done: nobody ended it, for it did not stand, if they changed."""
        self._builds[content_id] += 1
        try:
            while True:
                renewed = self._renewed[content_id]
                try:
                    active = await build()
                except P2PNodeError:  # perhaps for an adapter that is not wanted any more
                    if renewed == self._renewed[content_id]:
                        raise
                else:
                    if renewed == self._renewed[content_id]:
                        return active
                    await self._release(active, "its engine options changed meanwhile", keep=True)
        finally:
            self._builds[content_id] -= 1

    # --- ending --------------------------------------------------------------------------------------
    def lose_peer(self, peer: PeerId, reason: str) -> None:
        """A device wants out: plans on it end now, and what runs on them moves while it still answers."""
        for active in list(self.active.values()):
            if (
                active.lost is None
                and active.mode != "local"
                and any(s["peer"] == peer for s in active.stages)
            ):
                active.lose(StageLost(reason, peer=peer))

    def give_up(self, active: Active, error: P2PNodeError) -> None:
        """A plan that lost a stage: its streams end, its other devices may keep what they loaded."""
        active.end(error)
        if self.active.get(active.plan_id) is active:
            del self.active[active.plan_id]
            self._left[active.plan_id] = active

    async def release(self, plan_id: str, *, reason: str, keep: bool = False) -> None:
        """Give a plan up and tell its devices; with `keep` what they loaded waits for the one that follows."""
        async with self._locks.hold(plan_id):
            active = self.active.pop(plan_id, None) or self._left.pop(plan_id, None)
            if active is not None:
                await self._release(active, reason, keep=keep)

    async def release_model(self, content_id: ContentId, reason: str, keep: bool = False) -> None:
        """All plans of a model; what runs on them goes on with the next."""
        self._renewed[content_id] += 1
        async with self._renewing.hold(content_id):
            for active in list(self.active.values()):
                if active.model.content_id == content_id:
                    await self.release(active.plan_id, reason=reason, keep=keep)

    def keeps(self, content_id: ContentId) -> bool:
        """Whether a model that no plan has any more is loaded here, for the plan that follows."""
        return any(of_model == content_id for of_model, _ in self._kept.values())

    async def release_left(self, plan_id: str) -> None:
        """What was given up and not taken up again: another plan serves in its place."""
        async with self._locks.hold(plan_id):
            active = self._left.pop(plan_id, None)
            if active is not None and plan_id not in self.active:
                await self._release(active, "another plan took its place")

    async def _release(self, active: Active, reason: str, *, keep: bool = False) -> None:
        active.end(StageLost(f"the plan was ended: {reason}"))
        if active.mode != "local":
            peers = {PeerId(stage["peer"]) for stage in active.stages}
            await self._rings.release(active.plan_id, peers, keep=keep)
        if not self._serves(active.engine):
            if keep and active.mode not in ("streamed", "tensor_rpc"):  # which take no adapters
                self._keep(active)
            else:
                await self._engines.drop(active.engine)
        for undo in active.release:
            await undo()

    def _serves(self, engine: EngineHost) -> bool:
        return any(other.engine is engine for other in (*self.active.values(), *self._left.values()))

    def _keep(self, active: Active) -> None:
        """A plan that wants the same weights finds them loaded; when none comes their memory is given back."""
        content_id, engine = active.model.content_id, active.engine
        self._kept[engine] = waiting = content_id, object()

        async def wait() -> None:
            while self._kept.get(engine) is waiting:
                await asyncio.sleep(limits.ADAPTED_KEPT_S)
                if not self._builds[content_id] and self._kept.get(engine) is waiting:
                    await self._drop_kept(engine)

        self._tasks.spawn(f"what {active.plan_id} had loaded", wait())

    async def _drop_kept(self, engine: EngineHost) -> None:
        self._kept.pop(engine, None)
        if not self._serves(engine):
            await self._engines.drop(engine)

    async def close(self) -> None:
        for active in self.active.values():
            active.end(StageLost("this device is stopping"))
        await self._engines.close()


def _whole(index: ModelIndex) -> list[Part]:
    return [whole(index)]
