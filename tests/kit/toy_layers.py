"""Shapes of toy layers, by architecture, in ggml's order (innermost first)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Toy:
    """Sizes of a toy; shapes below are in ggml's order (innermost first)."""

    architecture: str
    layers: int = 5
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_width: int = 16
    ff: int = 96
    vocabulary: int = 128
    experts: int = 4
    experts_used: int = 2
    type: str = "F32"
    tied: bool = False
    seed: int = 0
    text: bool = False
    """With a byte tokenizer instead of none."""
    parameters: dict[str, Any] = field(default_factory=dict)
    features: frozenset[str] = frozenset()

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_width

    @property
    def q_width(self) -> int:
        return self.heads * self.head_width


Layer = Callable[[Toy, int], dict[str, Shape]]


def attention(toy: Toy, *, bias: bool = False) -> dict[str, Shape]:
    shapes = {
        "attn_norm.weight": (toy.width,),
        "attn_q.weight": (toy.width, toy.q_width),
        "attn_k.weight": (toy.width, toy.kv_width),
        "attn_v.weight": (toy.width, toy.kv_width),
        "attn_output.weight": (toy.q_width, toy.width),
    }
    if bias:
        shapes |= {
            "attn_q.bias": (toy.q_width,),
            "attn_k.bias": (toy.kv_width,),
            "attn_v.bias": (toy.kv_width,),
        }
    return shapes


def head_norms(toy: Toy) -> dict[str, Shape]:
    return {"attn_q_norm.weight": (toy.head_width,), "attn_k_norm.weight": (toy.head_width,)}


def feed_forward(toy: Toy) -> dict[str, Shape]:
    return {
        "ffn_norm.weight": (toy.width,),
        "ffn_gate.weight": (toy.width, toy.ff),
        "ffn_up.weight": (toy.width, toy.ff),
        "ffn_down.weight": (toy.ff, toy.width),
    }


def experts(toy: Toy, norm: str = "ffn_norm.weight") -> dict[str, Shape]:
    return {
        norm: (toy.width,),
        "ffn_gate_inp.weight": (toy.width, toy.experts),
        "ffn_gate_exps.weight": (toy.width, toy.ff, toy.experts),
        "ffn_up_exps.weight": (toy.width, toy.ff, toy.experts),
        "ffn_down_exps.weight": (toy.ff, toy.width, toy.experts),
    }


def shared_expert(toy: Toy, gate: bool = True) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {
        "ffn_gate_shexp.weight": (toy.width, toy.ff),
        "ffn_up_shexp.weight": (toy.width, toy.ff),
        "ffn_down_shexp.weight": (toy.ff, toy.width),
    }
    return shapes | ({"ffn_gate_inp_shexp.weight": (toy.width,)} if gate else {})


def post_norms(toy: Toy) -> dict[str, Shape]:
    return {"post_attention_norm.weight": (toy.width,), "post_ffw_norm.weight": (toy.width,)}


def _llama(toy: Toy, layer: int) -> dict[str, Shape]:
    biased = (
        {"attn_output.bias": (toy.width,), "ffn_down.bias": (toy.width,)} if "biases" in toy.features else {}
    )
    return attention(toy) | (experts(toy) if "experts" in toy.features else feed_forward(toy)) | biased


def _phi3(toy: Toy, layer: int) -> dict[str, Shape]:
    return {
        "attn_norm.weight": (toy.width,),
        "attn_qkv.weight": (toy.width, toy.q_width + 2 * toy.kv_width),
        "attn_output.weight": (toy.q_width, toy.width),
        "ffn_norm.weight": (toy.width,),
        "ffn_up.weight": (toy.width, 2 * toy.ff),
        "ffn_down.weight": (toy.ff, toy.width),
    }


def _olmo2(toy: Toy, layer: int) -> dict[str, Shape]:
    shapes = attention(toy) | feed_forward(toy) | post_norms(toy)
    del shapes["attn_norm.weight"], shapes["ffn_norm.weight"]
    return shapes | {"attn_q_norm.weight": (toy.width,), "attn_k_norm.weight": (toy.kv_width,)}


def _starcoder2(toy: Toy, layer: int) -> dict[str, Shape]:
    shapes = attention(toy, bias=True) | feed_forward(toy)
    del shapes["ffn_gate.weight"]
    return shapes | {
        "attn_norm.bias": (toy.width,),
        "ffn_norm.bias": (toy.width,),
        "attn_output.bias": (toy.width,),
        "ffn_up.bias": (toy.ff,),
        "ffn_down.bias": (toy.width,),
    }


def _gpt_oss(toy: Toy, layer: int) -> dict[str, Shape]:
    return (
        attention(toy, bias=True)
        | experts(toy, "post_attention_norm.weight")
        | {
            "attn_sinks.weight": (toy.heads,),
            "attn_output.bias": (toy.width,),
            "ffn_gate_inp.bias": (toy.experts,),
            "ffn_gate_exps.bias": (toy.ff, toy.experts),
            "ffn_up_exps.bias": (toy.ff, toy.experts),
            "ffn_down_exps.bias": (toy.width, toy.experts),
        }
    )


def _deepseek2(toy: Toy, layer: int) -> dict[str, Shape]:
    rank, rope, nope, value = 32, 8, 16, 16
    shapes: dict[str, Shape] = {
        "attn_norm.weight": (toy.width,),
        "attn_kv_a_norm.weight": (rank,),
        "attn_kv_a_mqa.weight": (toy.width, rank + rope),
        "attn_k_b.weight": (nope, rank, toy.heads),
        "attn_v_b.weight": (rank, value, toy.heads),
        "attn_output.weight": (toy.heads * value, toy.width),
    }
    if "q_lora" in toy.features:
        shapes |= {
            "attn_q_a.weight": (toy.width, 24),
            "attn_q_a_norm.weight": (24,),
            "attn_q_b.weight": (24, toy.heads * (rope + nope)),
        }
    else:
        shapes["attn_q.weight"] = (toy.width, toy.heads * (rope + nope))
    if layer < 2:
        return shapes | feed_forward(toy)
    return shapes | experts(toy) | shared_expert(toy, gate=False)


def _lfm2(toy: Toy, layer: int) -> dict[str, Shape]:
    if layer % 3 == 1:
        return attention(toy) | head_norms(toy) | feed_forward(toy)
    return feed_forward(toy) | {
        "attn_norm.weight": (toy.width,),
        "shortconv.conv.weight": (3, toy.width),
        "shortconv.in_proj.weight": (toy.width, 3 * toy.width),
        "shortconv.out_proj.weight": (toy.width, toy.width),
    }


def delta_net(toy: Toy, gates: dict[str, Shape]) -> dict[str, Shape]:
    """A layer of gated delta net: two groups of keys, four heads of values, 16 columns each."""
    key, value, heads = 2 * 16, 4 * 16, 4
    return {
        "attn_norm.weight": (toy.width,),
        "attn_qkv.weight": (toy.width, 2 * key + value),
        "attn_gate.weight": (toy.width, value),
        "ssm_conv1d.weight": (4, 2 * key + value),
        "ssm_dt.bias": (heads,),
        "ssm_a": (heads,),
        **gates,
        "ssm_norm.weight": (16,),
        "ssm_out.weight": (value, toy.width),
    }


DELTA_NET = {
    "full_attention_interval": 2,
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 64,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 2,
}
"""The same layer in a model's metadata."""


def _qwen3next(toy: Toy, layer: int) -> dict[str, Shape]:
    shapes = experts(toy, "post_attention_norm.weight") | shared_expert(toy)
    if layer % 2 == 1:
        return shapes | attention(toy) | head_norms(toy) | {"attn_q.weight": (toy.width, 2 * toy.q_width)}
    return shapes | delta_net(toy, {"ssm_ba.weight": (toy.width, 2 * 4)})


LAYERS: dict[str, Layer] = {
    "llama": _llama,
    "qwen2": lambda toy, layer: attention(toy, bias=True) | feed_forward(toy),
    "qwen2vl": lambda toy, layer: attention(toy, bias=True) | feed_forward(toy),
    "qwen2moe": lambda toy, layer: attention(toy, bias=True) | experts(toy) | shared_expert(toy),
    "qwen3": lambda toy, layer: attention(toy) | head_norms(toy) | feed_forward(toy),
    "qwen3moe": lambda toy, layer: attention(toy) | head_norms(toy) | experts(toy),
    "gemma": lambda toy, layer: attention(toy) | feed_forward(toy),
    "gemma2": lambda toy, layer: attention(toy) | feed_forward(toy) | post_norms(toy),
    "gemma3": lambda toy, layer: attention(toy) | head_norms(toy) | feed_forward(toy) | post_norms(toy),
    "phi3": _phi3,
    "granite": lambda toy, layer: attention(toy) | feed_forward(toy),
    "granitemoe": lambda toy, layer: attention(toy) | experts(toy),
    "olmo2": _olmo2,
    "starcoder2": _starcoder2,
    "gpt-oss": _gpt_oss,
    "deepseek2": _deepseek2,
    "lfm2": _lfm2,
    "qwen3next": _qwen3next,
}
