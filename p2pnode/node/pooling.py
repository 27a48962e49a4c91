"""Embeddings along a plan: stages make the rows of a text, a last unit of this head pools and normalises them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from p2pnode import limits
from p2pnode.compute.gguf import ModelIndex
from p2pnode.compute.part import Part, real_layer_count
from p2pnode.compute.pipeline_route import PipelineRoute
from p2pnode.compute.route import Feed
from p2pnode.errors import Forbidden, P2PNodeError
from p2pnode.facade import GenerateRequest
from p2pnode.frame import DType, Frame, Kind, pack_rows, rows_f32
from p2pnode.network import FREE_PATHS, Path
from p2pnode.node.active import Active, first_condition
from p2pnode.node.bringing import Bringing
from p2pnode.node.catalog import KnownModel
from p2pnode.node.choosing import Choosing
from p2pnode.node.failover import Failover
from p2pnode.node.loading import Loads
from p2pnode.node.requests import SURVIVABLE
from p2pnode.node.units import unit_spec
from p2pnode.units import PeerId

POOL = "pool"
SESSIONS = 4
"""Texts under way at once: stages and the pooling unit batch what waits."""


def pooling_of(index: ModelIndex) -> Literal["model", "mean"]:
    """A model that says how it pools is obeyed; a chat model is pooled by the mean, as llama.cpp's users expect."""
    return "model" if index.parameter("pooling_type") is not None else "mean"


class Pooling:
    """What a plan over several devices makes of whole texts."""

    def __init__(
        self,
        *,
        me: PeerId,
        bringing: Bringing,
        choosing: Choosing,
        failover: Failover,
        path: Callable[[PeerId], Path],
        loads: Loads,
        new_session: Callable[[], int],
        new_id: Callable[[], str],
    ) -> None:
        self._me = me
        self._bringing = bringing
        self._choosing = choosing
        self._failover = failover
        self._path = path
        self._loads = loads
        self._new_session = new_session
        self._new_id = new_id
        self._room = asyncio.Semaphore(SESSIONS)
        self._at_work: Counter[str] = Counter()

    @property
    def in_use(self) -> set[str]:
        """Plans that texts are under way on."""
        return set(self._at_work)

    async def plan_of(self, model: KnownModel, *, is_loaded: bool = False) -> Active | None:
        """The plan over several devices that a request for this model would run on; None for this device alone.

        One that has no room here is planned with others, unless it `is_loaded` whole already.
        Raises what choosing a plan raises, and Forbidden where only devices from outside could compute.
        """
        is_spread = self._choosing.may_be_spread(model)
        if is_loaded and not is_spread:
            return None
        if (await self._bringing.slim_index(model)).parameter("attention.causal") is False:
            return None  # every row sees those after it: chunks that pass stages one after the other do not
        if not is_spread:
            made = await self._choosing.with_others(model)
            return None if made is None else self._as_ring(made)
        active = await self._choosing.choose(GenerateRequest(model=model.name, prompt=""))
        return self._as_ring(active)

    def _as_ring(self, active: Active) -> Active | None:
        if not isinstance(active.route, PipelineRoute):
            return None
        peers = {PeerId(stage["peer"]) for stage in active.stages} - {self._me}
        if all(self._path(peer) in FREE_PATHS for peer in peers):
            return active
        # Nothing is recorded of an embedding, so nobody would sign for what was computed.
        if active.model.is_complete_here:
            return None
        raise Forbidden(
            f"the plan for {active.model.name} has devices outside the local network, and embeddings leave no receipts",
            hint=f"fetch the model with: p2pnode pull {active.model.name}",
        )

    async def tokenize(self, model: KnownModel, text: str) -> list[int]:
        return await self._choosing.with_vocabulary(
            model.name, lambda engine, unit: engine.tokenize(unit, text)
        )

    async def embed(
        self, active: Active, inputs: Sequence[Sequence[int]], found: dict[int, list[float]]
    ) -> None:
        """Into `found`, by place, what is not there yet; after a loss the rest along another plan.

        Returns early when what is left is for this device alone.
        """
        ring: Active | None = active
        request_id = self._new_id()
        for left in range(limits.RECOVERIES_MAX, -1, -1):
            if ring is None:
                return
            try:
                await self._embed(ring, inputs, found, request_id)
                return
            except SURVIVABLE as error:
                if not left:
                    raise
                ring = self._as_ring(await self._failover.instead_of(ring, error, request_id))

    async def _embed(
        self,
        active: Active,
        inputs: Sequence[Sequence[int]],
        found: dict[int, list[float]],
        request_id: str,
    ) -> None:
        self._at_work[active.plan_id] += 1
        try:
            await self._along(active, inputs, found, request_id)
        finally:
            active.used_s = time.monotonic()
            self._at_work[active.plan_id] -= 1
            self._at_work += Counter()  # without those that are done

    async def _along(
        self,
        active: Active,
        inputs: Sequence[Sequence[int]],
        found: dict[int, list[float]],
        request_id: str,
    ) -> None:
        unit = await self._unit(active)

        async def one(place: int, tokens: Sequence[int]) -> None:
            async with self._room:
                found[place] = await self._one(active, unit, tokens, request_id)

        try:
            async with first_condition(), asyncio.TaskGroup() as group:
                for place, tokens in enumerate(inputs):
                    if place not in found:
                        group.create_task(one(place, tokens))
        except P2PNodeError as error:
            if active.lost is not None and error is not active.lost:
                raise active.lost from error  # a unit that went with its plan says only that it is not there
            raise

    async def _one(self, active: Active, unit: int, tokens: Sequence[int], request_id: str) -> list[float]:
        session = self._new_session()
        await active.cells.take(len(tokens))
        try:
            if active.announce is not None:
                await active.announce(request_id, session, len(tokens), "")
            try:
                rows = await self._rows(active, session, tokens)
            finally:
                await asyncio.shield(_free(active, session))
        finally:
            active.cells.give_back(len(tokens))
        return await active.engine.client.pool(unit, rows)

    async def _rows(self, active: Active, session: int, tokens: Sequence[int]) -> Frame:
        """In chunks like a prompt, all under way at once; then one frame, for pooling sees one batch.

        The chunks are of one size: a short last one would be computed by other kernels, which round differently
        from those that a whole text is computed by.
        """
        route, count = active.route, -(-len(tokens) // limits.PREFILL_CHUNK_TOKENS)
        assert isinstance(route, PipelineRoute)
        size = -(-len(tokens) // count)
        feeds = [
            Feed(session, 0, first, tokens[first : first + size], sample=False)
            for first in range(0, len(tokens), size)
        ]
        async with first_condition(), asyncio.TaskGroup() as group:
            chunks = [group.create_task(route.rows(feed)) for feed in feeds]
        rows = np.concatenate([rows_f32(chunk.result()) for chunk in chunks])
        return Frame(Kind.ROWS, DType.F32, len(rows), rows.shape[1], session, pack_rows(rows, DType.F32))

    async def _unit(self, active: Active) -> int:
        """The end of the model once more, pooling: layers where the head has the last ones, then the output norm."""
        model, route = active.model, active.route
        assert isinstance(route, PipelineRoute)
        index = await self._bringing.full_index(model)
        count = real_layer_count(index)
        first = int(active.stages[-1]["layers"][0]) if route.output_has_layers else count
        part, options = Part(first, count, output=True), self._bringing.options(model, index)
        spec = unit_spec(
            index,
            self._bringing.paths(model),
            part,
            replace(options, sessions=SESSIONS, prefix_bytes=0),
            model_id=self._bringing.model_id(model),
            is_last=True,
        )
        spec = await self._bringing.adapted(model, index, part, options, spec)
        spec = replace(
            spec,
            output="embedding",
            pooling=pooling_of(index),
            context_tokens=limits.EMBEDDING_TOKENS_MAX * SESSIONS,
            batch_rows=limits.EMBEDDING_TOKENS_MAX,
        )
        with self._loads.of(model.name) as say:
            info = await active.engine.ensure(
                POOL, spec, lambda fraction: say({"state": "loading", "progress": fraction})
            )
        return info.unit_id


async def _free(active: Active, session: int) -> None:
    try:
        await active.route.free(session)
    except P2PNodeError:
        return  # whoever held it is gone, and with it what it held
