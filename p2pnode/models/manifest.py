"""Manifest of a model: what its files contain, and the digest of every piece a peer can ask for.

A manifest names content only, never a label: two holders who imported the same files under different names
have the same manifest and the same content id. Chunks are numbered through all files: first the pieces of a
file's header, then its tensors in order of offset, each cut into pieces of CHUNK_BYTES.
Format: specs/04-blobs.md.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from p2pnode import limits
from p2pnode.errors import ModelIncomplete
from p2pnode.models import cid
from p2pnode.models.header import Omission, Outline, outline, spread
from p2pnode.units import ContentId

NO_LAYER = -1
_LAYER = re.compile(r"blk\.(\d{1,4})\.")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [first, end) of every `every` bytes: columns of all rows, or rows of all matrices."""

    first: int
    end: int
    every: int


@dataclass(frozen=True, slots=True)
class Want:
    """Bytes [first, end) of a tensor; end None for all of it."""

    tensor: str
    first: int = 0
    end: int | None = None
    span: Span | None = None
    """What of the tensor a shard needs, where that is less; chunks that cover it are those of [first, end)."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One verified piece; `offset` counts from the start of file number `file`."""

    index: int
    file: int
    offset: int
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class TensorEntry:
    name: str
    file: int
    offset: int
    size: int
    chunk_first: int
    chunk_count: int


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One GGUF file: its size, its slim header, and where the omitted arrays are."""

    size: int
    header_size: int
    kept: bytes = field(repr=False)
    """Of the header, what is outside the omissions: megabytes of zeros need not lie in memory."""
    omissions: tuple[Omission, ...]
    digests: bytes
    """32 bytes a chunk: header pieces, then tensor pieces."""

    @property
    def header(self) -> bytes:
        """Slim: long tokenizer arrays are zero bytes of the same length."""
        return spread(self.kept, self.omissions, self.header_size)


@dataclass(frozen=True)
class Manifest:
    """Immutable; equal content has equal bytes and an equal content id."""

    files: tuple[ManifestFile, ...]
    encoded: bytes = field(repr=False, compare=False)

    @cached_property
    def content_id(self) -> ContentId:
        return cid.of(self.encoded)

    @cached_property
    def outlines(self) -> tuple[Outline, ...]:
        return tuple(outline(file.header) for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        result: list[Chunk] = []
        for number, (file, found) in enumerate(zip(self.files, self.outlines, strict=True)):
            base = len(result)
            for position, (offset, size) in enumerate(chunk_extents(found)):
                value = file.digests[position * cid.DIGEST_BYTES : (position + 1) * cid.DIGEST_BYTES]
                result.append(Chunk(base + position, number, offset, size, value))
        return tuple(result)

    @cached_property
    def tensors(self) -> dict[str, TensorEntry]:
        result: dict[str, TensorEntry] = {}
        index = 0
        for number, found in enumerate(self.outlines):
            index += _piece_count(found.size)
            for tensor in found.tensors:
                count = _piece_count(tensor.size)
                result[tensor.name] = TensorEntry(
                    tensor.name, number, tensor.offset, tensor.size, index, count
                )
                index += count
        return result

    @cached_property
    def header_chunks(self) -> tuple[int, ...]:
        """Chunks of the full headers: what a node needs that wants the vocabulary."""
        result: list[int] = []
        index = 0
        for found in self.outlines:
            pieces = _piece_count(found.size)
            result += range(index, index + pieces)
            index += pieces + sum(_piece_count(tensor.size) for tensor in found.tensors)
        return tuple(result)

    def chunks_for(self, wants: Iterable[Want], *, vocabulary: bool = False) -> list[int]:
        """Indexes, ascending, of the chunks that cover the wanted bytes; ModelIncomplete for an unknown tensor."""
        found: set[int] = set(self.header_chunks) if vocabulary else set()
        for want in wants:
            entry = self.tensors.get(want.tensor)
            if entry is None:
                raise ModelIncomplete(f"this model has no tensor {want.tensor!r}", tensor=want.tensor)
            end = entry.size if want.end is None else want.end
            if not 0 <= want.first <= end <= entry.size:
                raise ModelIncomplete(
                    f"tensor {want.tensor!r} has no bytes {want.first}..{end}", tensor=want.tensor
                )
            if want.first < end:
                first = want.first // limits.CHUNK_BYTES
                found.update(range(entry.chunk_first + first, entry.chunk_first + _piece_count(end)))
        return sorted(found)

    @cached_property
    def chunks_by_layer(self) -> dict[int, tuple[int, ...]]:
        """Chunks of each layer's tensors; -1 for those of no layer."""
        found: dict[int, list[int]] = {}
        for entry in self.tensors.values():
            match = _LAYER.match(entry.name)
            chunks = range(entry.chunk_first, entry.chunk_first + entry.chunk_count)
            found.setdefault(int(match[1]) if match else NO_LAYER, []).extend(chunks)
        return {layer: tuple(chunks) for layer, chunks in sorted(found.items())}

    def chunks_at(self, ranges: Iterable[tuple[int, int, int]]) -> list[int]:
        """Indexes, ascending, of the chunks that cover byte ranges (file, offset, size) of the files."""
        found: set[int] = set()
        starts = self._starts
        for file, offset, size in ranges:
            at = bisect_right(starts, (file, offset)) - 1
            while size > 0 and 0 <= at < len(starts) and starts[at] < (file, offset + size):
                if self.chunks[at].file == file and self.chunks[at].offset + self.chunks[at].size > offset:
                    found.add(at)
                at += 1
        return sorted(found)

    @cached_property
    def _starts(self) -> list[tuple[int, int]]:
        return [(chunk.file, chunk.offset) for chunk in self.chunks]

    def bytes_of(self, indexes: Iterable[int]) -> int:
        return sum(self.chunks[index].size for index in indexes)

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of all chunks: the files without padding."""
        return sum(chunk.size for chunk in self.chunks)

    def summary(self) -> dict[str, Any]:
        """What `models` and `show` print; from the header alone."""
        return dict(self._summary)

    @cached_property
    def _summary(self) -> dict[str, Any]:
        scalars: dict[str, Any] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for found in self.outlines:
            scalars = {**found.scalars, **scalars}
            shapes |= {tensor.name: tensor.shape for tensor in found.tensors}
        architecture = str(scalars.get("general.architecture", ""))

        def of_architecture(key: str) -> Any:
            return scalars.get(f"{architecture}.{key}")

        return {
            "architecture": architecture,
            "title": scalars.get("general.name"),
            "license": scalars.get("general.license"),
            "quantisation": quantisation_name(scalars.get("general.file_type")),
            "layers": of_architecture("block_count"),
            "context_length": of_architecture("context_length"),
            "embedding_length": of_architecture("embedding_length"),
            "vocabulary_size": shapes.get("token_embd.weight", (None,))[-1],
            "chat_template": scalars.get("tokenizer.chat_template"),
            "size_bytes": self.size,
            "tensor_count": len(self.tensors),
            "file_count": len(self.files),
        }


_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0",
}  # fmt: skip
"""llama_ftype numbers (llama.h)."""


def quantisation_name(file_type: object) -> str | None:
    return _FILE_TYPES.get(file_type) if isinstance(file_type, int) else None


def _piece_count(size: int) -> int:
    return -(-size // limits.CHUNK_BYTES)


def _pieces(offset: int, size: int) -> list[tuple[int, int]]:
    step = limits.CHUNK_BYTES
    return [(offset + at, min(step, size - at)) for at in range(0, size, step)]


def chunk_extents(found: Outline) -> list[tuple[int, int]]:
    """(offset, size) of every chunk of a file, in the order of its digests."""
    extents = _pieces(0, found.size)
    for tensor in found.tensors:
        extents += _pieces(tensor.offset, tensor.size)
    return extents
