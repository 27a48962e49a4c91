"""Small random models of many architectures, written in milliseconds.

They speak no language, but llama.cpp computes them with the same graph as their big sisters: what a cut of
them computes can be compared with the whole, exactly.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from p2pnode.compute.ggml_types import F32, TENSOR_TYPES, TensorType
from p2pnode.compute.gguf import Entry, ValueType, align_up, array, header_bytes, scalar

Shape = tuple[int, ...]
TYPES = {kind.name: kind for kind in TENSOR_TYPES.values()}


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


def _attention(toy: Toy, *, bias: bool = False) -> dict[str, Shape]:
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


def _head_norms(toy: Toy) -> dict[str, Shape]:
    return {"attn_q_norm.weight": (toy.head_width,), "attn_k_norm.weight": (toy.head_width,)}


def _feed_forward(toy: Toy) -> dict[str, Shape]:
    return {
        "ffn_norm.weight": (toy.width,),
        "ffn_gate.weight": (toy.width, toy.ff),
        "ffn_up.weight": (toy.width, toy.ff),
        "ffn_down.weight": (toy.ff, toy.width),
    }


def _experts(toy: Toy, norm: str = "ffn_norm.weight") -> dict[str, Shape]:
    return {
        norm: (toy.width,),
        "ffn_gate_inp.weight": (toy.width, toy.experts),
        "ffn_gate_exps.weight": (toy.width, toy.ff, toy.experts),
        "ffn_up_exps.weight": (toy.width, toy.ff, toy.experts),
        "ffn_down_exps.weight": (toy.ff, toy.width, toy.experts),
    }


def _shared_expert(toy: Toy, gate: bool = True) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {
        "ffn_gate_shexp.weight": (toy.width, toy.ff),
        "ffn_up_shexp.weight": (toy.width, toy.ff),
        "ffn_down_shexp.weight": (toy.ff, toy.width),
    }
    return shapes | ({"ffn_gate_inp_shexp.weight": (toy.width,)} if gate else {})


def _post_norms(toy: Toy) -> dict[str, Shape]:
    return {"post_attention_norm.weight": (toy.width,), "post_ffw_norm.weight": (toy.width,)}


def _llama(toy: Toy, layer: int) -> dict[str, Shape]:
    biased = (
        {"attn_output.bias": (toy.width,), "ffn_down.bias": (toy.width,)} if "biases" in toy.features else {}
    )
    return _attention(toy) | (_experts(toy) if "experts" in toy.features else _feed_forward(toy)) | biased


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
    shapes = _attention(toy) | _feed_forward(toy) | _post_norms(toy)
    del shapes["attn_norm.weight"], shapes["ffn_norm.weight"]
    return shapes | {"attn_q_norm.weight": (toy.width,), "attn_k_norm.weight": (toy.kv_width,)}


def _starcoder2(toy: Toy, layer: int) -> dict[str, Shape]:
    shapes = _attention(toy, bias=True) | _feed_forward(toy)
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
        _attention(toy, bias=True)
        | _experts(toy, "post_attention_norm.weight")
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
        return shapes | _feed_forward(toy)
    return shapes | _experts(toy) | _shared_expert(toy, gate=False)


def _lfm2(toy: Toy, layer: int) -> dict[str, Shape]:
    if layer % 3 == 1:
        return _attention(toy) | _head_norms(toy) | _feed_forward(toy)
    return _feed_forward(toy) | {
        "attn_norm.weight": (toy.width,),
        "shortconv.conv.weight": (3, toy.width),
        "shortconv.in_proj.weight": (toy.width, 3 * toy.width),
        "shortconv.out_proj.weight": (toy.width, toy.width),
    }


def _qwen3next(toy: Toy, layer: int) -> dict[str, Shape]:
    shapes = _experts(toy, "post_attention_norm.weight") | _shared_expert(toy)
    if layer % 2 == 1:
        return shapes | _attention(toy) | _head_norms(toy) | {"attn_q.weight": (toy.width, 2 * toy.q_width)}
    key, value, heads = 2 * 16, 4 * 16, 4
    return shapes | {
        "attn_norm.weight": (toy.width,),
        "attn_qkv.weight": (toy.width, 2 * key + value),
        "attn_gate.weight": (toy.width, value),
        "ssm_conv1d.weight": (4, 2 * key + value),
        "ssm_dt.bias": (heads,),
        "ssm_a": (heads,),
        "ssm_ba.weight": (toy.width, 2 * heads),
        "ssm_norm.weight": (16,),
        "ssm_out.weight": (value, toy.width),
    }


LAYERS: dict[str, Layer] = {
    "llama": _llama,
    "qwen2": lambda toy, layer: _attention(toy, bias=True) | _feed_forward(toy),
    "qwen2vl": lambda toy, layer: _attention(toy, bias=True) | _feed_forward(toy),
    "qwen2moe": lambda toy, layer: _attention(toy, bias=True) | _experts(toy) | _shared_expert(toy),
    "qwen3": lambda toy, layer: _attention(toy) | _head_norms(toy) | _feed_forward(toy),
    "qwen3moe": lambda toy, layer: _attention(toy) | _head_norms(toy) | _experts(toy),
    "gemma": lambda toy, layer: _attention(toy) | _feed_forward(toy),
    "gemma2": lambda toy, layer: _attention(toy) | _feed_forward(toy) | _post_norms(toy),
    "gemma3": lambda toy, layer: _attention(toy) | _head_norms(toy) | _feed_forward(toy) | _post_norms(toy),
    "phi3": _phi3,
    "granite": lambda toy, layer: _attention(toy) | _feed_forward(toy),
    "granitemoe": lambda toy, layer: _attention(toy) | _experts(toy),
    "olmo2": _olmo2,
    "starcoder2": _starcoder2,
    "gpt-oss": _gpt_oss,
    "deepseek2": _deepseek2,
    "lfm2": _lfm2,
    "qwen3next": _qwen3next,
}

_TIED = frozenset({"gemma", "gemma2"})
_MOE = frozenset({"qwen2moe", "qwen3moe", "granitemoe", "gpt-oss", "deepseek2", "qwen3next"})


def _extra_parameters(toy: Toy) -> dict[str, Any]:
    match toy.architecture:
        case "qwen2vl":
            return {"rope.dimension_sections": [2, 3, 3, 0]}
        case "gemma2":
            return {
                "attention.sliding_window": 6,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
            }
        case "gemma3":
            return {"attention.sliding_window": 6, "rope.freq_base": 1e6}
        case "granite" | "granitemoe":
            return {
                "logit_scale": 4.0,
                "residual_scale": 0.3,
                "embedding_scale": 12.0,
                "attention.scale": 0.2,
            }
        case "gpt-oss":
            return {"attention.sliding_window": 6, "expert_feed_forward_length": toy.ff}
        case "deepseek2":
            lora = {"attention.q_lora_rank": 24} if "q_lora" in toy.features else {"attention.q_lora_rank": 0}
            return lora | {
                "attention.kv_lora_rank": 32,
                "attention.head_count_kv": 1,
                "attention.key_length": 40,
                "attention.value_length": 32,
                "attention.key_length_mla": 24,
                "attention.value_length_mla": 16,
                "rope.dimension_count": 8,
                "leading_dense_block_count": 2,
                "expert_feed_forward_length": toy.ff,
                "expert_shared_count": 1,
                "expert_weights_scale": 1.5,
            }
        case "lfm2":
            kv = [toy.kv_heads if layer % 3 == 1 else 0 for layer in range(toy.layers)]
            return {"attention.head_count_kv": kv, "shortconv.l_cache": 3}
        case "qwen3next":
            return {
                "full_attention_interval": 2,
                "ssm.conv_kernel": 4,
                "ssm.inner_size": 64,
                "ssm.state_size": 16,
                "ssm.time_step_rank": 4,
                "ssm.group_count": 2,
                "rope.dimension_count": 8,
                "expert_feed_forward_length": toy.ff,
                "expert_shared_feed_forward_length": toy.ff,
            }
    return {}


def _parameters(toy: Toy) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "context_length": 512,
        "embedding_length": toy.width,
        "block_count": toy.layers,
        "feed_forward_length": toy.ff,
        "attention.head_count": toy.heads,
        "attention.head_count_kv": toy.kv_heads,
        "attention.key_length": toy.head_width,
        "attention.value_length": toy.head_width,
        "rope.dimension_count": toy.head_width,
        "vocab_size": toy.vocabulary,
    }
    key = "layer_norm_epsilon" if toy.architecture == "starcoder2" else "layer_norm_rms_epsilon"
    parameters[f"attention.{key}"] = 1e-5
    if toy.architecture in _MOE or "experts" in toy.features:
        parameters |= {"expert_count": toy.experts, "expert_used_count": toy.experts_used}
    return parameters | _extra_parameters(toy) | toy.parameters


def _entry(key: str, value: Any) -> Entry:
    kinds = {bool: ValueType.BOOL, int: ValueType.UINT32, float: ValueType.FLOAT32, str: ValueType.STRING}
    if isinstance(value, list):
        return array(key, kinds[type(value[0])], value)
    return scalar(key, kinds[type(value)], value)


def _tokenizer(toy: Toy) -> list[Entry]:
    if not toy.text:
        return [scalar("tokenizer.ggml.model", ValueType.STRING, "no_vocab")]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"▁w{number}" for number in range(toy.vocabulary - len(tokens))]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (toy.vocabulary - 259)]
    return [
        scalar("tokenizer.ggml.model", ValueType.STRING, "llama"),
        array("tokenizer.ggml.tokens", ValueType.STRING, tokens),
        array("tokenizer.ggml.scores", ValueType.FLOAT32, [0.0] * len(tokens)),
        array("tokenizer.ggml.token_type", ValueType.INT32, kinds),
        scalar("tokenizer.ggml.bos_token_id", ValueType.UINT32, 1),
        scalar("tokenizer.ggml.eos_token_id", ValueType.UINT32, 2),
        scalar("tokenizer.ggml.unknown_token_id", ValueType.UINT32, 0),
    ]


def _shapes(toy: Toy) -> Iterator[tuple[str, Shape]]:
    yield "token_embd.weight", (toy.width, toy.vocabulary)
    norm = "token_embd_norm" if toy.architecture == "lfm2" else "output_norm"
    yield f"{norm}.weight", (toy.width,)
    if toy.architecture == "starcoder2":
        yield f"{norm}.bias", (toy.width,)
    if not toy.tied and toy.architecture not in _TIED:
        yield "output.weight", (toy.width, toy.vocabulary)
    if "rope_factors" in toy.features:
        yield "rope_freqs.weight", (toy.head_width // 2,)
    if "long_rope" in toy.features:
        yield "rope_factors_long.weight", (toy.head_width // 2,)
        yield "rope_factors_short.weight", (toy.head_width // 2,)
    for layer in range(toy.layers):
        for suffix, shape in LAYERS[toy.architecture](toy, layer).items():
            yield f"blk.{layer}.{suffix}", shape


def _values(rng: np.random.Generator, name: str, shape: Shape) -> np.ndarray:
    """Random values in numpy's order (outermost first)."""
    noise = rng.standard_normal(shape[::-1], dtype=np.float32)
    if name.startswith("rope_"):
        return 1 + np.abs(noise)
    if name.endswith("ssm_a"):
        return -np.abs(noise)
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * noise
    if name.endswith("bias") or len(shape) == 1:
        return 0.2 * noise
    if name == "token_embd.weight":
        return noise
    return noise * np.float32(1.5 / math.sqrt(shape[0]))


def _stored_type(toy: Toy, name: str, shape: Shape) -> TensorType:
    """Matrices take the toy's type where their rows fit into its blocks; small things stay float32."""
    kind = TYPES[toy.type]
    keep = len(shape) < 2 or name.endswith("bias") or "conv" in name or "gate_inp" in name
    return F32 if keep or shape[0] % kind.block_elements else kind


def quantise(values: np.ndarray, kind: TensorType) -> bytes:
    """ggml's own quantisation of rows."""
    if kind is F32:
        return np.ascontiguousarray(values, np.float32).tobytes()
    from llama_cpp.llama_cpp import _lib as lib

    flat = np.ascontiguousarray(values, np.float32)
    width = flat.shape[-1]
    rows = flat.size // width
    out = ctypes.create_string_buffer(flat.size // kind.block_elements * kind.block_bytes)
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    lib.ggml_quantize_chunk(kind.number, flat.ctypes.data, ctypes.addressof(out), 0, rows, width, None)
    return out.raw


def model_bytes(toy: Toy) -> bytes:
    """The toy as one GGUF file."""
    rng = np.random.default_rng(toy.seed)
    entries = [
        scalar("general.architecture", ValueType.STRING, toy.architecture),
        scalar("general.name", ValueType.STRING, f"toy {toy.architecture}"),
    ]
    entries += [_entry(f"{toy.architecture}.{key}", value) for key, value in _parameters(toy).items()]
    entries += _tokenizer(toy)
    infos, data = [], []
    for name, shape in _shapes(toy):
        kind = _stored_type(toy, name, shape)
        stored = quantise(_values(rng, name, shape), kind)
        infos.append((name, shape, kind, len(stored)))
        data.append(stored + bytes(align_up(len(stored), 32) - len(stored)))
    header, _ = header_bytes(entries, infos, 32)
    return header + b"".join(data)


def write_model(path: Path, toy: Toy) -> Path:
    path.write_bytes(model_bytes(toy))
    return path


def _features(*names: str) -> frozenset[str]:
    return frozenset(names)


TOYS: dict[str, Toy] = {
    "llama": Toy("llama", text=True, vocabulary=320),
    "llama-tied-q8_0": Toy("llama", type="Q8_0", tied=True, head_width=32),
    "llama-q4_k": Toy("llama", type="Q4_K", width=256, heads=16, kv_heads=4, head_width=64, ff=768, layers=4),
    "llama-f16": Toy("llama", type="F16"),
    "llama-rope-factors": Toy("llama", features=_features("rope_factors")),
    "llama-biases": Toy("llama", features=_features("biases")),
    "mistral-sliding": Toy("llama", parameters={"attention.sliding_window": 6}),
    "mixtral": Toy("llama", features=_features("experts")),
    "qwen2": Toy("qwen2"),
    "qwen2-q8_0": Toy("qwen2", type="Q8_0", tied=True),
    "qwen2-q4_k": Toy("qwen2", type="Q4_K", width=512, heads=8, kv_heads=4, head_width=64, ff=768, layers=3),
    "qwen2vl": Toy("qwen2vl"),
    "qwen2moe": Toy("qwen2moe", parameters={"expert_feed_forward_length": 96}),
    "qwen3": Toy("qwen3", head_width=32),
    "qwen3-q4_k": Toy("qwen3", type="Q4_K", width=256, heads=8, kv_heads=4, head_width=64, ff=768, layers=3),
    "qwen3-q8_0": Toy("qwen3", type="Q8_0", tied=True, head_width=32),
    "qwen3moe": Toy("qwen3moe", parameters={"expert_feed_forward_length": 96}),
    "gemma": Toy("gemma", width=96),
    "gemma2": Toy("gemma2", layers=6, width=96),
    "gemma3": Toy("gemma3", layers=8, tied=True),
    "phi3": Toy("phi3"),
    "phi3-long-rope": Toy("phi3", features=_features("long_rope")),
    "granite": Toy("granite"),
    "granitemoe": Toy("granitemoe"),
    "olmo2": Toy("olmo2"),
    "olmo2-sliding": Toy("olmo2", layers=6, parameters={"attention.sliding_window": 6}),
    "starcoder2": Toy("starcoder2"),
    "gpt-oss": Toy("gpt-oss"),
    "deepseek2": Toy("deepseek2", features=_features("q_lora")),
    "deepseek2-lite": Toy("deepseek2"),
    "lfm2": Toy("lfm2", layers=6),
    "qwen3next": Toy("qwen3next"),
}
