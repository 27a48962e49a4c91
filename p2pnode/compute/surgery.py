"""Cut a model: from the metadata and tensor index of the original to a smaller, valid GGUF file, without reading it.

A cut is a header of our own and byte ranges of the original. What makes each cut compute exactly what the whole
model computes is in `architectures` and `rewrite`; here tensors are chosen, renamed and laid out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from p2pnode.compute.architectures import (
    ARCHITECTURES,
    Architecture,
    architecture_of,
    position_count,
    refusal,
    row_scale,
)
from p2pnode.compute.ggml_types import F32, TENSOR_TYPES, TensorType
from p2pnode.compute.gguf_values import Entry, ModelIndex, TensorInfo, align_up, header_bytes
from p2pnode.compute.new_tensor import NewTensor, ones, original, zeros
from p2pnode.compute.part import (
    Cut,
    CutFacts,
    Part,
    Piece,
    Shard,
    VirtualFile,
    Zeros,
    check_part,
    real_layer_count,
)
from p2pnode.compute.rewrite import Rewriter, recurrent_layers, sliding_pattern, vocabulary_size
from p2pnode.compute.shard import ShardPlan, reduce_names
from p2pnode.errors import ArchitectureUnsupported, BadModelFile, PlanError

_LAYER_TENSOR = re.compile(r"^blk\.(\d+)\.(.+)$")
_OUTPUT = "output.weight"
_EMBEDDING = "token_embd.weight"
_SHARED = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")
_FINGERPRINT_BYTES = 16
_SMALLEST = Shard(0, (1, 1 << 20))

LayerTensors = dict[int, list[tuple[str, TensorInfo]]]


@dataclass(frozen=True, slots=True)
class _Layer:
    source: int
    inert: bool = False


@dataclass(frozen=True, slots=True)
class _Content:
    """What goes into the new file."""

    row: Architecture
    entries: list[Entry]
    tensors: list[NewTensor]
    layer_count: int
    reduce: tuple[str, ...] = ()


def _is_whole(index: ModelIndex, part: Part) -> bool:
    return part == Part(0, real_layer_count(index), embedding=True, output=True)


def _layers(row: Architecture, index: ModelIndex, part: Part) -> list[_Layer]:
    """The part's layers, and inert ones of the kinds that llama.cpp insists on.

    An inert layer has weights of zero only: it adds exactly nothing to the hidden state.
    """
    layers = [_Layer(layer) for layer in range(part.layer_first, part.layer_end)]
    real = real_layer_count(index)
    kinds = recurrent_layers(row, index)[:real]
    sliding = sliding_pattern(row, index)[:real]
    inert = [_last(kinds, kind) for kind in sorted(set(kinds) - {kinds[each.source] for each in layers})]
    if not row.recurrent:
        inert = [] if layers else [0]
    slides = any(sliding[each] for each in (*inert, *(layer.source for layer in layers)))
    if row.sliding is not None and row.sliding.without == "inert" and any(sliding) and not slides:
        inert = [_last(sliding, True)]
    inert += [0] * (row.layers_min - len(layers) - len(inert))
    return layers + [_Layer(source, inert=True) for source in sorted(inert)]


def _last(kinds: Sequence[bool], kind: bool) -> int:
    """The last layer of a kind: behind leading dense layers there are no others to follow it."""
    return max(layer for layer, each in enumerate(kinds) if each == kind)


def _check_boundaries(row: Architecture, index: ModelIndex, part: Part) -> None:
    for boundary in (part.layer_first, part.layer_end):
        if boundary % row.boundary and boundary != real_layer_count(index):
            raise refusal(row.name, f"it is cut at multiples of {row.boundary} layers only")
    if row.boundary > 1 and max(1, part.layer_count) < row.layers_min:
        raise refusal(row.name, f"a part of it has at least {row.layers_min} layers")
    lite = part.layer_count in (26, 27) or (part.layer_count == 48 and vocabulary_size(index) == 128_256)
    if lite and index.architecture == "deepseek2" and index.parameter("attention.q_lora_rank", 0):
        raise refusal(row.name, f"llama.cpp takes {part.layer_count} layers for the lite model; move the cut")


def tensors_by_layer(index: ModelIndex, sources: Sequence[int]) -> LayerTensors:
    """Tensors of some layers, by their names behind `blk.N.`; BadModelFile where a layer has none."""
    found: LayerTensors = {source: [] for source in sources}
    for tensor in index.tensors.values():
        match = _LAYER_TENSOR.match(tensor.name)
        if match and int(match[1]) in found:
            found[int(match[1])].append((match[2], tensor))
    for number, tensors in found.items():
        if not tensors:
            raise BadModelFile(f"the model has no layer {number}", hint="fetch it again")
    return found


def _inert(row: Architecture, suffix: str, tensor: NewTensor) -> NewTensor:
    if suffix in row.inert_ones:
        return ones(tensor.name, tensor.shape)
    return zeros(tensor.name, tensor.shape, tensor.type)


def shard_plan(row: Architecture, index: ModelIndex, part: Part, found: LayerTensors) -> ShardPlan | None:
    """The part's share of each layer; of an inert layer, the smallest share there can be."""
    if part.layer_count:
        return ShardPlan(row, index, part.shard, found) if part.shard else None
    try:
        return ShardPlan(row, index, _SMALLEST, found)
    except (ArchitectureUnsupported, PlanError):
        return None


def _layer_tensors(
    row: Architecture, layers: Sequence[_Layer], found: LayerTensors, shard: ShardPlan | None
) -> Iterator[NewTensor]:
    for number, layer in enumerate(layers):
        for suffix, tensor in found[layer.source]:
            name = f"blk.{number}.{suffix}"
            kept = shard.tensor(layer.source, suffix, tensor, name) if shard else original(tensor, name)
            yield _inert(row, suffix, kept) if layer.inert else kept


def _small_type(width: int) -> TensorType:
    """The type with the fewest bytes for rows nobody reads."""
    return next(
        (TENSOR_TYPES[n] for n in (41, 2) if width % TENSOR_TYPES[n].block_elements == 0), TENSOR_TYPES[1]
    )


def _matrices(row: Architecture, index: ModelIndex, part: Part) -> Iterator[NewTensor]:
    """The embedding and the output matrix, or what llama.cpp accepts in their place."""
    width = index.parameter_int("embedding_length")
    vocabulary = vocabulary_size(index)
    rows = vocabulary if part.embedding or part.output else 1
    filler = _small_type(width) if rows > 1 else F32
    embedding, matrix = index.tensors[_EMBEDDING], index.tensors.get(_OUTPUT)
    moved = part.output and not part.embedding and matrix is not None and not row.output_required
    if part.embedding or (part.output and matrix is None):
        yield original(embedding)
    elif moved and matrix is not None:
        yield original(matrix, _EMBEDDING)
    else:
        yield zeros(_EMBEDDING, (width, rows), filler)
    if part.output and matrix is not None and not moved:
        yield original(matrix)
    elif row.output_required and not part.output:
        yield zeros(_OUTPUT, (width, rows), filler)


def _global_tensors(
    row: Architecture, index: ModelIndex, part: Part, layers: Sequence[_Layer]
) -> Iterator[NewTensor]:
    """Embedding, output, and what all layers share."""
    yield from _matrices(row, index, part)
    sliding = sliding_pattern(row, index)
    no_freqs = row.rope_freqs_dense_only and all(sliding[layer.source] for layer in layers)
    for name, tensor in index.tensors.items():
        if name in (_OUTPUT, _EMBEDDING) or _LAYER_TENSOR.match(name):
            continue
        if no_freqs and name.startswith("rope_freqs."):
            continue
        if name.startswith(_SHARED) or part.output:
            yield original(tensor)
        elif name == f"{row.output_norm}.weight":
            yield ones(name, tensor.shape)
        elif name.startswith(f"{row.output_norm}."):
            yield zeros(name, tensor.shape, tensor.type)
        elif name == "output.bias" and row.output_bias_required:
            yield zeros(name, (vocabulary_size(index) if part.embedding else 1,), tensor.type)


def _content(index: ModelIndex, part: Part) -> _Content:
    check_part(index, part)
    if _is_whole(index, part):
        row = ARCHITECTURES.get(index.architecture, Architecture(index.architecture))
        tensors = [original(each) for each in index.tensors.values()]
        return _Content(row, list(index.metadata.values()), tensors, index.layer_count)
    row = architecture_of(index)
    _check_boundaries(row, index, part)
    layers = _layers(row, index, part)
    sources = [layer.source for layer in layers]
    found = tensors_by_layer(index, sources)
    rewriter = Rewriter(row, index)
    rewriter.layers(sources)
    if not part.embedding:
        rewriter.rows_input()
    if not part.output:
        rewriter.without_tokenizer(vocabulary_size(index) if part.embedding else 1)
    shard = shard_plan(row, index, part, found)
    if shard is not None:
        shard.rewrite(rewriter, sources)
    tensors = [*_global_tensors(row, index, part, layers), *_layer_tensors(row, layers, found, shard)]
    if shard is not None:
        tensors += shard.additions(len(layers))
        rewriter.rename(row.shard_as)
    reduce = reduce_names(found, sources) if part.shard and part.layer_count else ()
    return _Content(row, rewriter.entries(), tensors, len(layers), reduce)


def _lay_out(tensors: Sequence[NewTensor], alignment: int) -> Iterator[Piece]:
    for tensor in tensors:
        assert tensor.piece.total == tensor.size, tensor.name
        if tensor.size:
            yield tensor.piece
        padding = align_up(tensor.size, alignment) - tensor.size
        if padding:
            yield Zeros(padding)


def virtual_file(entries: Sequence[Entry], tensors: Sequence[NewTensor], alignment: int) -> VirtualFile:
    """A GGUF file of these entries and tensors."""
    infos = [(each.name, each.shape, each.type, each.size) for each in tensors]
    header, _ = header_bytes(entries, infos, alignment)
    pieces = tuple(_lay_out(tensors, alignment))
    return VirtualFile(header, pieces, len(header) + sum(piece.total for piece in pieces))


def _facts(index: ModelIndex, part: Part, content: _Content, header: bytes, model_id: bytes) -> CutFacts:
    row = content.row
    digest = hashlib.blake2b(header, digest_size=_FINGERPRINT_BYTES, person=b"p2pnode-unit-1")
    digest.update(part.text().encode() + b"\0" + model_id)
    layers = range(part.layer_first, part.layer_end)
    sliding, recurrent = sliding_pattern(row, index), recurrent_layers(row, index)
    return CutFacts(
        architecture=index.architecture,
        layer_count=content.layer_count,
        width=index.parameter_int("embedding_length"),
        vocabulary=vocabulary_size(index),
        input="tokens" if part.embedding else "rows",
        output="logits" if part.output else "rows",
        tap=None if part.output else f"l_out-{part.layer_count - 1}",
        row_scale=1.0 if part.embedding else row_scale(row, index),
        positions=position_count(row, index),
        tokenizer=part.output,
        sliding=any(sliding[layer] for layer in layers),
        recurrent=any(recurrent[layer] for layer in layers),
        reduce=content.reduce,
        fingerprint=digest.hexdigest(),
    )


def cut(index: ModelIndex, part: Part, model_id: bytes = b"") -> Cut:
    """The file for one part of a model; `model_id` (say, its content id) goes into the fingerprint.

    Raises: PlanError for a part that cannot be, ArchitectureUnsupported with the reason, BadModelFile
    """
    content = _content(index, part)
    file = virtual_file(content.entries, content.tensors, index.alignment)
    facts = _facts(index, part, content, file.header, model_id)
    return Cut(file.header, file.pieces, file.size, part, facts)


def needed_tensors(index: ModelIndex, part: Part) -> list[str]:
    """Names of the original's tensors whose bytes a node needs for this part."""
    return [tensor.origin for tensor in _content(index, part).tensors if tensor.origin is not None]
