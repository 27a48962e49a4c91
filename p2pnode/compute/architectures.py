"""One table: what each architecture needs so that a cut of it computes what the whole model computes.

Layer numbers inside llama.cpp's graphs are the trap: a slice renumbers its layers. Every row here is proved by a
toy model in tests/unit/compute/test_surgery_*; an architecture that is not in the table runs whole.
Source of the facts: llama.cpp's src/models/*.cpp as vendored by llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from p2pnode.compute.gguf_values import ModelIndex
from p2pnode.errors import ArchitectureUnsupported

Scale = Literal["none", "width", "width_tokens", "key"]


@dataclass(frozen=True, slots=True)
class Sliding:
    """Which layers slide where the file does not list them: every `period`-th is dense."""

    period: int
    without: Literal["endless", "off", "inert"] = "endless"
    """How a part without sliding layers satisfies a graph that insists on one: all slide over an endless window;
    a window of 0 turns sliding off; or (where dense layers differ in more) an inert sliding layer is added."""

    def pattern(self, layer_count: int, step: int) -> list[bool]:
        if step == 0:
            return [True] * layer_count
        return [layer % step < step - 1 for layer in range(layer_count)]


@dataclass(frozen=True, slots=True)
class Architecture:
    name: str
    scale: Scale = "none"
    """What llama.cpp multiplies embeddings with: nothing, sqrt(n_embd) (also for rows, or for tokens only), or
    the `embedding_scale` key (which can be switched off)."""
    scale_default: float = 0.0
    sliding: Sliding | None = None
    boundary: int = 1
    """Cuts fall on multiples of this."""
    layers_min: int = 1
    """With fewer layers llama.cpp aborts: inert ones are added, or (with boundaries) the part is refused."""
    positions: Literal["one", "four", "sections"] = "one"
    """Position numbers a row needs: four for M-RoPE, in some families only if the file has rope sections."""
    rope_freqs_dense_only: bool = False
    """`rope_freqs` belongs to dense layers: a part without one must not have it."""
    sections_for_rows: bool = False
    """llama.cpp takes rows only with rope sections: they are written, and equal positions turn heads as before."""
    output_norm: str = "output_norm"
    output_required: bool = False
    """llama.cpp insists on `output.weight`."""
    leading_dense: bool = False
    output_bias_required: bool = False
    """llama.cpp insists on `output.bias`."""
    recurrent: Literal["", "head_count_kv", "interval", "all"] = ""
    """How recurrent layers are told from attention layers."""
    shardable: bool = False
    shard_as: str = ""
    """A shard is written as this architecture: the same graph, but its attention need not be as wide as the model."""
    shard_refusal: str = "its tensors have not been proved to be cut by heads"
    inert_ones: tuple[str, ...] = ()
    """Tensors of an inert layer that are one instead of zero, because the graph divides by what they give."""
    check: Callable[[ModelIndex], str] | None = None
    """The reason why this particular model cannot be cut, or nothing."""


def _special_count(*counts: int) -> Callable[[ModelIndex], str]:
    def check(index: ModelIndex) -> str:
        count = index.layer_count - index.parameter_int("nextn_predict_layers", 0)
        if count in counts:
            return f"llama.cpp chooses its attention by the layer count {count}"
        return ""

    return check


def _many_layers(index: ModelIndex) -> str:
    return "llama.cpp expects query norms from 64 layers on" if index.layer_count >= 64 else ""


def _no_rows(index: ModelIndex) -> str:
    return "" if has_rope_sections(index) else "llama.cpp takes no rows for models without rope sections"


def has_rope_sections(index: ModelIndex) -> bool:
    sections = index.parameter("rope.dimension_sections")
    return isinstance(sections, list) and len(sections) > 1 and all(sections[:2])


def _shared_layers(index: ModelIndex) -> str:
    shared = index.parameter("attention.shared_kv_layers") or index.parameter(
        "embedding_length_per_layer_input"
    )
    return "its layers share keys, values or per-layer embeddings across the cut" if shared else ""


def _expert_step(*steps: int) -> Callable[[ModelIndex], str]:
    def check(index: ModelIndex) -> str:
        known = index.parameter("interleave_moe_layer_step") in steps
        return "" if known else "its expert layers do not repeat where it can be cut"

    return check


def _deepstack(index: ModelIndex) -> str:
    return "its deepstack inputs belong to fixed layers" if index.parameter("deepstack_mapping") else ""


_SQUARE = "llama.cpp wants its attention as wide as the model"
_FUSED = "its query, key and value are one tensor"
_FUSED_FF = "its gate and up projections are one tensor"
_WIDE_NORMS = "its query and key norms span all heads"
_STATE = "its recurrent layers keep one state over all heads"

_TABLE = (
    Architecture("llama", shardable=True),
    Architecture("qwen2", shardable=True, shard_as="pangu-embedded"),
    Architecture(
        "qwen2moe",
        output_required=True,
        inert_ones=("ffn_norm.weight", "ffn_gate_inp_shexp.weight"),
        shard_refusal=_SQUARE,
    ),
    Architecture("qwen2vl", positions="four", shard_refusal=_SQUARE),
    Architecture("qwen3", shardable=True),
    Architecture("qwen3moe", shardable=True),
    Architecture("gemma", scale="width", shardable=True),
    Architecture("gemma2", scale="width", sliding=Sliding(2), shardable=True, check=_special_count(46)),
    Architecture(
        "gemma3",
        scale="width_tokens",
        sliding=Sliding(6, without="off"),
        shardable=True,
        check=_special_count(62),
    ),
    Architecture("phi3", shard_refusal=_FUSED),
    Architecture("granite", scale="key", shardable=True, check=_deepstack),
    Architecture("granitemoe", scale="key", shardable=True),
    Architecture(
        "olmo2",
        sliding=Sliding(4, without="off"),
        output_required=True,
        shard_refusal=_WIDE_NORMS,
    ),
    Architecture("starcoder2", shard_refusal=_SQUARE),
    Architecture("gpt-oss", sliding=Sliding(2), output_required=True, shardable=True),
    Architecture(
        "deepseek2", leading_dense=True, shard_refusal="latent attention (MLA) shares one key over all heads"
    ),
    Architecture("mistral3", shardable=True),
    Architecture("smollm3", boundary=4, shardable=True),
    Architecture("ernie4_5", positions="sections", shardable=True),
    Architecture("arcee", shardable=True),
    Architecture("minicpm", scale="key", scale_default=12.0, shardable=True),
    Architecture("hunyuan-dense", shardable=True),
    Architecture("seed_oss", shardable=True),
    Architecture("internlm2", output_required=True, shard_refusal=_SQUARE),
    Architecture("command-r", check=_many_layers, shard_refusal=_SQUARE),
    Architecture("cohere2", sliding=Sliding(4, without="inert"), shard_refusal=_SQUARE),
    Architecture("exaone4", check=_special_count(64), shard_refusal=_SQUARE),
    Architecture("glm4", positions="four", shard_refusal=_FUSED_FF, check=_no_rows),
    Architecture("glm4moe", positions="four", sections_for_rows=True, leading_dense=True),
    Architecture("olmo", shard_refusal=_SQUARE),
    Architecture("olmoe", output_required=True, shard_refusal=_WIDE_NORMS),
    Architecture("minimax-m2", output_required=True, shard_refusal=_WIDE_NORMS),
    Architecture("stablelm", output_required=True, shard_refusal=_SQUARE),
    Architecture("phi2", output_required=True, output_bias_required=True, shard_refusal=_SQUARE),
    Architecture("falcon", shard_refusal=_FUSED),
    Architecture("gptneox", output_required=True, shard_refusal=_FUSED),
    Architecture("dbrx", output_required=True, shard_refusal=_FUSED),
    Architecture("nemotron", output_required=True, shard_refusal=_SQUARE),
    Architecture("deepseek", leading_dense=True, shard_refusal=_SQUARE),
    Architecture("qwen3vl", positions="four", shardable=True),
    Architecture("qwen3vlmoe", positions="four", shardable=True),
    Architecture("exaone", shardable=True),
    Architecture("chatglm", shard_refusal=_FUSED_FF),
    Architecture("apertus", output_required=True, shardable=True),
    Architecture("hunyuan-moe"),
    Architecture("dots1", output_required=True, leading_dense=True),
    Architecture("ernie4_5-moe", leading_dense=True, check=_expert_step(1)),
    Architecture(
        "llama4", boundary=4, layers_min=4, sliding=Sliding(4, without="inert"), check=_expert_step(1, 2, 4)
    ),
    Architecture(
        "gemma4",
        layers_min=2,
        scale="width_tokens",
        sliding=Sliding(0, without="inert"),
        rope_freqs_dense_only=True,
        inert_ones=("layer_output_scale.weight",),
        check=_shared_layers,
    ),
    Architecture("jamba", recurrent="head_count_kv", shard_refusal=_STATE),
    Architecture("falcon-h1", recurrent="all", shard_refusal=_STATE),
    Architecture("mamba2", recurrent="all", shard_refusal=_STATE),
    Architecture("mamba", recurrent="all", shard_refusal=_STATE),
    Architecture("granitehybrid", scale="key", recurrent="head_count_kv", shard_refusal=_STATE),
    Architecture("qwen35", positions="four", recurrent="interval", shard_refusal=_STATE),
    Architecture("qwen35moe", positions="four", recurrent="interval", shard_refusal=_STATE),
    Architecture(
        "lfm2moe",
        output_norm="token_embd_norm",
        leading_dense=True,
        recurrent="head_count_kv",
        shard_refusal=_STATE,
    ),
    Architecture("lfm2", output_norm="token_embd_norm", recurrent="head_count_kv", shard_refusal=_STATE),
    Architecture("qwen3next", recurrent="interval", shard_refusal=_STATE),
)

ARCHITECTURES: dict[str, Architecture] = {row.name: row for row in _TABLE}

REFUSED: dict[str, str] = {
    "gemma3n": "its layers share keys, values and per-layer embeddings across the cut",
    "baichuan": "its 7B and 13B graphs are told apart by the layer count",
    "minicpm3": "its scales depend on the layer count",
    "minimax-01": "its linear attention decays by the layer number",
    "rwkv6": "its state passes between tokens outside the hidden rows",
    "rwkv7": "the first layer's value passes to all others outside the hidden rows",
    "arwkv7": "the first layer's value passes to all others outside the hidden rows",
    "bloom": "its embeddings are normalised inside the graph",
    "deepseek4": "its hyper-connections carry several streams between layers",
    "bert": "it is an encoder: it runs whole",
    "nomic-bert": "it is an encoder: it runs whole",
    "jina-bert-v2": "it is an encoder: it runs whole",
    "modern-bert": "it is an encoder: it runs whole",
    "t5": "it has an encoder and a decoder",
    "dream": "it is a diffusion model: it runs whole",
    "llada": "it is a diffusion model: it runs whole",
}


def architecture_of(index: ModelIndex) -> Architecture:
    """The table's row for a model, or ArchitectureUnsupported with the reason why it cannot be cut."""
    name = index.architecture
    row = ARCHITECTURES.get(name)
    if row is None:
        reason = REFUSED.get(name, "it is not in the table of architectures proved to be cut without change")
        raise refusal(name, reason)
    reason = row.check(index) if row.check else ""
    if reason:
        raise refusal(name, reason)
    return row


def refusal(name: str, reason: str) -> ArchitectureUnsupported:
    return ArchitectureUnsupported(
        f"{name} models cannot be cut like this: {reason}",
        hint="run it whole on one device, or choose another model",
        architecture=name,
        reason=reason,
    )


def row_scale(row: Architecture, index: ModelIndex) -> float:
    """What rows given to llama.cpp have to be divided by, because its graph multiplies them again."""
    return math.sqrt(index.parameter_int("embedding_length")) if row.scale == "width" else 1.0


def token_scale(row: Architecture, index: ModelIndex) -> float:
    """What an embedding row is multiplied with to become the first layer's input."""
    if row.scale in ("width", "width_tokens"):
        return math.sqrt(index.parameter_int("embedding_length"))
    if row.scale == "key":
        return index.parameter_float("embedding_scale", row.scale_default) or 1.0
    return 1.0


def position_count(row: Architecture, index: ModelIndex) -> int:
    """Position numbers llama.cpp wants for each row."""
    if row.positions == "sections":
        return 4 if has_rope_sections(index) else 1
    return 4 if row.positions == "four" else 1
