"""Write random-weight GGUF models with the shapes of real ones, to measure speed without any download."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

CONTROL_TOKENS = ("<unk>", "<s>", "</s>")
BYTE_COUNT = 256


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that decide how much a model costs to run."""

    layer_count: int
    embedding_size: int
    head_count: int
    kv_head_count: int
    feed_forward_size: int
    vocab_count: int
    architecture: str = "llama"
    context_count: int = 4096
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5
    has_tied_output: bool = False
    has_qkv_bias: bool = False

    @property
    def head_size(self) -> int:
        """Numbers in one attention head."""
        return self.embedding_size // self.head_count


_QWEN2 = {
    "architecture": "qwen2",
    "context_count": 32768,
    "rope_base": 1e6,
    "norm_epsilon": 1e-6,
    "has_tied_output": True,
    "has_qkv_bias": True,
}

# Public configurations of the named models; "tiny" is for tests.
SHAPES: dict[str, ModelShape] = {
    "tiny": ModelShape(2, 256, 8, 4, 512, 512, context_count=512),
    "smollm-135m": ModelShape(30, 576, 9, 3, 1536, 49152, context_count=2048, has_tied_output=True),
    "qwen2-0.5b": ModelShape(24, 896, 14, 2, 4864, 151936, **_QWEN2),  # type: ignore[arg-type]
    "qwen2-1.5b": ModelShape(28, 1536, 12, 2, 8960, 151936, **_QWEN2),  # type: ignore[arg-type]
    "tinyllama": ModelShape(22, 2048, 32, 4, 5632, 32000, context_count=2048),
    "llama-1b": ModelShape(16, 2048, 32, 8, 8192, 128256, rope_base=5e5, has_tied_output=True),
    "llama-3b": ModelShape(28, 3072, 24, 8, 8192, 128256, rope_base=5e5, has_tied_output=True),
    "llama-7b": ModelShape(32, 4096, 32, 32, 11008, 32000),
    "llama-8b": ModelShape(32, 4096, 32, 8, 14336, 128256, context_count=8192, rope_base=5e5),
}
TYPES = ("f16", "q8_0", "q4_k_m")


def write_random_model(path: Path, shape: ModelShape, weight_type: str = "f16", seed: int = 0) -> None:
    """Write one model; memory use stays at one tensor, and the same arguments give the same bytes.

    Cost:  q8_0 and q4_k_m need room for an F16 copy beside path while they are being written.
    """
    assert weight_type in TYPES, f"weight type {weight_type} is not one of {TYPES}"
    if weight_type == "f16":
        _write_f16(path, shape, seed)
        return
    source = path.with_name(path.name + ".f16")
    try:
        _write_f16(source, shape, seed)
        _quantise(source, path, weight_type)
    finally:
        source.unlink(missing_ok=True)


def _tensors(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes (rows, columns) in file order."""
    d, ff = shape.embedding_size, shape.feed_forward_size
    kv = shape.kv_head_count * shape.head_size
    yield "token_embd.weight", (shape.vocab_count, d)
    for layer in range(shape.layer_count):
        yield f"blk.{layer}.attn_norm.weight", (d,)
        for name, rows in (("attn_q", d), ("attn_k", kv), ("attn_v", kv)):
            yield f"blk.{layer}.{name}.weight", (rows, d)
            if shape.has_qkv_bias:
                yield f"blk.{layer}.{name}.bias", (rows,)
        yield f"blk.{layer}.attn_output.weight", (d, d)
        yield f"blk.{layer}.ffn_norm.weight", (d,)
        yield f"blk.{layer}.ffn_gate.weight", (ff, d)
        yield f"blk.{layer}.ffn_up.weight", (ff, d)
        yield f"blk.{layer}.ffn_down.weight", (d, ff)
    yield "output_norm.weight", (d,)
    if not shape.has_tied_output:
        yield "output.weight", (shape.vocab_count, d)


def _values(rng: np.random.Generator, name: str, size: tuple[int, ...]) -> NDArray[np.generic]:
    """One tensor, scaled so that activations keep their size through the layers."""
    if name.endswith("_norm.weight"):
        return np.ones(size, np.float32)
    if name.endswith(".bias"):
        return rng.standard_normal(size, np.float32) * np.float32(0.01)
    values = rng.standard_normal(size, np.float32)
    if name != "token_embd.weight":
        values *= np.float32(size[-1] ** -0.5)
    return values.astype(np.float16)


def _write_f16(path: Path, shape: ModelShape, seed: int) -> None:
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_name(f"random {shape.architecture}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(shape.context_count)
    writer.add_embedding_length(shape.embedding_size)
    writer.add_block_count(shape.layer_count)
    writer.add_feed_forward_length(shape.feed_forward_size)
    writer.add_head_count(shape.head_count)
    writer.add_head_count_kv(shape.kv_head_count)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(shape.vocab_count)
    _add_vocabulary(writer, shape.vocab_count)
    for name, size in _tensors(shape):
        dtype = np.dtype(np.float16 if len(size) == 2 else np.float32)
        writer.add_tensor_info(name, size, dtype, int(np.prod(size)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for name, size in _tensors(shape):
        writer.write_tensor_data(_values(rng, name, size))
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, vocab_count: int) -> None:
    """Bytes and made-up words: enough for any prompt to be cut into tokens."""
    words = [f"tok{at}" for at in range(vocab_count - len(CONTROL_TOKENS) - BYTE_COUNT)]
    tokens = [*CONTROL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(BYTE_COUNT)), *words]
    kinds = gguf.TokenType
    types = (
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL]
        + [kinds.BYTE] * BYTE_COUNT
        + [kinds.NORMAL] * len(words)
    )
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _quantise(source: Path, target: Path, weight_type: str) -> None:
    # Imported here because F16 models can be written where no engine is installed.
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = {
        "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
        "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    }[weight_type]
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    assert not failed, f"llama.cpp could not quantise {source} to {weight_type}"


def main() -> None:
    """Write the model named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama")
    parser.add_argument("--type", choices=TYPES, default="f16")
    parser.add_argument("--layers", type=int, help="fewer or more layers than the real model")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.layers:
        shape = replace(shape, layer_count=options.layers)
    write_random_model(options.path, shape, options.type, options.seed)
    print(f"{options.path}: {options.path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
