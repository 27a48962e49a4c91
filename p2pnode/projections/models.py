"""Models: what is known here, and which parts of each this node keeps."""

from __future__ import annotations

from typing import Final

import msgspec

from p2pnode import limits
from p2pnode.events import types as facts
from p2pnode.events.codec import Record
from p2pnode.projections.fold import Handlers, JsonObject, forget_oldest, in_order, plus


class Shard(msgspec.Struct, array_like=True):
    index: int
    layer_first: int
    layer_end: int
    size_bytes: int
    source: str
    stored_ms: int
    duration_ms: int


class Model(msgspec.Struct, array_like=True):
    index: int
    name: str
    architecture: str
    quantisation: str
    size_bytes: int
    layers: int
    context_length: int
    source: str
    added_ms: int


class Models(msgspec.Struct):
    own: str = ""
    models: dict[str, Model] = {}
    """Content id to model."""
    shards: dict[str, dict[str, Shard]] = {}
    """Model to content id to shard kept here."""
    fetched_bytes: int = 0

    def __post_init__(self) -> None:
        self.models = in_order(self.models)
        self.shards = {model: in_order(shards) for model, shards in self.shards.items()}


def initial() -> Models:
    return Models()


def find(state: Models, name: str) -> tuple[str, Model] | None:
    """The newest model with this name or content id."""
    if name in state.models:
        return name, state.models[name]
    for model, entry in reversed(state.models.items()):
        if entry.name == name:
            return model, entry
    return None


def _keys_bound(state: Models, record: Record, event: facts.KeysBound) -> None:
    state.own = event.peer


def _model_added(state: Models, record: Record, event: facts.ModelAdded) -> None:
    state.models.pop(event.model, None)
    state.models[event.model] = Model(
        record.index,
        event.name,
        event.architecture,
        event.quantisation,
        event.size_bytes,
        event.layer_count,
        event.context_length,
        event.source,
        record.wall_ms,
    )
    if len(state.models) > limits.MODELS_KEPT_MAX:
        state.shards.pop(next(iter(state.models)), None)
        forget_oldest(state.models, limits.MODELS_KEPT_MAX)


def _model_removed(state: Models, record: Record, event: facts.ModelRemoved) -> None:
    state.models.pop(event.model, None)
    state.shards.pop(event.model, None)


def _shard_stored(state: Models, record: Record, event: facts.ShardStored) -> None:
    shards = state.shards.setdefault(event.model, {})
    shards.pop(event.content, None)
    shards[event.content] = Shard(
        record.index,
        event.layer_first,
        event.layer_end,
        event.size_bytes,
        event.source,
        record.wall_ms,
        event.duration_ms,
    )
    state.fetched_bytes = plus(state.fetched_bytes, event.size_bytes)
    forget_oldest(shards, limits.SHARDS_PER_MODEL_KEPT_MAX)
    if len(state.shards) > limits.MODELS_KEPT_MAX:  # sorted so that a restored snapshot forgets the same
        del state.shards[min(set(state.shards) - {event.model})]


def layers_kept(state: Models, model: str) -> list[list[int]]:
    """Half-open layer ranges kept here as shards, joined where they touch."""
    joined: list[list[int]] = []
    for first, end in sorted((s.layer_first, s.layer_end) for s in state.shards.get(model, {}).values()):
        if joined and first <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([first, end])
    return joined


def view(state: Models, now_ms: int, *, default: str = "") -> JsonObject:
    """{"models": [{"model", "name", "architecture", "quantisation", "size_bytes", "layers",
    "context_length", "source", "added_ms", "holders": [{"peer", "layers"}], "default"}]}; holders are
    this node only, the mesh's are live.
    """
    chosen = find(state, default)
    return {
        "models": [
            {
                "model": model,
                "name": entry.name,
                "architecture": entry.architecture,
                "quantisation": entry.quantisation,
                "size_bytes": entry.size_bytes,
                "layers": entry.layers,
                "context_length": entry.context_length,
                "source": entry.source,
                "added_ms": entry.added_ms,
                "holders": [{"peer": state.own, "layers": kept}]
                if (kept := layers_kept(state, model))
                else [],
                "default": chosen is not None and chosen[0] == model,
            }
            for model, entry in state.models.items()
        ]
    }


HANDLERS: Final[Handlers] = {
    facts.KeysBound: _keys_bound,
    facts.ModelAdded: _model_added,
    facts.ModelRemoved: _model_removed,
    facts.ShardStored: _shard_stored,
}
