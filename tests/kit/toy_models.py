"""Small random models of many architectures, written in milliseconds.

They speak no language, but llama.cpp computes them with the same graph as their big sisters: what a cut of
them computes can be compared with the whole, exactly.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from p2pnode.compute.ggml_types import F32, TENSOR_TYPES, TensorType
from p2pnode.compute.gguf import Entry, ValueType, align_up, array, header_bytes, scalar
from tests.kit import toy_families
from tests.kit.toy_layers import DELTA_NET, LAYERS, Shape, Toy

TYPES = {kind.name: kind for kind in TENSOR_TYPES.values()}


__all__ = ["TOYS", "Toy", "model_bytes", "quantise", "write_model"]

_ALL_LAYERS = LAYERS | toy_families.LAYERS
_TIED = frozenset({"gemma", "gemma2", "cohere2", "command-r"})
_MOE = (
    frozenset({"qwen2moe", "qwen3moe", "granitemoe", "gpt-oss", "deepseek2", "qwen3next"}) | toy_families.MOE
)
_LAYER_NORM = frozenset({"starcoder2"}) | toy_families.LAYER_NORM
_OUTPUT_NORM_BIAS = frozenset({"starcoder2"}) | toy_families.OUTPUT_NORM_BIAS


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
                **DELTA_NET,
                "rope.dimension_count": 8,
                "expert_feed_forward_length": toy.ff,
                "expert_shared_feed_forward_length": toy.ff,
            }
    return toy_families.parameters(toy)


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
    key = "layer_norm_epsilon" if toy.architecture in _LAYER_NORM else "layer_norm_rms_epsilon"
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
    if "merges" in toy.features:
        return _merging_tokenizer(toy.vocabulary)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"▁w{number}" for number in range(toy.vocabulary - len(tokens))]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (toy.vocabulary - 259)]
    if toy.architecture == "phi3":  # llama.cpp looks this one up in every vocabulary of the family
        tokens[-1], kinds[-1] = "<|endoftext|>", 3
    return [
        scalar("tokenizer.ggml.model", ValueType.STRING, "llama"),
        array("tokenizer.ggml.tokens", ValueType.STRING, tokens),
        array("tokenizer.ggml.scores", ValueType.FLOAT32, [0.0] * len(tokens)),
        array("tokenizer.ggml.token_type", ValueType.INT32, kinds),
        scalar("tokenizer.ggml.bos_token_id", ValueType.UINT32, 1),
        scalar("tokenizer.ggml.eos_token_id", ValueType.UINT32, 2),
        scalar("tokenizer.ggml.unknown_token_id", ValueType.UINT32, 0),
    ]


def _merging_tokenizer(count: int) -> list[Entry]:
    """As large models have it: byte pairs, with about as many merges as tokens."""
    characters = [chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))]
    characters += [chr(256 + at) for at in range(256 - len(characters))]
    words = [f"Ġw{number}" for number in range(count - len(characters) - 1)]
    return [
        scalar("tokenizer.ggml.model", ValueType.STRING, "gpt2"),
        scalar("tokenizer.ggml.pre", ValueType.STRING, "qwen2"),
        array("tokenizer.ggml.tokens", ValueType.STRING, [*characters, *words, "<|endoftext|>"]),
        array("tokenizer.ggml.token_type", ValueType.INT32, [1] * (count - 1) + [3]),
        array("tokenizer.ggml.merges", ValueType.STRING, [f"{word[:-1]} {word[-1]}" for word in words]),
        scalar("tokenizer.ggml.eos_token_id", ValueType.UINT32, count - 1),
        scalar("tokenizer.ggml.bos_token_id", ValueType.UINT32, count - 1),
        scalar("tokenizer.ggml.add_bos_token", ValueType.BOOL, False),
    ]


def _shapes(toy: Toy) -> Iterator[tuple[str, Shape]]:
    yield "token_embd.weight", (toy.width, toy.vocabulary)
    norm = "token_embd_norm" if toy.architecture.startswith("lfm2") else "output_norm"
    if toy.architecture != "olmo":
        yield f"{norm}.weight", (toy.width,)
    if toy.architecture in _OUTPUT_NORM_BIAS:
        yield f"{norm}.bias", (toy.width,)
    if toy.architecture == "phi2":
        yield "output.bias", (toy.vocabulary,)
    if not toy.tied and toy.architecture not in _TIED:
        yield "output.weight", (toy.width, toy.vocabulary)
    if "ranks" in toy.features:
        yield "cls.output.weight", (toy.width, 2)
    if "rope_factors" in toy.features:
        yield "rope_freqs.weight", (16 if toy.architecture == "gemma4" else toy.head_width // 2,)
    if "long_rope" in toy.features:
        yield "rope_factors_long.weight", (toy.head_width // 2,)
        yield "rope_factors_short.weight", (toy.head_width // 2,)
    for layer in range(toy.layers):
        for suffix, shape in _ALL_LAYERS[toy.architecture](toy, layer).items():
            yield f"blk.{layer}.{suffix}", shape


def _values(rng: np.random.Generator, name: str, shape: Shape) -> np.ndarray:
    """Random values in numpy's order (outermost first)."""
    noise = rng.standard_normal(shape[::-1], dtype=np.float32)
    if name.startswith("rope_"):
        return 1 + np.abs(noise)
    if name.endswith("ssm_a"):
        return -np.abs(noise)
    if ("norm" in name and not name.endswith("bias")) or "output_scale" in name:
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
    return b"".join(_file_parts(toy))


def write_model(path: Path, toy: Toy) -> Path:
    with path.open("wb") as file:
        file.writelines(_file_parts(toy))
    return path


def _file_parts(toy: Toy) -> list[bytes]:
    """The header, and each tensor with what fills it up to its alignment."""
    rng = np.random.default_rng(toy.seed)
    entries = [
        scalar("general.architecture", ValueType.STRING, toy.architecture),
        scalar("general.name", ValueType.STRING, f"toy {toy.architecture}"),
    ]
    for key, value in _parameters(toy).items():
        entries.append(_entry(key if key.startswith("xielu.") else f"{toy.architecture}.{key}", value))
    entries += _tokenizer(toy)
    infos, data, alike = [], [], dict[str, bytes]()
    for name, shape in _shapes(toy):
        kind = _stored_type(toy, name, shape)
        key = re.sub(r"^blk\.\d+\.", "", name) if "same_layers" in toy.features else name
        if key not in alike:
            alike[key] = quantise(_values(rng, name, shape), kind)
        stored = alike[key]
        infos.append((name, shape, kind, len(stored)))
        data.append(stored + bytes(align_up(len(stored), 32) - len(stored)))
    header, _ = header_bytes(entries, infos, 32)
    return [header, *data]


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
    **toy_families.TOYS,
}
