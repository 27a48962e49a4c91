"""Cut a model: from the metadata and tensor index of the original to a smaller, valid GGUF file, without reading it.

A cut is a header of our own and byte ranges of the original. What makes each cut compute exactly what the whole
model computes is in `architectures` and `rewrite`; here tensors are chosen, renamed and laid out.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from p2pnode.compute.architectures import ARCHITECTURES, Architecture, architecture_of, refusal, row_scale
from p2pnode.compute.ggml_types import F32, TENSOR_TYPES, TensorType
from p2pnode.compute.gguf_values import ModelIndex, TensorInfo, align_up, header_bytes
from p2pnode.compute.part import (
    Cut,
    CutFacts,
    Inline,
    Part,
    Piece,
    Source,
    Zeros,
    check_part,
    real_layer_count,
)
from p2pnode.compute.rewrite import Rewriter, recurrent_layers, sliding_pattern, vocabulary_size
from p2pnode.errors import BadModelFile

_LAYER_TENSOR = re.compile(r"^blk\.(\d+)\.(.+)$")
_OUTPUT = "output.weight"
_EMBEDDING = "token_embd.weight"
_SHARED = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")
_FINGERPRINT_BYTES = 16


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of the new file: its bytes come from `source`, or from `filler`."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    source: TensorInfo | None = None
    filler: Piece | None = None

    @property
    def size(self) -> int:
        return prod(self.shape) // self.type.block_elements * self.type.block_bytes

    def pieces(self) -> Piece:
        if self.source is not None:
            return Source(self.source.file, self.source.offset, self.source.size)
        assert self.filler is not None
        return self.filler


def _original(tensor: TensorInfo, name: str | None = None) -> _Tensor:
    return _Tensor(name or tensor.name, tensor.shape, tensor.type, source=tensor)


def _zeros(name: str, shape: tuple[int, ...], kind: TensorType) -> _Tensor:
    tensor = _Tensor(name, shape, kind)
    return _Tensor(name, shape, kind, filler=Zeros(tensor.size))


def _ones(name: str, shape: tuple[int, ...]) -> _Tensor:
    return _Tensor(name, shape, F32, filler=Inline(struct.pack("<f", 1.0) * prod(shape)))


@dataclass(frozen=True, slots=True)
class _Layer:
    source: int
    inert: bool = False


def _is_whole(index: ModelIndex, part: Part) -> bool:
    return (
        part.embedding
        and part.output
        and part.shard is None
        and part.layer_first == 0
        and part.layer_end == real_layer_count(index)
    )


def _layers(row: Architecture, index: ModelIndex, part: Part) -> list[_Layer]:
    """The part's layers, and inert ones of the kinds that llama.cpp insists on.

    An inert layer has weights of zero only: it adds exactly nothing to the hidden state.
    """
    layers = [_Layer(layer) for layer in range(part.layer_first, part.layer_end)]
    recurrent = recurrent_layers(row, index)[: real_layer_count(index)]
    missing = set(recurrent) - {recurrent[layer.source] for layer in layers}
    if not row.recurrent and not layers:
        return [_Layer(0, inert=True)]
    return layers + [_Layer(recurrent.index(kind), inert=True) for kind in sorted(missing) if row.recurrent]


def _check_boundaries(row: Architecture, index: ModelIndex, part: Part) -> None:
    for boundary in (part.layer_first, part.layer_end):
        if boundary % row.boundary and boundary != real_layer_count(index):
            raise refusal(row.name, f"it is cut at multiples of {row.boundary} layers only")
    lite = part.layer_count in (26, 27) or (part.layer_count == 48 and vocabulary_size(index) == 128_256)
    if lite and index.architecture == "deepseek2" and index.parameter("attention.q_lora_rank", 0):
        raise refusal(row.name, f"llama.cpp takes {part.layer_count} layers for the lite model; move the cut")


def _inert(row: Architecture, name: str, suffix: str, tensor: TensorInfo) -> _Tensor:
    if suffix in row.inert_ones:
        return _ones(name, tensor.shape)
    return _zeros(name, tensor.shape, tensor.type)


def _layer_tensors(row: Architecture, index: ModelIndex, layers: Sequence[_Layer]) -> Iterator[_Tensor]:
    by_layer: dict[int, list[tuple[str, TensorInfo]]] = {}
    for tensor in index.tensors.values():
        match = _LAYER_TENSOR.match(tensor.name)
        if match:
            by_layer.setdefault(int(match[1]), []).append((match[2], tensor))
    for number, layer in enumerate(layers):
        if layer.source not in by_layer:
            raise BadModelFile(f"the model has no layer {layer.source}", hint="fetch it again")
        for suffix, tensor in by_layer[layer.source]:
            name = f"blk.{number}.{suffix}"
            yield _inert(row, name, suffix, tensor) if layer.inert else _original(tensor, name)


def _small_type(width: int) -> TensorType:
    """The type with the fewest bytes for rows nobody reads."""
    return next(
        (TENSOR_TYPES[n] for n in (41, 2) if width % TENSOR_TYPES[n].block_elements == 0), TENSOR_TYPES[1]
    )


def _matrices(row: Architecture, index: ModelIndex, part: Part) -> Iterator[_Tensor]:
    """The embedding and the output matrix, or what llama.cpp accepts in their place."""
    width = index.parameter_int("embedding_length")
    vocabulary = vocabulary_size(index)
    rows = vocabulary if part.embedding or part.output else 1
    filler = _small_type(width) if rows > 1 else F32
    embedding, matrix = index.tensors[_EMBEDDING], index.tensors.get(_OUTPUT)
    moved = part.output and not part.embedding and matrix is not None and not row.output_required
    if part.embedding or (part.output and matrix is None):
        yield _original(embedding)
    elif moved and matrix is not None:
        yield _original(matrix, _EMBEDDING)
    else:
        yield _zeros(_EMBEDDING, (width, rows), filler)
    if part.output and matrix is not None and not moved:
        yield _original(matrix)
    elif row.output_required and not part.output:
        yield _zeros(_OUTPUT, (width, rows), filler)


def _global_tensors(row: Architecture, index: ModelIndex, part: Part) -> Iterator[_Tensor]:
    """Embedding, output, and what all layers share."""
    yield from _matrices(row, index, part)
    for name, tensor in index.tensors.items():
        if name in (_OUTPUT, _EMBEDDING) or _LAYER_TENSOR.match(name):
            continue
        if name.startswith(_SHARED) or part.output:
            yield _original(tensor)
        elif name == f"{row.output_norm}.weight":
            yield _ones(name, tensor.shape)
        elif name.startswith(f"{row.output_norm}."):
            yield _zeros(name, tensor.shape, tensor.type)
        elif name == "output.bias" and row.output_bias_required:
            yield _zeros(name, (vocabulary_size(index) if part.embedding else 1,), F32)


def _tensors(row: Architecture, index: ModelIndex, part: Part) -> list[_Tensor]:
    layers = _layers(row, index, part)
    return [*_global_tensors(row, index, part), *_layer_tensors(row, index, layers)]


def _lay_out(tensors: Sequence[_Tensor], alignment: int) -> Iterator[Piece]:
    for tensor in tensors:
        piece = tensor.pieces()
        assert piece.total == tensor.size, tensor.name
        if piece.total:
            yield piece
        padding = align_up(tensor.size, alignment) - tensor.size
        if padding:
            yield Zeros(padding)


def _facts(
    row: Architecture, index: ModelIndex, part: Part, layer_count: int, header: bytes, model_id: bytes
) -> CutFacts:
    digest = hashlib.blake2b(header, digest_size=_FINGERPRINT_BYTES, person=b"p2pnode-unit-1")
    digest.update(repr(part).encode() + model_id)
    layers = range(part.layer_first, part.layer_end)
    sliding, recurrent = sliding_pattern(row, index), recurrent_layers(row, index)
    return CutFacts(
        architecture=index.architecture,
        layer_count=layer_count,
        width=index.parameter_int("embedding_length"),
        vocabulary=vocabulary_size(index),
        input="tokens" if part.embedding else "rows",
        output="logits" if part.output else "rows",
        tap=None if part.output else f"l_out-{part.layer_count - 1}",
        row_scale=1.0 if part.embedding else row_scale(row, index),
        positions=row.positions,
        tokenizer=part.output,
        sliding=any(sliding[layer] for layer in layers),
        recurrent=any(recurrent[layer] for layer in layers),
        reduce=(),
        fingerprint=digest.hexdigest(),
    )


def cut(index: ModelIndex, part: Part, model_id: bytes = b"") -> Cut:
    """The file for one part of a model; `model_id` (say, its content id) goes into the fingerprint.

    Raises: PlanError for a part that cannot be, ArchitectureUnsupported with the reason, BadModelFile
    """
    check_part(index, part)
    if _is_whole(index, part):
        row = _row_or_plain(index)
        entries, tensors = list(index.metadata.values()), [_original(each) for each in index.tensors.values()]
        layer_count = index.layer_count
    else:
        row = architecture_of(index)
        _check_boundaries(row, index, part)
        if part.shard is not None:
            raise refusal(row.name, row.shard_refusal)
        layers = _layers(row, index, part)
        layer_count = len(layers)
        rewriter = Rewriter(row, index)
        rewriter.layers([layer.source for layer in layers])
        if not part.embedding:
            rewriter.rows_input()
        if not part.output:
            rewriter.without_tokenizer(vocabulary_size(index) if part.embedding else 1)
        entries, tensors = rewriter.entries(), _tensors(row, index, part)
    header, _ = header_bytes(
        entries, [(each.name, each.shape, each.type, each.size) for each in tensors], index.alignment
    )
    pieces = tuple(_lay_out(tensors, index.alignment))
    facts = _facts(row, index, part, layer_count, header, model_id)
    return Cut(part, header, pieces, facts, len(header) + sum(piece.total for piece in pieces))


def _row_or_plain(index: ModelIndex) -> Architecture:
    """A whole model needs no row of the table."""
    return ARCHITECTURES.get(index.architecture, Architecture(index.architecture))


def needed_tensors(index: ModelIndex, part: Part) -> list[str]:
    """Names of the original's tensors whose bytes a node needs for this part."""
    check_part(index, part)
    if _is_whole(index, part):
        return list(index.tensors)
    row = architecture_of(index)
    return [tensor.source.name for tensor in _tensors(row, index, part) if tensor.source is not None]
