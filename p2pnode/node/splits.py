"""Disaggregated plans: a ring of other devices computes prompts, this device everything after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from p2pnode import limits
from p2pnode.compute.part import real_layer_count
from p2pnode.compute.pipeline_route import PipelineRoute
from p2pnode.compute.route import Feed
from p2pnode.compute.split_route import SplitRoute
from p2pnode.compute.surgery import cut
from p2pnode.errors import P2PNodeError, PlanError, StageLost
from p2pnode.facade import SamplingParams
from p2pnode.node.active import Active, Say, StagePart, stage_view
from p2pnode.node.bringing import Bringing
from p2pnode.node.catalog import KnownModel
from p2pnode.node.kv_transfers import KvTransfers, StateSource
from p2pnode.node.orders import PROBE_SESSION
from p2pnode.node.rings import FIRST, Rings
from p2pnode.node.units import part_of_stage, unit_spec
from p2pnode.units import PeerId

MODE = "disaggregated"


class Splits:
    def __init__(
        self,
        *,
        me: PeerId,
        name_of: Callable[[PeerId], str],
        bringing: Bringing,
        rings: Rings,
        transfers: KvTransfers,
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        self._me = me
        self._name_of = name_of
        self._bringing = bringing
        self._rings = rings
        self._transfers = transfers
        self._say = say

    async def build(self, plan_id: str, model: KnownModel, parts: Sequence[StagePart], say: Say) -> Active:
        """The ring, the whole model here, and one prompt moved from there to here to see that it works."""
        if any(part.peer == self._me or part.followers for part in parts):
            raise PlanError(f"in a {MODE} plan other devices compute the prompt, each its layers alone")
        active = await self._rings.build(plan_id, model, parts, say)
        try:
            await self._extend(active, model, parts, say)
            await self._probe(active)
        except BaseException as error:
            active.end(StageLost(f"the plan did not answer its probe: {error}"))
            await self._rings.release(plan_id, {part.peer for part in parts})
            raise
        return active

    async def _extend(self, active: Active, model: KnownModel, parts: Sequence[StagePart], say: Say) -> None:
        bringing = self._bringing
        index = await bringing.full_index(model)
        layers = real_layer_count(index)
        own = part_of_stage(index, 0, layers)
        await bringing.bring(model, lambda _: own, say)
        options, model_id = bringing.options(model, index), bringing.model_id(model)
        spec = unit_spec(index, bringing.paths(model), own, options, model_id=model_id, is_last=True)
        spec = await bringing.adapted(model, index, own, options, spec)
        info = await active.engine.ensure(FIRST, spec, lambda f: say({"state": "loading", "progress": f}))
        ring = active.route
        assert isinstance(ring, PipelineRoute)
        decode = PipelineRoute(
            active.engine.client, first_unit=info.unit_id, output_unit=active.vocabulary_unit, send=None
        )
        prefix, _, suffix = info.fingerprint.partition("|")
        assert prefix == spec.fingerprint
        sources = [
            StateSource(
                part.peer, number, f"{self._fingerprint(index, part, model_id)}|{_slice(suffix, part)}"
            )
            for number, part in enumerate(parts)
        ]
        per_token = bringing.cache_bytes_per_token(index)

        async def move(session: int, positions: int) -> None:
            bytes_max = min(2 * per_token * positions + (1 << 20), limits.KV_STATE_BYTES_MAX)
            state = await self._transfers.bring(
                active.plan_id, sources, session, positions, fingerprint=info.fingerprint, bytes_max=bytes_max
            )
            await active.engine.client.state_set(info.unit_id, session, state)

        split = SplitRoute(ring, decode, move, lambda error: self._told(active, error))
        active.route, active.mode, active.decoder = split, MODE, self._me
        active.units = (*active.units, info.unit_id)
        extra = {"role": "decode", "model_bytes": info.model_bytes}
        active.stages.append(stage_view(self._name_of(self._me), self._me, 0, layers, extra))
        active.prefixes = bringing.prefixes(index, split, options)

        def unloads(unit_id: int) -> None:
            if unit_id in active.units:
                decode.lost(StageLost("another plan took the place of its layers on this device"))

        active.engine.unload_listeners.append(unloads)
        active.close.append(lambda: active.engine.unload_listeners.remove(unloads))

    @staticmethod
    def _fingerprint(index: Any, part: StagePart, model_id: bytes) -> str:
        return cut(index, part_of_stage(index, part.layer_first, part.layer_end), model_id).facts.fingerprint

    def _told(self, active: Active, error: P2PNodeError) -> None:
        self._say({"kind": "kv_not_moved", "data": {"plan_id": active.plan_id, "reason": error.message}})

    async def _probe(self, active: Active) -> None:
        """A token there, its keys and values moved, a token here: what cannot be moved is found out now."""
        route = active.route
        assert isinstance(route, SplitRoute)
        failed: list[P2PNodeError] = []
        route.tell = failed.append
        try:
            await route.open(PROBE_SESSION, SamplingParams(temperature=0.0), [])
            try:
                await route.feed(Feed(PROBE_SESSION, 0, 0, [0], sample=True))
                await route.feed(Feed(PROBE_SESSION, 0, 1, [0], sample=True, is_alone=True))
            finally:
                await route.free(PROBE_SESSION)
        finally:
            route.tell = lambda error: self._told(active, error)
        if failed:
            raise PlanError(f"keys and values of {active.model.name} cannot be moved: {failed[0].message}")


def _slice(suffix: str, part: StagePart) -> str:
    """Cache types as here, and the stage's own number of layers (engine_unit's fingerprint)."""
    kinds, _, _ = suffix.rpartition("|")
    return f"{kinds}|{part.layer_end - part.layer_first}"
