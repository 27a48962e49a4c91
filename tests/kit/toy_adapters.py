"""Random LoRA adapters for toy models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from p2pnode.compute.ggml_types import F32
from p2pnode.compute.gguf import ModelIndex, ValueType, header_bytes, scalar

RANK = 4


def adapter_bytes(base: ModelIndex, suffixes: Sequence[str], *, seed: int = 0, **metadata: str) -> bytes:
    """An adapter that changes every tensor of the base whose name ends so; metadata may be overwritten."""
    rng = np.random.default_rng(seed)
    values = {"general.type": "adapter", "general.architecture": base.architecture, "adapter.type": "lora"}
    values |= {key.replace("_", ".", 1): value for key, value in metadata.items()}
    entries = [scalar(key, ValueType.STRING, value) for key, value in values.items()]
    entries.append(scalar("adapter.lora.alpha", ValueType.FLOAT32, 8.0))
    tensors: list[tuple[str, np.ndarray]] = []
    for name, target in base.tensors.items():
        if not f".{name}".endswith(tuple(f".{suffix}" for suffix in suffixes)):
            continue
        columns, rows, *stack = target.shape
        a = rng.standard_normal((*stack, RANK, columns), dtype=np.float32) * np.float32(0.2)
        b = rng.standard_normal((*stack, rows, RANK), dtype=np.float32) * np.float32(0.2)
        if name == "token_embd.weight":
            a = rng.standard_normal((rows, RANK), dtype=np.float32)
            b = rng.standard_normal((columns, RANK), dtype=np.float32) * np.float32(0.2)
        tensors += [(f"{name}.lora_a", a), (f"{name}.lora_b", b)]
    infos = [(name, values.shape[::-1], F32, values.nbytes) for name, values in tensors]
    header, _ = header_bytes(entries, infos, 32)
    body = b"".join(values.tobytes().ljust(-(-values.nbytes // 32) * 32, b"\0") for _, values in tensors)
    return header + body
