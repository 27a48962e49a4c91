"""More toy families: layers and parameters of architectures beside the most common ones."""

from __future__ import annotations

from typing import Any

from tests.kit.toy_layers import (
    DELTA_NET,
    Layer,
    Shape,
    Toy,
    attention,
    delta_net,
    experts,
    feed_forward,
    head_norms,
    post_norms,
    shared_expert,
)

MOE = frozenset(
    {
        "glm4moe",
        "olmoe",
        "deepseek",
        "lfm2moe",
        "qwen3vlmoe",
        "qwen35moe",
        "minimax-m2",
        "dbrx",
        "hunyuan-moe",
        "dots1",
        "ernie4_5-moe",
        "llama4",
        "jamba",
    }
)
LAYER_NORM = frozenset(
    {"cohere2", "stablelm", "phi2", "olmo", "command-r", "falcon", "gptneox", "nemotron", "dbrx"}
)
OUTPUT_NORM_BIAS = frozenset({"stablelm", "phi2", "falcon", "gptneox", "nemotron"})


def _without(shapes: dict[str, Shape], *names: str) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes.items() if name not in names}


def _biases(toy: Toy, *names: str) -> dict[str, Shape]:
    return {f"{name}.bias": (toy.width,) for name in names}


def _fused(toy: Toy, *, bias: bool = False) -> dict[str, Shape]:
    width = toy.q_width + 2 * toy.kv_width
    shapes: dict[str, Shape] = {
        "attn_norm.weight": (toy.width,),
        "attn_qkv.weight": (toy.width, width),
        "attn_output.weight": (toy.q_width, toy.width),
    }
    return shapes | ({"attn_qkv.bias": (width,)} if bias else {})


def _wide_norms(toy: Toy) -> dict[str, Shape]:
    return {"attn_q_norm.weight": (toy.q_width,), "attn_k_norm.weight": (toy.kv_width,)}


def _plain_mlp(toy: Toy) -> dict[str, Shape]:
    return {"ffn_up.weight": (toy.width, toy.ff), "ffn_down.weight": (toy.ff, toy.width)}


def _llama(toy: Toy, layer: int) -> dict[str, Shape]:
    return attention(toy) | feed_forward(toy)


def _with_head_norms(toy: Toy, layer: int) -> dict[str, Shape]:
    return _llama(toy, layer) | head_norms(toy)


def _parallel(toy: Toy, layer: int) -> dict[str, Shape]:
    return _without(_llama(toy, layer), "ffn_norm.weight")


def _exaone4(toy: Toy, layer: int) -> dict[str, Shape]:
    shapes = _with_head_norms(toy, layer) | post_norms(toy)
    return _without(shapes, "attn_norm.weight", "ffn_norm.weight")


def _seed_oss(toy: Toy, layer: int) -> dict[str, Shape]:
    shapes = attention(toy, bias=True) | feed_forward(toy)
    return _without(shapes, "ffn_norm.weight") | {"post_attention_norm.weight": (toy.width,)}


def _glm4(toy: Toy, layer: int) -> dict[str, Shape]:
    shapes = attention(toy, bias=True) | feed_forward(toy) | post_norms(toy)
    return _without(shapes, "ffn_gate.weight") | {"ffn_up.weight": (toy.width, 2 * toy.ff)}


def _glm4moe(toy: Toy, layer: int) -> dict[str, Shape]:
    norm: dict[str, Shape] = {"post_attention_norm.weight": (toy.width,)}
    shapes = attention(toy, bias=True) | head_norms(toy) | norm
    if layer < 1:
        return shapes | _without(feed_forward(toy), "ffn_norm.weight")
    shapes |= experts(toy, "post_attention_norm.weight") | shared_expert(toy, gate=False)
    shapes |= {"exp_probs_b.bias": (toy.experts,)}
    if "nextn" not in toy.features or layer < toy.layers - 1:
        return shapes
    norms: dict[str, Shape] = {f"nextn.{name}.weight": (toy.width,) for name in ("enorm", "hnorm")}
    return shapes | norms | {"nextn.eh_proj.weight": (2 * toy.width, toy.width)}


def _olmoe(toy: Toy, layer: int) -> dict[str, Shape]:
    return attention(toy) | _wide_norms(toy) | experts(toy)


def _minimax(toy: Toy, layer: int) -> dict[str, Shape]:
    return _olmoe(toy, layer) | {"exp_probs_b.bias": (toy.experts,)}


def _stablelm(toy: Toy, layer: int) -> dict[str, Shape]:
    return attention(toy, bias=True) | feed_forward(toy) | _biases(toy, "attn_norm", "ffn_norm")


def _phi2(toy: Toy, layer: int) -> dict[str, Shape]:
    shapes = attention(toy, bias=True) | _plain_mlp(toy) | {"ffn_up.bias": (toy.ff,)}
    return shapes | _biases(toy, "attn_norm", "attn_output", "ffn_down")


def _olmo(toy: Toy, layer: int) -> dict[str, Shape]:
    return _without(_llama(toy, layer), "attn_norm.weight", "ffn_norm.weight")


def _falcon(toy: Toy, layer: int) -> dict[str, Shape]:
    return _fused(toy) | _plain_mlp(toy) | _biases(toy, "attn_norm")


def _gptneox(toy: Toy, layer: int) -> dict[str, Shape]:
    shapes = (
        _fused(toy, bias=True) | _plain_mlp(toy) | {"ffn_norm.weight": (toy.width,), "ffn_up.bias": (toy.ff,)}
    )
    return shapes | _biases(toy, "attn_norm", "attn_output", "ffn_norm", "ffn_down")


def _nemotron(toy: Toy, layer: int) -> dict[str, Shape]:
    shapes = attention(toy, bias=True) | _plain_mlp(toy) | {"ffn_norm.weight": (toy.width,)}
    return (
        shapes | {"ffn_up.bias": (toy.ff,)} | _biases(toy, "attn_norm", "attn_output", "ffn_norm", "ffn_down")
    )


def _deepseek(toy: Toy, layer: int) -> dict[str, Shape]:
    if layer < 1:
        return _llama(toy, layer)
    return attention(toy) | experts(toy) | shared_expert(toy, gate=False)


def _dbrx(toy: Toy, layer: int) -> dict[str, Shape]:
    return _fused(toy) | _without(experts(toy), "ffn_norm.weight") | {"attn_output_norm.weight": (toy.width,)}


def _short_convolution(toy: Toy) -> dict[str, Shape]:
    return {
        "attn_norm.weight": (toy.width,),
        "shortconv.conv.weight": (3, toy.width),
        "shortconv.in_proj.weight": (toy.width, 3 * toy.width),
        "shortconv.out_proj.weight": (toy.width, toy.width),
    }


def _lfm2moe(toy: Toy, layer: int) -> dict[str, Shape]:
    mixer = attention(toy) | head_norms(toy) if layer % 3 == 1 else _short_convolution(toy)
    if layer < 2:
        return mixer | feed_forward(toy)
    return mixer | experts(toy) | {"exp_probs_b.bias": (toy.experts,)}


def _mamba2(toy: Toy) -> dict[str, Shape]:
    inner, state, heads, groups = 2 * toy.width, 16, 4, 1
    return {
        "attn_norm.weight": (toy.width,),
        "ssm_in.weight": (toy.width, 2 * inner + 2 * groups * state + heads),
        "ssm_conv1d.weight": (4, inner + 2 * groups * state),
        "ssm_conv1d.bias": (inner + 2 * groups * state,),
        "ssm_dt.bias": (heads,),
        "ssm_a": (1, heads),
        "ssm_d": (1, heads),
        "ssm_norm.weight": (inner // groups, groups),
        "ssm_out.weight": (inner, toy.width),
    }


def _granitehybrid(toy: Toy, layer: int) -> dict[str, Shape]:
    return (attention(toy) if layer % 3 == 2 else _mamba2(toy)) | feed_forward(toy)


def _mamba(toy: Toy, layer: int) -> dict[str, Shape]:
    inner, state, rank = 2 * toy.width, 16, 4
    return {
        "attn_norm.weight": (toy.width,),
        "ssm_in.weight": (toy.width, 2 * inner),
        "ssm_conv1d.weight": (4, inner),
        "ssm_conv1d.bias": (inner,),
        "ssm_x.weight": (inner, rank + 2 * state),
        "ssm_dt.weight": (rank, inner),
        "ssm_dt.bias": (inner,),
        "ssm_a": (state, inner),
        "ssm_d": (inner,),
        "ssm_out.weight": (inner, toy.width),
    }


def _qwen35(toy: Toy, layer: int) -> dict[str, Shape]:
    if toy.architecture == "qwen35moe":
        tail = experts(toy, "post_attention_norm.weight") | shared_expert(toy)
    else:
        tail = _without(feed_forward(toy), "ffn_norm.weight") | {"post_attention_norm.weight": (toy.width,)}
    if layer % 2 == 1:
        return tail | attention(toy) | head_norms(toy) | {"attn_q.weight": (toy.width, 2 * toy.q_width)}
    gates = {"ssm_beta.weight": (toy.width, 4), "ssm_alpha.weight": (toy.width, 4)}
    return tail | delta_net(toy, gates)


def _mixed_experts(toy: Toy, layer: int) -> dict[str, Shape]:
    return attention(toy) | head_norms(toy) | experts(toy) | shared_expert(toy, gate=False)


def _dots1(toy: Toy, layer: int) -> dict[str, Shape]:
    if layer < 1:
        return _with_head_norms(toy, layer)
    return _mixed_experts(toy, layer) | {"exp_probs_b.bias": (toy.experts,)}


def _ernie_experts(toy: Toy, layer: int) -> dict[str, Shape]:
    return _deepseek(toy, layer)


def _llama4(toy: Toy, layer: int) -> dict[str, Shape]:
    if layer % 2 == 0:
        return _llama(toy, layer)
    return attention(toy) | experts(toy) | shared_expert(toy, gate=False)


def _gemma4(toy: Toy, layer: int) -> dict[str, Shape]:
    """Dense layers have wider heads, and fewer of them for keys and values."""
    dense = layer % 3 == 2
    width, kv = (32, 1) if dense else (16, 2)
    return (
        feed_forward(toy)
        | post_norms(toy)
        | {
            "attn_norm.weight": (toy.width,),
            "attn_q.weight": (toy.width, toy.heads * width),
            "attn_k.weight": (toy.width, kv * width),
            "attn_v.weight": (toy.width, kv * width),
            "attn_output.weight": (toy.heads * width, toy.width),
            "attn_q_norm.weight": (width,),
            "attn_k_norm.weight": (width,),
            "layer_output_scale.weight": (1,),
        }
    )


def _jamba(toy: Toy, layer: int) -> dict[str, Shape]:
    tail = experts(toy) if layer % 2 == 1 else feed_forward(toy)
    if layer % 3 == 1:
        return tail | attention(toy)
    norms: dict[str, Shape] = {
        "ssm_dt_norm.weight": (4,),
        "ssm_b_norm.weight": (16,),
        "ssm_c_norm.weight": (16,),
    }
    return tail | _mamba(toy, layer) | norms


def _falcon_h1(toy: Toy, layer: int) -> dict[str, Shape]:
    shapes = _without(attention(toy) | feed_forward(toy), "ffn_norm.weight") | {"ffn_norm": (toy.width,)}
    return shapes | _mamba2(toy)


LAYERS: dict[str, Layer] = {
    "exaone": _llama,
    "chatglm": lambda toy, layer: _without(
        _glm4(toy, layer), "post_attention_norm.weight", "post_ffw_norm.weight"
    ),
    "apertus": lambda toy, layer: _without(_with_head_norms(toy, layer), "ffn_gate.weight"),
    "hunyuan-moe": _mixed_experts,
    "dots1": _dots1,
    "ernie4_5-moe": _ernie_experts,
    "llama4": _llama4,
    "gemma4": _gemma4,
    "jamba": _jamba,
    "falcon-h1": _falcon_h1,
    "mamba2": lambda toy, layer: _mamba2(toy),
    "mistral3": _llama,
    "smollm3": _llama,
    "ernie4_5": _llama,
    "internlm2": _llama,
    "minicpm": _llama,
    "arcee": lambda toy, layer: _without(_llama(toy, layer), "ffn_gate.weight"),
    "cohere2": _parallel,
    "command-r": _parallel,
    "exaone4": _exaone4,
    "seed_oss": _seed_oss,
    "glm4": _glm4,
    "glm4moe": _glm4moe,
    "olmo": _olmo,
    "olmoe": _olmoe,
    "minimax-m2": _minimax,
    "stablelm": _stablelm,
    "phi2": _phi2,
    "falcon": _falcon,
    "gptneox": _gptneox,
    "nemotron": _nemotron,
    "deepseek": _deepseek,
    "dbrx": _dbrx,
    "hunyuan-dense": _with_head_norms,
    "qwen3vl": _with_head_norms,
    "qwen3vlmoe": lambda toy, layer: attention(toy) | head_norms(toy) | experts(toy),
    "lfm2moe": _lfm2moe,
    "granitehybrid": _granitehybrid,
    "mamba": _mamba,
    "qwen35": _qwen35,
    "qwen35moe": _qwen35,
}

_DELTA_NET = {**DELTA_NET, "rope.dimension_sections": [2, 3, 3, 0]}
_GRANITE = {"logit_scale": 4.0, "residual_scale": 0.3, "embedding_scale": 12.0, "attention.scale": 0.2}


def parameters(toy: Toy) -> dict[str, Any]:
    """What an architecture's file says beside the common sizes."""
    wide: dict[str, Any] = {"expert_feed_forward_length": toy.ff}
    every_third = [toy.kv_heads if layer % 3 == 1 else 0 for layer in range(toy.layers)]
    mamba2 = {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 2 * toy.width,
        "ssm.state_size": 16,
        "ssm.time_step_rank": 4,
        "ssm.group_count": 1,
    }
    known: dict[str, dict[str, Any]] = {
        "apertus": {f"xielu.{key}": 0.5 for key in ("alpha_n", "alpha_p", "beta", "eps")},
        "hunyuan-moe": wide,
        "dots1": {"expert_shared_count": 1, "leading_dense_block_count": 1, "expert_gating_func": 2} | wide,
        "ernie4_5-moe": {
            "interleave_moe_layer_step": 1,
            "leading_dense_block_count": 1,
            "expert_shared_feed_forward_length": toy.ff,
        }
        | wide,
        "llama4": {"interleave_moe_layer_step": 2} | wide,
        "gemma4": {
            "attention.sliding_window_pattern": [layer % 3 != 2 for layer in range(toy.layers)],
            "attention.sliding_window": 6,
            "attention.head_count_kv": [1 if layer % 3 == 2 else 2 for layer in range(toy.layers)],
            "attention.key_length": 32,
            "attention.value_length": 32,
            "attention.key_length_swa": 16,
            "attention.value_length_swa": 16,
            "rope.dimension_count": 32,
            "rope.dimension_count_swa": 16,
            "embedding_length_per_layer_input": 0,
            "rope.freq_base": 1e6,
        },
        "jamba": {
            "attention.head_count_kv": every_third,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 2 * toy.width,
            "ssm.state_size": 16,
            "ssm.time_step_rank": 4,
        },
        "falcon-h1": mamba2,
        "mamba2": mamba2 | {"attention.head_count": 0, "attention.head_count_kv": 0},
        "cohere2": {"attention.sliding_window": 6, "logit_scale": 0.3},
        "command-r": {"logit_scale": 0.3},
        "glm4moe": {"expert_shared_count": 1, "leading_dense_block_count": 1, "rope.dimension_count": 8}
        | wide,
        "stablelm": {"rope.dimension_count": 8},
        "phi2": {"rope.dimension_count": 8},
        "gptneox": {"use_parallel_residual": True, "rope.dimension_count": 8},
        "nemotron": {"rope.dimension_count": 8},
        "deepseek": {"expert_shared_count": 1, "leading_dense_block_count": 1, "expert_weights_scale": 1.0}
        | wide,
        "dbrx": {"attention.clamp_kqv": 8.0},
        "minimax-m2": {"expert_gating_func": 2, "rope.dimension_count": 8} | wide,
        "qwen3vl": {"rope.dimension_sections": [2, 3, 3, 0], "n_deepstack_layers": 3},
        "qwen3vlmoe": {"rope.dimension_sections": [2, 3, 3, 0], "n_deepstack_layers": 3} | wide,
        "lfm2moe": {
            "attention.head_count_kv": every_third,
            "shortconv.l_cache": 3,
            "leading_dense_block_count": 2,
            "expert_gating_func": 2,
        }
        | wide,
        "granitehybrid": _GRANITE
        | {"attention.head_count_kv": [toy.kv_heads if layer % 3 == 2 else 0 for layer in range(toy.layers)]}
        | mamba2,
        "mamba": {
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 2 * toy.width,
            "ssm.state_size": 16,
            "ssm.time_step_rank": 4,
            "attention.head_count": 0,
            "attention.head_count_kv": 0,
        },
        "qwen35": _DELTA_NET,
        "qwen35moe": _DELTA_NET | wide | {"expert_shared_feed_forward_length": toy.ff},
    }
    return known.get(toy.architecture, {})


_SPECIAL = {"smollm3", "cohere2", "olmoe", "llama4", "gemma4", "dots1"}
TOYS: dict[str, Toy] = {
    **{name: Toy(name) for name in LAYERS if name not in _SPECIAL},
    "smollm3": Toy("smollm3", layers=9),
    "cohere2": Toy("cohere2", layers=8),
    "olmoe": Toy("olmoe", kv_heads=4),
    "glm4moe-nextn": Toy(
        "glm4moe", layers=6, parameters={"nextn_predict_layers": 1}, features=frozenset({"nextn"})
    ),
    "llama4": Toy("llama4", layers=8),
    "gemma4": Toy("gemma4", layers=6, features=frozenset({"rope_factors"})),
    "dots1": Toy("dots1", kv_heads=4),
    "jamba": Toy("jamba", layers=6),
    "lfm2moe": Toy("lfm2moe", layers=6),
    "granitehybrid": Toy("granitehybrid", layers=6),
    "glm4": Toy("glm4", parameters={"rope.dimension_sections": [2, 3, 3, 0]}),
    "glm4moe-sections": Toy(
        "glm4moe", parameters={"rope.dimension_sections": [2, 3, 3, 0], "rope.dimension_count": 16}
    ),
    "gptneox-sequential": Toy("gptneox", parameters={"use_parallel_residual": False}),
}
