"""What a part needs of a machine's memory: weights, keys and values, states, and room to compute.

Weights, keys and values are exact; the room to compute follows llama.cpp's own reservation on the CPU, which holds
the widest step of a layer or of the output for a whole micro-batch (compared in tests/unit/compute/test_memory.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.compute.ggml_types import TENSOR_TYPES
from p2pnode.compute.gguf_reader import join, parse
from p2pnode.compute.gguf_values import ModelIndex
from p2pnode.compute.part import Cut, Part, real_layer_count
from p2pnode.compute.rewrite import vocabulary_size
from p2pnode.compute.surgery import cut
from p2pnode.errors import PlanError

_TYPES = {kind.name.lower(): kind for kind in TENSOR_TYPES.values()}
MARGIN_BYTES = 16 * 1024 * 1024
"""The context itself, graphs and their tensors: a few MiB in every run seen, so once is enough for several parts."""


@dataclass(frozen=True, slots=True)
class PartMemory:
    weights_bytes: int
    cache_bytes_per_token: int
    """Keys and values; sessions share one pool of tokens."""
    state_bytes_per_session: int
    """Of recurrent layers."""
    compute_bytes_per_row: int
    """For each row of a micro-batch."""
    mask_bytes_per_row_token: int = 2

    def total_bytes(self, *, context_tokens: int, sessions: int, batch_rows: int) -> int:
        """All of it, for a pool of `context_tokens` shared by `sessions`, and micro-batches of `batch_rows`."""
        return (
            self.weights_bytes
            + self.cache_bytes_per_token * context_tokens
            + self.state_bytes_per_session * sessions
            + (self.compute_bytes_per_row + self.mask_bytes_per_row_token * context_tokens) * batch_rows
            + MARGIN_BYTES
        )


def part_memory(
    index: ModelIndex, part: Part, *, key_type: str = "f16", value_type: str = "f16"
) -> PartMemory:
    """Needs of one part of a model.

    Raises: what `cut` raises; PlanError for an unknown cache type
    """
    return cut_memory(cut(index, part), key_type=key_type, value_type=value_type)


def cut_memory(made: Cut, *, key_type: str = "f16", value_type: str = "f16") -> PartMemory:
    """Needs of a cut: read from the header it will be loaded with."""
    local = join([parse(made.header, made.size)])
    keys, values = _cache_elements(local)
    return PartMemory(
        weights_bytes=local.tensor_bytes,
        cache_bytes_per_token=_stored_bytes(keys, key_type) + _stored_bytes(values, value_type),
        state_bytes_per_session=_state_bytes(local),
        compute_bytes_per_row=_compute_bytes(local, output=made.part.output),
    )


def layer_bytes(index: ModelIndex) -> list[int]:
    """Weights of each layer."""
    out = [0] * real_layer_count(index)
    for name, tensor in index.tensors.items():
        head, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        if head == "blk" and number.isdigit() and int(number) < len(out):
            out[int(number)] += tensor.size
    return out


def _stored_bytes(elements: int, kind: str) -> int:
    known = _TYPES.get(kind.lower())
    if known is None:
        raise PlanError(f"{kind} is not a type for keys and values", hint="use f16, q8_0 or q4_0")
    return -(-elements // known.block_elements) * known.block_bytes


def _recurrent(local: ModelIndex) -> list[bool]:
    layers = range(local.layer_count)
    names = ("ssm_conv1d.weight", "shortconv.conv.weight")
    return [any(f"blk.{layer}.{name}" in local.tensors for name in names) for layer in layers]


def _cache_elements(local: ModelIndex) -> tuple[int, int]:
    """Elements of keys and of values per token, over all attention layers."""
    heads = local.parameter_ints("attention.head_count", 1)
    key = "attention.head_count_kv"
    kv_heads = local.parameter_ints(key) if local.parameter(key) is not None else heads
    width = local.parameter_int("embedding_length") // max(1, *heads)
    pattern = local.parameter("attention.sliding_window_pattern")
    keys = values = 0
    for layer, count in enumerate(kv_heads):
        if f"blk.{layer}.attn_output.weight" not in local.tensors:
            continue
        slides = isinstance(pattern, list) and len(pattern) > layer and bool(pattern[layer])
        keys += count * _head_width(local, "key", slides, width)
        values += count * _head_width(local, "value", slides, width)
    return keys, 0 if local.parameter("attention.key_length_mla") else values


def _head_width(local: ModelIndex, side: str, slides: bool, width: int) -> int:
    dense = local.parameter_int(f"attention.{side}_length", width)
    return local.parameter_int(f"attention.{side}_length_swa", dense) if slides else dense


def _state_bytes(local: ModelIndex) -> int:
    """Float32 states of the recurrent layers (llama.cpp: n_embd_r and n_embd_s)."""
    layers = sum(_recurrent(local))
    if not layers:
        return 0
    cache = local.parameter_int("shortconv.l_cache", 0)
    if cache:
        return layers * local.parameter_int("embedding_length") * (cache - 1) * 4
    inner, state = local.parameter_int("ssm.inner_size"), local.parameter_int("ssm.state_size")
    groups = local.parameter_int("ssm.group_count", 0)
    convolution = (local.parameter_int("ssm.conv_kernel") - 1) * (inner + 2 * groups * state)
    return layers * (convolution + state * inner) * 4


def _compute_bytes(local: ModelIndex, *, output: bool) -> int:
    width = local.parameter_int("embedding_length")
    used = max(local.parameter_ints("expert_used_count", 0))
    dense = max(local.parameter_ints("feed_forward_length", 0))
    expert = max(local.parameter_ints("expert_feed_forward_length", 0))
    widest = max(dense, used * (expert or dense))
    vocabulary = vocabulary_size(local) if output else 0
    return 4 * max(3 * widest + 4 * width, vocabulary + 2 * width)
