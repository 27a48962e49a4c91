"""From a part of a model to what an engine loads: byte ranges of files on this disk, and the facts about them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from p2pnode import limits
from p2pnode.compute.engine_options import DEFAULTS, DEVICE_DEFAULTS, DeviceOptions, EngineOptions
from p2pnode.compute.engine_protocol import TokenTable, UnitSpec
from p2pnode.compute.gguf import ModelIndex
from p2pnode.compute.memory import part_memory
from p2pnode.compute.part import Cut, Inline, Part, Shard, Source, Zeros, real_layer_count, whole
from p2pnode.compute.surgery import cut, needed_tensors
from p2pnode.compute.virtual_file import FilePiece, InlinePiece
from p2pnode.models.manifest import Span, Want
from p2pnode.models.strips import Strip

EMBEDDING = "token_embd.weight"
NO_STRIPS: Mapping[str, Strip] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class UnitOptions:
    """What the plan and this device decide about a unit, beside the part itself."""

    context_tokens: int
    sessions: int
    threads: int
    resident_bytes_max: int = 0
    prefix_bytes: int = 0
    """What a plan keeps of finished requests, over all its devices."""
    engine: EngineOptions = DEFAULTS
    """The same on every device of a plan."""
    device: DeviceOptions = DEVICE_DEFAULTS
    """This device's own."""


def is_tied(index: ModelIndex) -> bool:
    """Whether the output matrix is the token embedding."""
    return "output.weight" not in index.tensors


def part_of_stage(
    index: ModelIndex, layer_first: int, layer_end: int, *, rank: int = 0, shares: Sequence[int] = ()
) -> Part:
    """The layers of one stage. The output belongs to the head, so a stage never carries it.

    With tied embeddings the head holds the matrix for its output already; a first stage then looks rows up
    in the file instead of loading the matrix a second time.
    """
    shard = Shard(rank, tuple(shares)) if len(shares) > 1 else None
    return Part(layer_first, layer_end, embedding=layer_first == 0 and not _looks_rows_up(index), shard=shard)


def output_part(index: ModelIndex) -> Part:
    """Output norm and matrix alone: what a head needs to sample when stages hold all layers."""
    count = real_layer_count(index)
    return Part(count, count, output=True)


def wants_of(index: ModelIndex, part: Part) -> list[Want]:
    """What must be on this disk for a part, row lookups included.

    Of a shard's row-wise cut tensors only its own rows. Columns lie in every row, a few hundred bytes at a time: of
    tensors cut by columns that span of each row, or else every chunk (specs/decisions/0023).
    """
    names = needed_tensors(index, part)
    if part.layer_first == 0 and not part.embedding and EMBEDDING not in names:
        names.append(EMBEDDING)
    if part.shard is None:
        return [Want(name) for name in names]
    cut_pieces = [piece for piece in cut(index, part).all_pieces() if isinstance(piece, Source)]
    by_place = sorted((index.tensors[name].file, index.tensors[name].offset, name) for name in names)
    wants = [want for piece in cut_pieces for want in _wants_of(piece, index, by_place)]
    taken = {want.tensor for want in wants}
    return wants + [Want(name) for name in names if name not in taken]


def _wants_of(piece: Source, index: ModelIndex, by_place: Sequence[tuple[int, int, str]]) -> Iterator[Want]:
    """The bytes of one tensor that a piece reads; gaps smaller than a chunk are not worth leaving out."""
    at = bisect_right(by_place, (piece.file, piece.offset, "\U0010ffff")) - 1
    tensor = index.tensors[by_place[at][2]]
    first = piece.offset - tensor.offset
    span = Span(first, first + piece.size, piece.stride) if piece.size < piece.stride else None
    if piece.count == 1 or piece.stride - piece.size < limits.CHUNK_BYTES:
        yield Want(tensor.name, first, first + (piece.count - 1) * piece.stride + piece.size, span)
        return
    for number in range(piece.count):
        start = first + number * piece.stride
        yield Want(tensor.name, start, start + piece.size, span)


def unit_spec(
    index: ModelIndex,
    paths: Sequence[Path],
    part: Part,
    options: UnitOptions,
    *,
    model_id: bytes,
    is_last: bool,
    strips: Mapping[str, Strip] = NO_STRIPS,
) -> UnitSpec:
    """Raises what surgery raises: PlanError, ArchitectureUnsupported, BadModelFile."""
    made = cut(index, part, model_id)
    facts = made.facts
    stateless = part.layer_count == 0
    spec = UnitSpec(
        pieces=tuple(_pieces(made, paths, index, tuple(strips.values()))),
        input=facts.input,
        output=_output(part, facts.output),
        tap=facts.tap,
        input_scale=1.0 if facts.row_scale == 1.0 else 1.0 / facts.row_scale,
        rows_out="wanted" if is_last and not part.output else "all",
        reduce=facts.reduce,
        rank=part.shard.rank if part.shard else 0,
        ranks=part.shard.count if part.shard else 1,
        stateless=stateless,
        context_tokens=limits.OUTPUT_UNIT_TOKENS if stateless else options.context_tokens,
        batch_rows=limits.OUTPUT_UNIT_TOKENS if stateless else limits.UNIT_BATCH_ROWS,
        sessions_max=options.sessions,
        threads=options.threads,
        threads_batch=options.threads,
        fingerprint=facts.fingerprint,
        resident_bytes_max=options.resident_bytes_max,
        # The head counts what all stages keep; a unit refuses only what no head in its right mind asks for.
        prefix_bytes_max=0 if stateless else 2 * options.prefix_bytes,
        conversations_bytes_max=0 if stateless else conversations_bytes(index, part, options),
    )
    spec = options.device.applied(options.engine.applied(spec))
    if part.layer_first == 0 and not part.embedding and not stateless:
        return replace(spec, token_table=_token_table(index, paths))
    return spec


def conversations_bytes(index: ModelIndex, part: Part, options: UnitOptions) -> int:
    """Keys and values of a part once its cells and its share of the kept prefixes are full."""
    slim = index.without_vocabulary()
    own, of_all = (
        part_memory(slim, each, key_type=options.engine.kv_k, value_type=options.engine.kv_v)
        for each in (part, whole(slim))
    )
    cell, all_cells = own.cache_bytes_per_token, of_all.cache_bytes_per_token
    kept = options.prefix_bytes * cell // all_cells if all_cells else 0
    return cell * options.context_tokens + own.state_bytes_per_session * options.sessions + kept


def _output(part: Part, kind: str) -> Literal["sample", "rows", "none"]:
    if part.shard is not None and part.shard.rank > 0:
        return "none"  # every rank ends with the same sums; the leader's are the ones that travel
    return "sample" if kind == "logits" else "rows"


def _looks_rows_up(index: ModelIndex) -> bool:
    return is_tied(index) and index.architecture in ("llama", "qwen2", "qwen3", "qwen2moe", "qwen3moe")


def _token_table(index: ModelIndex, paths: Sequence[Path]) -> TokenTable:
    tensor = index.tensors[EMBEDDING]
    columns, rows = tensor.shape[0], math.prod(tensor.shape[1:])
    return TokenTable(str(paths[tensor.file]), tensor.offset, tensor.type.number, rows, columns)


def _pieces(
    made: Cut, paths: Sequence[Path], index: ModelIndex, strips: Sequence[Strip]
) -> Iterator[FilePiece | InlinePiece]:
    for piece in made.all_pieces():
        match piece:
            case Inline(data):
                yield from _without_copies(data, index, str(paths[0]))
            case Zeros(total):
                yield InlinePiece(bytes(total))
            case Source() if (strip := _strip_of(piece, strips)) is not None:
                yield _in_strip(piece, strip)
            case Source():
                path = str(paths[piece.file])
                yield FilePiece(path, piece.offset, piece.size, piece.count, piece.stride)


def _strip_of(piece: Source, strips: Sequence[Strip]) -> Strip | None:
    for strip in strips:
        grid = strip.grid
        if grid.file == piece.file and 0 <= piece.offset - grid.offset < grid.lines * grid.line_bytes:
            return strip
    return None


def _in_strip(piece: Source, strip: Strip) -> FilePiece:
    """The same bytes where a strip has them: one run, when it has no others."""
    if piece.size == strip.line_bytes:
        return FilePiece(str(strip.path), 0, strip.size)
    at = piece.offset - strip.grid.offset - strip.at
    return FilePiece(str(strip.path), at, piece.size, piece.count, strip.line_bytes)


def _without_copies(header: bytes, index: ModelIndex, path: str) -> Iterator[FilePiece | InlinePiece]:
    """A new header, of which long arrays that stand in it as in the file (a vocabulary) are read from there.

    A node keeps what its engines were loaded with, to start them again: so it need not keep megabytes.
    """
    done = 0
    for entry in index.metadata.values():
        if entry.offset < 0 or len(entry.raw) <= limits.HEADER_OMIT_BYTES_MIN:
            continue
        start = header.find(entry.raw, done)
        if start >= 0:
            yield InlinePiece(header[done:start])
            yield FilePiece(path, entry.offset, len(entry.raw))
            done = start + len(entry.raw)
    yield InlinePiece(header[done:])
