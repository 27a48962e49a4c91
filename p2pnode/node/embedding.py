"""Embeddings and rerank scores by this device: one unit a model, loaded on first use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from p2pnode import limits
from p2pnode.compute.part import whole
from p2pnode.errors import ContextFull, RequestError
from p2pnode.node.bringing import Bringing
from p2pnode.node.catalog import KnownModel
from p2pnode.node.engines import EngineHost
from p2pnode.node.loading import Loads
from p2pnode.node.units import unit_spec

UNIT = "embedding"


class Embedding:
    """Pooled, L2-normalised vectors, in the order of the inputs."""

    def __init__(self, bringing: Bringing, new_engine: Callable[[str], EngineHost], loads: Loads) -> None:
        self._bringing = bringing
        self._loads = loads
        self._new_engine = new_engine
        self._engines: dict[str, EngineHost] = {}

    async def embed(self, model: KnownModel, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """Raises ContextFull for a text longer than one batch, and what loading raises."""
        longest = max((len(tokens) for tokens in inputs), default=0)
        if not inputs or not all(inputs):
            raise RequestError("there is nothing to embed: an input is empty")
        if longest > limits.EMBEDDING_TOKENS_MAX:
            raise ContextFull(
                f"a text of {longest} tokens, at most {limits.EMBEDDING_TOKENS_MAX} can be embedded at once"
            )
        engine, unit = await self._unit(model)
        return await asyncio.gather(*(engine.client.embed(unit, tokens) for tokens in inputs))

    async def _unit(self, model: KnownModel) -> tuple[EngineHost, int]:
        engine = self._engines.setdefault(model.content_id, self._new_engine(f"{model.name} (embedding)"))
        index, paths, options, model_id = await self._bringing.brought(model, whole)
        wide = replace(options, context_tokens=limits.EMBEDDING_TOKENS_MAX * 4, sessions=4)
        spec = unit_spec(index, paths, whole(index), wide, model_id=model_id, is_last=True)
        # A model that says how it pools is obeyed; a chat model is pooled by the mean, as llama.cpp's users expect.
        pooling: Literal["model", "mean"] = "model" if index.parameter("pooling_type") is not None else "mean"
        spec = replace(spec, output="embedding", pooling=pooling, batch_rows=limits.EMBEDDING_TOKENS_MAX)
        with self._loads.of(model.name) as say:
            await engine.ensure(UNIT, spec, lambda fraction: say({"state": "loading", "progress": fraction}))
        return engine, engine.unit(UNIT)

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.close()
