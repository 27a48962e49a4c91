"""Native tensor parallelism: each rank holds some heads and some feed-forward columns of its layers.

What a rank computes after `attn_output` and `ffn_down` is a partial sum; the ranks add theirs up (`reduce`) and go
on with equal hidden states. Shares need not be equal; column cuts fall on quantisation blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd, lcm

from p2pnode.compute.architectures import Architecture, architecture_of, refusal
from p2pnode.compute.ggml_types import F32
from p2pnode.compute.gguf_values import ModelIndex, TensorInfo, ValueType
from p2pnode.compute.new_tensor import NewTensor, columns, original, rows, zeros
from p2pnode.compute.part import Shard
from p2pnode.compute.rewrite import Rewriter
from p2pnode.errors import ArchitectureUnsupported, PlanError

_WHOLE = re.compile(
    r"(attn_norm|ffn_norm|attn_q_norm|attn_k_norm|post_attention_norm|post_ffw_norm|ffn_gate_inp)\.(weight|bias)"
    r"|(attn_output|ffn_down)\.bias|.+\.(scale|input_scale)"
)
_FF_ROWS = re.compile(r"ffn_(gate|up)(_exps)?\.(weight|bias)")
_FF_COLUMNS = re.compile(r"ffn_down(_exps)?\.weight")
_LAYER_NAME = re.compile(r"blk\.(\d{1,9})\.(.+)")
_FF_UNIT = 32
"""Feed-forward columns of unquantised models are cut at multiples of this, for the vector units."""


@dataclass(frozen=True, slots=True)
class HeadRange:
    """Query heads [query_first, query_end) and the key-value heads they read."""

    query_first: int
    query_end: int
    kv_first: int
    kv_end: int


def apportion(total: int, shares: Sequence[int]) -> list[int]:
    """`total` units in proportion to `shares`, at least one each, by largest remainder (first rank wins ties)."""
    if total < len(shares):
        raise PlanError(f"{total} units for {len(shares)} devices", hint="use fewer devices")
    spare, weight = total - len(shares), sum(shares)
    ideal = [max(0, total * share - weight) for share in shares]
    ideal_sum = sum(ideal)
    if ideal_sum == 0:
        ideal, ideal_sum = [1] * len(shares), len(shares)
    out = [1 + spare * each // ideal_sum for each in ideal]
    order = sorted(range(len(shares)), key=lambda rank: (-(spare * ideal[rank] % ideal_sum), rank))
    for rank in order[: total - sum(out)]:
        out[rank] += 1
    return out


def head_ranges(heads: int, kv_heads: int, unit: int, shares: Sequence[int]) -> list[HeadRange]:
    """Heads of each rank. `unit` is how many query heads fill a quantisation block of the output projection.

    With fewer key-value heads than ranks, several ranks read the same one and split its query heads.
    """
    group = heads // kv_heads
    kv_unit = unit // gcd(unit, group)
    units = -(-kv_heads // kv_unit)
    if units >= len(shares):
        ends = _ends(apportion(units, shares), kv_unit, kv_heads)
        return [HeadRange(a * group, b * group, a, b) for a, b in ends]
    if group % unit:
        raise PlanError(
            f"{kv_heads} key-value heads do not make {len(shares)} shards at the blocks of this quantisation",
            hint="use fewer devices for the tensor group",
        )
    out: list[HeadRange] = []
    ranks = apportion(len(shares), [1] * kv_heads)
    for kv, count in enumerate(ranks):
        mine = shares[len(out) : len(out) + count]
        first = kv * group
        for a, b in _ends(apportion(group // unit, mine), unit, group):
            out.append(HeadRange(first + a, first + b, kv, kv + 1))
    return out


def _ends(counts: Iterable[int], unit: int, total: int) -> list[tuple[int, int]]:
    out, first = [], 0
    for count in counts:
        end = min(first + count * unit, total)
        out.append((first, end))
        first = end
    return out


class ShardPlan:
    """What one rank holds of the given layers."""

    def __init__(
        self,
        row: Architecture,
        index: ModelIndex,
        shard: Shard,
        layers: dict[int, list[tuple[str, TensorInfo]]],
    ) -> None:
        if not row.shardable:
            raise refusal(row.name, row.shard_refusal)
        self._row, self._shard = row, shard
        self._width = index.parameter_int("embedding_length")
        if row.shard_as and "output.bias" in index.tensors:
            raise refusal(row.name, "its output has a bias")
        self.heads, self.kv_heads, self.value_width = _heads(index)
        if any(self.kv_heads[n] < 1 or self.heads[n] % self.kv_heads[n] for n in layers):
            raise refusal(row.name, "some of its layers have no plain attention heads")
        default = self._width // max(1, self.heads[0])
        self.key_width = index.parameter_int("attention.key_length", default)
        self.rope_width = index.parameter_int("rope.dimension_count", self.key_width)
        self._check_tensors(layers)
        blocks = {
            t.type.block_elements for each in layers.values() for s, t in each if s == "attn_output.weight"
        }
        block = lcm(*blocks)
        unit = block // gcd(block, max(1, self.value_width))
        self._ranges = {
            n: head_ranges(self.heads[n], self.kv_heads[n], unit, shard.shares)[shard.rank] for n in layers
        }
        self.ff = self._ff_ranges(layers)

    def _check_tensors(self, layers: dict[int, list[tuple[str, TensorInfo]]]) -> None:
        for each in layers.values():
            for suffix, _ in each:
                known = (
                    _WHOLE.fullmatch(suffix) or _FF_ROWS.fullmatch(suffix) or _FF_COLUMNS.fullmatch(suffix)
                )
                attention = re.fullmatch(
                    r"attn_(q|k|v)\.(weight|bias)|attn_output\.weight|attn_sinks\.weight", suffix
                )
                if not known and not attention and suffix != "ffn_down_exps.bias":
                    raise refusal(self._row.name, f"its tensor {suffix} is not cut by heads or columns")

    def _ff_ranges(self, layers: dict[int, list[tuple[str, TensorInfo]]]) -> tuple[int, int]:
        down = [t for each in layers.values() for s, t in each if _FF_COLUMNS.fullmatch(s)]
        widths = {tensor.row_elements for tensor in down}
        if len(widths) != 1:
            raise refusal(self._row.name, "its layers have feed-forward networks of several widths")
        width = widths.pop()
        block = lcm(*(tensor.type.block_elements for tensor in down))
        unit = block if block > 1 else min(_FF_UNIT, max(1, width // self._shard.count))
        return _ends(apportion(-(-width // unit), self._shard.shares), unit, width)[self._shard.rank]

    def rewrite(self, rewriter: Rewriter, sources: Sequence[int]) -> None:
        """Write the local sizes explicitly: nothing is left to be derived from the width of the model."""
        ranges = [self._ranges[source] for source in sources]
        counts = {
            "attention.head_count": [each.query_end - each.query_first for each in ranges],
            "attention.head_count_kv": [each.kv_end - each.kv_first for each in ranges],
        }
        for key, values in counts.items():
            if len(set(values)) == 1:
                rewriter.put(key, ValueType.UINT32, values[0])
            else:
                rewriter.put_array(key, ValueType.UINT32, values)
        width = self.ff[1] - self.ff[0]
        for key in ("feed_forward_length", "expert_feed_forward_length"):
            if key == "feed_forward_length" or rewriter.has(key):
                rewriter.put(key, ValueType.UINT32, width)
        rewriter.put("attention.key_length", ValueType.UINT32, self.key_width)
        rewriter.put("attention.value_length", ValueType.UINT32, self.value_width)
        rewriter.put("rope.dimension_count", ValueType.UINT32, self.rope_width)

    def tensor(self, layer: int, suffix: str, tensor: TensorInfo, name: str) -> NewTensor:
        """The rank's share of one tensor of a layer."""
        heads = self._ranges[layer]
        if _FF_ROWS.fullmatch(suffix):
            if suffix.endswith("_exps.bias"):
                return columns(tensor, name, *self.ff)
            return rows(tensor, name, *self.ff)
        if _FF_COLUMNS.fullmatch(suffix):
            return columns(tensor, name, *self.ff)
        if suffix == "ffn_down_exps.bias" and self._shard.rank > 0:
            return zeros(name, tensor.shape, tensor.type)
        if suffix == "attn_sinks.weight":
            return rows(tensor, name, heads.query_first, heads.query_end)
        if suffix.startswith("attn_q."):
            return rows(tensor, name, heads.query_first * self.key_width, heads.query_end * self.key_width)
        if suffix.startswith("attn_k."):
            return rows(tensor, name, heads.kv_first * self.key_width, heads.kv_end * self.key_width)
        if suffix.startswith("attn_v."):
            return rows(tensor, name, heads.kv_first * self.value_width, heads.kv_end * self.value_width)
        if suffix == "attn_output.weight":
            return columns(
                tensor, name, heads.query_first * self.value_width, heads.query_end * self.value_width
            )
        return original(tensor, name)

    def additions(self, layer_count: int) -> list[NewTensor]:
        """Tensors that the architecture a shard is written as insists on."""
        if self._row.shard_as != "pangu-embedded":
            return []
        return [zeros(f"blk.{number}.attn_output.bias", (self._width,), F32) for number in range(layer_count)]


def reduce_names(layers: dict[int, list[tuple[str, TensorInfo]]], sources: Sequence[int]) -> tuple[str, ...]:
    """In order of computation: a weight, whose product is reduced, or a tensor by its own name."""
    out = []
    for number, source in enumerate(sources):
        suffixes = {suffix for suffix, _ in layers[source]}
        out.append(f"blk.{number}.attn_output.weight")
        experts = "ffn_down_exps.weight" in suffixes
        out.append(f"ffn_moe_out-{number}" if experts else f"blk.{number}.ffn_down.weight")
    return tuple(out)


def rank_limit(index: ModelIndex) -> int:
    """How many devices a tensor group over this model can have: 1 where it cannot be sharded."""
    try:
        row = architecture_of(index)
    except ArchitectureUnsupported:
        return 1
    if not row.shardable:
        return 1
    heads, kv_heads, width = _heads(index)
    limits = []
    for tensor in index.tensors.values():
        match = _LAYER_NAME.fullmatch(tensor.name)
        if match is None or int(match[1]) >= index.layer_count:
            continue
        layer, suffix, block = int(match[1]), match[2], tensor.type.block_elements
        if suffix == "attn_output.weight" and kv_heads[layer] > 0:
            unit, group = block // gcd(block, max(1, width)), heads[layer] // kv_heads[layer]
            kv_units = -(-kv_heads[layer] // (unit // gcd(unit, max(1, group))))
            limits.append(kv_units if group % unit else heads[layer] // unit)
        elif _FF_COLUMNS.fullmatch(suffix):
            limits.append(-(-tensor.row_elements // block) if block > 1 else tensor.row_elements)
    return max(1, min(limits, default=1))


def _heads(index: ModelIndex) -> tuple[list[int], list[int], int]:
    """Query heads and key-value heads of every layer, and the width of a value head."""
    heads = index.parameter_ints("attention.head_count")
    has_kv = index.parameter("attention.head_count_kv") is not None
    kv_heads = index.parameter_ints("attention.head_count_kv") if has_kv else heads
    default = index.parameter_int("embedding_length") // max(1, heads[0])
    return heads, kv_heads, index.parameter_int("attention.value_length", default)
