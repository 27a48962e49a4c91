"""GGUF files byte by byte, for tests of identity and transfer: tiny, exact, and damaged on request."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from p2pnode.compute.gguf import ValueType, header_bytes, parse, scalar
from p2pnode.models.header import block_of

ALIGNMENT = 32
Value = int | float | bool | str | list[str] | list[int]


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, value: Value) -> bytes:
    match value:
        case bool():
            return text(key) + struct.pack("<I?", 7, value)
        case int():
            return text(key) + struct.pack("<II", 4, value)
        case float():
            return text(key) + struct.pack("<If", 6, value)
        case str():
            return text(key) + struct.pack("<I", 8) + text(value)
        case [str(), *_]:
            return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(str(v)) for v in value)
        case _:
            return (
                text(key)
                + struct.pack("<IIQ", 9, 5, len(value))
                + b"".join(struct.pack("<i", v) for v in value)
            )


def gguf(values: Mapping[str, Value], tensors: Sequence[tuple[str, bytes]], *, version: int = 3) -> bytes:
    """A file whose tensors are one-dimensional F32 of the given bytes."""
    table, data = b"", b""
    for name, content in tensors:
        table += text(name) + struct.pack("<IQIQ", 1, len(content) // 4, 0, len(data))
        data += content + bytes(-len(content) % ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    head += b"".join(entry(key, value) for key, value in values.items()) + table
    return head + bytes(-len(head) % ALIGNMENT) + data


def matrices(
    shapes: Sequence[tuple[str, tuple[int, ...], int]], fill: Callable[[int], bytes], *, layers: int = 1
) -> bytes:
    """A file of tensors of any (name, shape, ggml type), filled with bytes that mean nothing."""
    head, data = b"", b""
    for name, shape, kind in shapes:
        values, size = block_of(kind)
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        head += struct.pack("<IQ", kind, len(data))
        content = fill(math.prod(shape) // values * size)
        data += content + bytes(-len(content) % ALIGNMENT)
    values_ = entry("general.architecture", "llama") + entry("llama.block_count", layers)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), 2) + values_ + head
    return head + bytes(-len(head) % ALIGNMENT) + data


def toy(
    *,
    layers: int = 4,
    floats: int = 5000,
    vocabulary: int = 1100,
    seed: int = 0,
    extra: Mapping[str, Value] | None = None,
) -> bytes:
    """Something shaped like a model: a vocabulary, embeddings, layers of one matrix and one norm."""
    rng = random.Random(seed)
    values: dict[str, Value] = {
        "general.architecture": "llama",
        "general.name": "toy",
        "general.file_type": 0,
        "llama.block_count": layers,
        "llama.context_length": 128,
        "llama.embedding_length": 16,
        "tokenizer.ggml.tokens": [f"token-{number}" for number in range(vocabulary)],
        "tokenizer.ggml.token_type": [1] * vocabulary,
        **(extra or {}),
    }
    tensors = [("token_embd.weight", rng.randbytes(4 * vocabulary))]
    for layer in range(layers):
        tensors.append((f"blk.{layer}.attn_q.weight", rng.randbytes(4 * floats)))
        tensors.append((f"blk.{layer}.attn_norm.weight", rng.randbytes(64)))
    return gguf(values, [*tensors, ("output_norm.weight", rng.randbytes(64))])


def write_toy(path: Path, **sizes: int) -> Path:
    path.write_bytes(toy(**sizes))  # type: ignore[arg-type]
    return path


def write_split(folder: Path, *, seed: int = 0) -> list[Path]:
    """One model in two files, the second with metadata of its own."""
    rng = random.Random(seed)
    paths = [folder / f"toy-{number:05}-of-00002.gguf" for number in (1, 2)]
    first: dict[str, Value] = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "split.no": 0,
        "split.count": 2,
    }
    paths[0].write_bytes(gguf(first, [("blk.0.attn_q.weight", rng.randbytes(9000 * 4))]))
    paths[1].write_bytes(
        gguf({"split.no": 1, "split.count": 2}, [("blk.1.attn_q.weight", rng.randbytes(7000 * 4))])
    )
    return paths


def split(data: bytes, count: int, *, total: int | None = None) -> list[bytes]:
    """A file cut into several, as llama.cpp's gguf-split does."""
    model = parse(data)
    tensors = list(model.tensors.values())
    out = []
    for number in range(count):
        mine = tensors[number::count]
        entries = list(model.metadata.values()) if number == 0 else []
        entries += [
            scalar("split.no", ValueType.UINT16, number),
            scalar("split.count", ValueType.UINT16, count),
            scalar("split.tensors.count", ValueType.INT32, len(tensors) if total is None else total),
        ]
        header, _ = header_bytes(entries, [(t.name, t.shape, t.type, t.size) for t in mine], 32)
        body = b"".join(data[t.offset : t.offset + t.size].ljust(-(-t.size // 32) * 32, b"\0") for t in mine)
        out.append(header + body)
    return out
