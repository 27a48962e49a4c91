"""Parts of models brought to this disk, and what units of them are made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from p2pnode import limits
from p2pnode.compute.engine_options import DeviceOptions, EngineOptions
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.gguf import ModelIndex
from p2pnode.compute.memory import MARGIN_BYTES, part_memory
from p2pnode.compute.part import Part, whole
from p2pnode.compute.prefix_cache import PrefixShape
from p2pnode.compute.prefixes import Prefixes
from p2pnode.compute.route import Route
from p2pnode.config import parse_size
from p2pnode.errors import PlanError
from p2pnode.node.active import Say
from p2pnode.node.adapters import Adapters
from p2pnode.node.catalog import Catalog, KnownModel
from p2pnode.node.units import UnitOptions, wants_of
from p2pnode.units import ContentId

_CELL_BYTES = 16
"""What a state says of each position beside its keys and values."""
PartOf = Callable[[ModelIndex], Part]
PartsOf = Callable[[ModelIndex], Sequence[Part]]


PREFIXES = "cache.prefix"
"""Setting: how much of finished requests a plan keeps, as a size; `off` for nothing."""


def prefix_bytes_of(text: str) -> int:
    """Bytes of the setting's text; ConfigError for what is neither a size nor `off`."""
    if text == "off":
        return 0
    return min(parse_size(text), limits.PREFIX_BYTES_MAX) if text else limits.PREFIX_BYTES_DEFAULT


class Bringing:
    def __init__(
        self,
        catalog: Catalog,
        threads: int,
        prefix_bytes: Callable[[], int] = lambda: 0,
        *,
        engine: Callable[[ContentId], EngineOptions] = lambda _: EngineOptions(),
        device: Callable[[], DeviceOptions] = DeviceOptions,
        adapters: Adapters,
    ) -> None:
        self._catalog = catalog
        self._threads = threads
        self.prefix_bytes = prefix_bytes
        self.engine = engine
        self.device = device
        self._adapters = adapters

    async def bring(self, model: KnownModel, part_of: PartOf, say: Say) -> ModelIndex:
        """Fetch what a part on this device needs; returns the index with its vocabulary."""
        slim = await self.slim_index(model)
        await self._catalog.fetch(
            model.content_id,
            wants_of(slim, part_of(slim)),
            vocabulary=True,
            on_progress=lambda done, total: say({"state": "fetching", "done": done, "total": total}),
        )
        index, _ = await self._catalog.index(model.content_id, vocabulary=True)
        return index

    async def slim_index(self, model: KnownModel) -> ModelIndex:
        """The tensors of a model; its manifest is all that must be here for this."""
        await self._catalog.manifest(model.content_id, name=model.name)
        index, _ = await self._catalog.index(model.content_id, vocabulary=False)
        return index

    async def full_index(self, model: KnownModel) -> ModelIndex:
        """With the vocabulary, which was brought before."""
        index, _ = await self._catalog.index(model.content_id, vocabulary=True)
        return index

    async def brought(
        self, model: KnownModel, part_of: PartOf
    ) -> tuple[ModelIndex, list[Path], UnitOptions, bytes]:
        """A part on this disk, with what a unit of it is made from."""
        index = await self.bring(model, part_of, _say_nothing)
        return index, self.paths(model), self.options(model, index), self.model_id(model)

    async def shard_table(self, model: KnownModel) -> str:
        return await self._catalog.shard_table(model.content_id) or ""

    def model_id(self, model: KnownModel) -> bytes:
        return self._catalog.model_id(model.content_id)

    def paths(self, model: KnownModel) -> list[Path]:
        return list(self._catalog.store.paths(model.content_id))

    def file(self, model: KnownModel, mode: str) -> str:
        """What llama.cpp's own loading takes: the model's file, or the first of several, beside which the others lie.

        PlanError when not all of it is here.
        """
        if not model.is_complete_here:
            raise PlanError(
                f"{mode} needs the whole model on this device",
                hint=f"fetch it with: p2pnode pull {model.name}",
            )
        return str(self.paths(model)[0])

    def options(self, model: KnownModel, index: ModelIndex) -> UnitOptions:
        """As somebody chose for this model; else as much context as the memory set aside for it holds."""
        engine = self.engine(model.content_id)
        engine.check_model(index)
        slim = index.without_vocabulary()
        memory = part_memory(slim, whole(slim), key_type=engine.kv_k, value_type=engine.kv_v)
        kv_bytes = memory.cache_bytes_per_token
        cells = max(
            limits.CONTEXT_TOKENS_MIN,
            min(limits.CONTEXT_TOKENS_MAX, limits.KV_BYTES_DEFAULT // max(kv_bytes, 1)),
        )
        return UnitOptions(
            engine.context or cells // 256 * 256,
            limits.SESSIONS_ACTIVE_MAX,
            self._threads,
            prefix_bytes=self.prefix_bytes(),
            engine=engine,
            device=self.device(),
        )

    async def adapted(
        self, model: KnownModel, index: ModelIndex, part: Part, options: UnitOptions, spec: UnitSpec
    ) -> UnitSpec:
        """With its part of the adapters that somebody added to this model."""
        return await self._adapters.fitted(spec, options.engine, index, part, model=model.content_id)

    async def memory_bytes(self, model: KnownModel, parts_of: PartsOf) -> int:
        """About what units will hold on this device once they are loaded, their engine process included."""
        index = await self.slim_index(model)
        options = self.options(model, index)
        kinds = {"key_type": options.engine.kv_k, "value_type": options.engine.kv_v}
        sizes = {
            "context_tokens": options.context_tokens,
            "sessions": options.sessions,
            "batch_rows": limits.UNIT_BATCH_ROWS,
        }
        parts = [part_memory(index, part, **kinds) for part in parts_of(index)]
        total = sum(memory.total_bytes(**sizes) for memory in parts)
        return limits.UNIT_BUFFER_BYTES + total - MARGIN_BYTES * (len(parts) - 1)

    @staticmethod
    def cache_bytes_per_token(index: ModelIndex) -> int:
        """Of all layers, as a state has it."""
        return part_memory(index, whole(index)).cache_bytes_per_token + _CELL_BYTES

    def prefixes(self, index: ModelIndex, route: Route, options: UnitOptions) -> Prefixes | None:
        """The prefix cache of a plan, within what its units were loaded for and what the operator allows now."""
        if not options.prefix_bytes:
            return None
        memory = part_memory(index, whole(index))
        shape = PrefixShape(
            self.cache_bytes_per_token(index),
            memory.state_bytes_per_session,
            whole_only=memory.state_bytes_per_session > 0,
        )
        return Prefixes(route, shape, lambda: min(options.prefix_bytes, self.prefix_bytes()))


def _say_nothing(data: dict[str, Any]) -> None:
    del data
