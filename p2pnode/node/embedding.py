"""Embeddings and rerank scores: along the plan that serves a model, else by one unit of this device.

That unit has the whole model and is loaded on first use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from p2pnode import limits
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import UnitInfo, UnitSpec
from p2pnode.compute.part import whole
from p2pnode.errors import ContextFull, RequestError
from p2pnode.facade import Ranking
from p2pnode.node.bringing import Bringing
from p2pnode.node.catalog import KnownModel
from p2pnode.node.engines import EngineHost
from p2pnode.node.loading import Loads
from p2pnode.node.pooling import SESSIONS, Pooling, pooling_of
from p2pnode.node.units import unit_spec

UNIT, RANKER = "embedding", "ranker"
_POOLING_RANK = 4
"""llama.cpp's pooling type of models that score pairs."""


class Embedding:
    """Pooled, L2-normalised vectors, in the order of the inputs."""

    def __init__(
        self,
        bringing: Bringing,
        new_engine: Callable[[str], EngineHost],
        loads: Loads,
        along_plans: Pooling,
    ) -> None:
        self._along_plans = along_plans
        self._bringing = bringing
        self._loads = loads
        self._new_engine = new_engine
        self._engines: dict[str, EngineHost] = {}
        self._room = asyncio.Semaphore(SESSIONS)

    @property
    def in_use(self) -> set[str]:
        """Plans that texts are under way on."""
        return self._along_plans.in_use

    async def embed(self, model: KnownModel, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """Raises ContextFull for a text longer than one batch, and what loading raises."""
        if not inputs or not all(inputs):
            raise RequestError("there is nothing to embed: an input is empty")
        self._check(inputs)
        found: dict[int, list[float]] = {}
        active = await self._along_plans.plan_of(model, is_loaded=self._is_loaded(model))
        if active is not None:
            await self._along_plans.embed(active, inputs, found)
        places = [place for place in range(len(inputs)) if place not in found]
        if places:
            engine, unit = await self._unit(model)
            rest = await self._all(engine.client, unit, [inputs[place] for place in places])
            found.update(zip(places, rest, strict=True))
        return [found[place] for place in range(len(inputs))]

    def _is_loaded(self, model: KnownModel) -> bool:
        engine = self._engines.get(model.content_id)
        return engine is not None and engine.is_up and UNIT in engine.infos

    async def _all(
        self, client: EngineClient, unit: int, inputs: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """As many at once as the unit has sequences."""

        async def one(tokens: Sequence[int]) -> list[float]:
            async with self._room:
                return await client.embed(unit, tokens)

        return await asyncio.gather(*(one(tokens) for tokens in inputs))

    async def rank(self, model: KnownModel, query: str, documents: Sequence[str]) -> Ranking:
        """By a reranker's own scores, else by the likeness of what the model makes of query and documents.

        Raises ContextFull for a pair longer than one batch, and what loading raises.
        """
        index = await self._bringing.slim_index(model)
        if index.parameter("pooling_type") != _POOLING_RANK:
            texts = await self._tokens(model, (query, *documents))
            first, *others = await self.embed(model, texts)
            scores = [sum(a * b for a, b in zip(first, other, strict=True)) for other in others]
            return Ranking(scores, sum(map(len, texts)), "embedding")
        await self._bringing.bring(model, whole, lambda _: None)
        engine, info = await self._ranker(model)
        pairs = await _pairs(engine.client, info, query, documents)
        self._check(pairs)
        found = await self._all(engine.client, info.unit_id, pairs)
        return Ranking([scores[0] for scores in found], sum(map(len, pairs)), "rank")

    async def _tokens(self, model: KnownModel, texts: Sequence[str]) -> list[list[int]]:
        if await self._along_plans.plan_of(model, is_loaded=self._is_loaded(model)) is not None:
            return [await self._along_plans.tokenize(model, text) for text in texts]
        engine, unit = await self._unit(model)
        return [await engine.client.tokenize(unit, text) for text in texts]

    async def _ranker(self, model: KnownModel) -> tuple[EngineHost, UnitInfo]:
        """The file as it is: a ranking head is no part of any cut."""
        path = self._bringing.file(model, "rerank")
        options = self._bringing.options(model, await self._bringing.full_index(model))
        engine = self._engines.setdefault(
            f"{model.content_id} rank", self._new_engine(f"{model.name} (rerank)")
        )
        spec = UnitSpec(
            model_path=path,
            output="embedding",
            pooling="rank",
            context_tokens=limits.EMBEDDING_TOKENS_MAX * SESSIONS,
            batch_rows=limits.EMBEDDING_TOKENS_MAX,
            sessions_max=SESSIONS,
            threads=options.threads,
            threads_batch=options.threads,
            load_mode="copy",
        )
        with self._loads.of(model.name) as say:
            info = await engine.ensure(
                RANKER, spec, lambda fraction: say({"state": "loading", "progress": fraction})
            )
        return engine, info

    @staticmethod
    def _check(inputs: Sequence[Sequence[int]]) -> None:
        longest = max((len(tokens) for tokens in inputs), default=0)
        if longest > limits.EMBEDDING_TOKENS_MAX:
            raise ContextFull(
                f"a text of {longest} tokens, at most {limits.EMBEDDING_TOKENS_MAX} can be taken at once",
                hint="cut documents into pieces",
            )

    async def _unit(self, model: KnownModel) -> tuple[EngineHost, int]:
        engine = self._engines.setdefault(model.content_id, self._new_engine(f"{model.name} (embedding)"))
        index, paths, options, model_id = await self._bringing.brought(model, whole)
        wide = replace(options, context_tokens=limits.EMBEDDING_TOKENS_MAX * SESSIONS, sessions=SESSIONS)
        spec = unit_spec(index, paths, whole(index), wide, model_id=model_id, is_last=True)
        spec = await self._bringing.adapted(model, index, whole(index), options, spec)
        spec = replace(
            spec, output="embedding", pooling=pooling_of(index), batch_rows=limits.EMBEDDING_TOKENS_MAX
        )
        with self._loads.of(model.name) as say:
            await engine.ensure(UNIT, spec, lambda fraction: say({"state": "loading", "progress": fraction}))
        return engine, engine.unit(UNIT)

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.close()


async def _pairs(
    client: EngineClient, info: UnitInfo, query: str, documents: Sequence[str]
) -> list[list[int]]:
    """Query and document as the model was taught to read them: its template for this, else BOS q EOS SEP d EOS."""
    template = info.metadata.get("tokenizer.chat_template.rerank")
    if template:
        before, _, after = template.replace("{query}", query).partition("{document}")
        texts = [f"{before}{document}{after}" for document in documents]
        return [await client.tokenize(info.unit_id, text, add_special=False) for text in texts]

    async def plain(text: str) -> list[int]:
        return await client.tokenize(info.unit_id, text, add_special=False, parse_special=False)

    separator = info.metadata.get("tokenizer.ggml.seperator_token_id", "")  # llama.cpp's spelling
    sep = [int(separator)] if separator.isdecimal() else []
    bos, eos = [info.bos] if info.bos >= 0 else [], [info.eos] if info.eos >= 0 else sep
    asked = await plain(query)
    return [[*bos, *asked, *eos, *sep, *(await plain(document)), *eos] for document in documents]
