"""From a tensor index to what the planner must know of a model."""

from __future__ import annotations

import re
from math import prod

from p2pnode.compute.architectures import architecture_of
from p2pnode.compute.cost import ModelShape
from p2pnode.compute.gguf_values import ModelIndex
from p2pnode.compute.part import real_layer_count
from p2pnode.compute.rewrite import vocabulary_size
from p2pnode.compute.shard import rank_limit
from p2pnode.errors import ArchitectureUnsupported, BadModelFile

_LAYER = re.compile(r"^blk\.(\d+)\.")
_KV_VALUE_BYTES = 2
"""The KV cache is float16."""


def shape_of(index: ModelIndex, *, name: str, content_id: str) -> ModelShape:
    """Sizes and cutting rules of a model; an architecture that cannot be cut still has a shape."""
    count = real_layer_count(index)
    layer_bytes, active_bytes = [0] * count, [0] * count
    weights = 0
    experts = index.parameter("expert_count", 0) or 0
    used = index.parameter("expert_used_count", 0) or 0
    fraction = used / experts if experts and used else 1.0
    ends = {"token_embd.weight": 0, "output.weight": 0, "": 0}
    for tensor in index.tensors.values():
        match = _LAYER.match(tensor.name)
        if match and int(match[1]) < count:
            layer_bytes[int(match[1])] += tensor.size
            weights += prod(tensor.shape)
            active_bytes[int(match[1])] += int(tensor.size * (fraction if "_exps" in tensor.name else 1.0))
        elif match is None:
            ends[tensor.name if tensor.name in ends else ""] += tensor.size
    cut_refusal, shard_refusal, boundary = _rules(index)
    tied = ends["output.weight"] == 0
    return ModelShape(
        name=name,
        content_id=content_id,
        architecture=index.architecture,
        layer_bytes=tuple(layer_bytes),
        active_bytes=tuple(active_bytes),
        embedding_bytes=ends["token_embd.weight"],
        output_bytes=(ends["token_embd.weight"] if tied else ends["output.weight"]) + ends[""],
        width=index.parameter_int("embedding_length"),
        kv_bytes_per_token=tuple(_kv_bytes(index, layer) for layer in range(count)),
        context_length=index.parameter_int("context_length", 4096),
        is_tied=tied,
        boundary=boundary,
        cut_refusal=cut_refusal,
        shard_refusal=shard_refusal,
        layer_row_bytes=_layer_row_bytes(index),
        output_row_bytes=4 * (vocabulary_size(index) + 2 * index.parameter_int("embedding_length")),
        bits_per_weight=8 * sum(layer_bytes) / weights if weights else None,
        shard_units=rank_limit(index),
    )


def _layer_row_bytes(index: ModelIndex) -> int:
    """As in compute/memory.py: the widest step of a layer, float32."""
    used = max(index.parameter_ints("expert_used_count", 0))
    dense = max(index.parameter_ints("feed_forward_length", 0))
    expert = max(index.parameter_ints("expert_feed_forward_length", 0))
    return 4 * (3 * max(dense, used * (expert or dense)) + 4 * index.parameter_int("embedding_length"))


def _rules(index: ModelIndex) -> tuple[str | None, str | None, int]:
    """Why it cannot be sliced, why it cannot be sharded, and where cuts may fall."""
    try:
        row = architecture_of(index)
    except ArchitectureUnsupported as error:
        return error.message, error.message, 1
    shard = None if row.shardable else f"{row.name} cannot be cut by heads: {row.shard_refusal}"
    return None, shard, row.boundary


def _heads_kv(index: ModelIndex, layer: int) -> int:
    value = index.parameter("attention.head_count_kv", index.parameter("attention.head_count", 1))
    if isinstance(value, list):
        value = value[layer] if layer < len(value) else 0
    if not isinstance(value, int):
        raise BadModelFile("attention.head_count_kv is not a number")
    return value


def _kv_bytes(index: ModelIndex, layer: int) -> int:
    heads = index.parameter("attention.head_count", 1)
    heads = max(heads) if isinstance(heads, list) else heads
    per_head = index.parameter_int("embedding_length") // max(int(heads), 1)
    key = index.parameter_int("attention.key_length", per_head)
    value = index.parameter_int("attention.value_length", per_head)
    return _heads_kv(index, layer) * (key + value) * _KV_VALUE_BYTES
