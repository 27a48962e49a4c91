"""The shard table of a model: digests of what ranks of a tensor group fetch, beside the manifest's for each chunk.

A rank computes with some rows of `attn_q/k/v` and `ffn_gate/up` and some columns of `attn_output` and `ffn_down`.
Columns lie in every row, so a chunk, which is a run of the file, holds columns of all ranks; and where rows of two
ranks meet, both need the chunk. A *tile* is as little as shards are ever cut by. Where tiles lie follows from the
manifest alone, and the table adds their digests: anybody who holds these tensors computes the same bytes.
Format: specs/04-blobs.md.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import msgpack
import numpy as np
from blake3 import blake3

from p2pnode import limits
from p2pnode.errors import BadModelFile
from p2pnode.models import cid
from p2pnode.models.header import TensorExtent, block_of
from p2pnode.models.manifest import Manifest, Span, TensorEntry
from p2pnode.units import ContentId

FORMAT_VERSION = 1
_BY_COLUMNS = re.compile(r"blk\.\d{1,4}\.(attn_output|ffn_down|ffn_down_exps)\.weight")
_BY_ROWS = re.compile(r"blk\.\d{1,4}\.(attn_q|attn_k|attn_v|ffn_(gate|up)(_exps)?)\.weight")


@dataclass(frozen=True, slots=True)
class Grid:
    """The tiles of one tensor.

    It is `lines` long runs of bytes, of each of which a rank needs the same stretch: the rows of a tensor cut by
    columns, the matrices of one cut by rows (mostly there is one). Tiles lie in bands of lines, the first lines first,
    and in each band from left to right.
    """

    tensor: str
    file: int
    offset: int
    lines: int
    line_bytes: int
    width: int
    """Bytes of a line in one tile; in the last column of tiles they may be fewer."""
    first: int
    """Number of its first tile among those of the model."""

    @property
    def band(self) -> int:
        """Lines of a tile; those of the last band may be fewer."""
        return max(1, limits.CHUNK_BYTES // self.width)

    @property
    def columns(self) -> int:
        return -(-self.line_bytes // self.width)

    @property
    def count(self) -> int:
        return self.columns * -(-self.lines // self.band)

    def fits(self, span: Span) -> bool:
        """Whether a span means stretches of these lines."""
        return span.every == self.line_bytes and 0 <= span.first < span.end <= span.every

    def columns_of(self, span: Span) -> tuple[int, int]:
        """Columns of tiles that cover a span that fits."""
        return span.first // self.width, -(-span.end // self.width)

    def numbers(self, first: int, end: int) -> list[int]:
        """Tiles, ascending, of the columns [first, end)."""
        bands = self.count // self.columns
        return [self.first + band * self.columns + at for band in range(bands) for at in range(first, end)]

    def tile(self, number: int, digest: bytes) -> Tile:
        band, column = divmod(number - self.first, self.columns)
        line, at = band * self.band, column * self.width
        lines, width = min(self.band, self.lines - line), min(self.width, self.line_bytes - at)
        return Tile(number, self, line, lines, at, width, digest)

    def digests(self, pieces: Iterable[bytes]) -> bytes:
        """Digests of all tiles, from the bytes of the tensor in pieces of any size."""
        digester = _Digester(self)
        for piece in pieces:
            digester.take(memoryview(piece))
        return digester.end()


class _Digester:
    """Hashes the tiles of a band side by side, so that a tensor is read once and in order."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._hashers = [blake3() for _ in range(grid.columns)]
        self._lines = 0
        """Whole lines taken of this band."""
        self._at = 0
        """Bytes taken of the line after them."""
        self._done: list[bytes] = []

    def take(self, data: memoryview) -> None:
        grid = self._grid
        while data:
            if self._at or len(data) < grid.line_bytes:
                column = self._at // grid.width
                end = min((column + 1) * grid.width, grid.line_bytes)
                size = min(len(data), end - self._at)
                self._hashers[column].update(data[:size])
                self._at += size
                if self._at == grid.line_bytes:
                    self._at = 0
                    self._took(1)
            else:
                count = min(len(data) // grid.line_bytes, grid.band - self._lines)
                size = count * grid.line_bytes
                lines = np.frombuffer(data[:size], np.uint8).reshape(count, grid.line_bytes)
                for column, hasher in enumerate(self._hashers):
                    at = column * grid.width
                    hasher.update(lines[:, at : at + grid.width].tobytes())
                self._took(count)
            data = data[size:]

    def _took(self, lines: int) -> None:
        self._lines += lines
        if self._lines == self._grid.band:
            self._close_band()

    def _close_band(self) -> None:
        self._done += [bytes(hasher.digest()) for hasher in self._hashers]
        self._hashers = [blake3() for _ in range(self._grid.columns)]
        self._lines = 0

    def end(self) -> bytes:
        if self._lines:
            self._close_band()
        assert self._at == 0, "the pieces are the whole tensor"
        assert len(self._done) == self._grid.count, "the pieces are the whole tensor"
        return b"".join(self._done)


@dataclass(frozen=True, slots=True)
class Tile:
    """Bytes [at, at + width) of `lines` lines from `line` on, one stretch behind the other."""

    index: int
    grid: Grid
    line: int
    lines: int
    at: int
    width: int
    digest: bytes

    @property
    def size(self) -> int:
        return self.lines * self.width

    def places(self, at: int, stride: int) -> list[tuple[int, int]]:
        """(offset, size) of its bytes where lines are `stride` bytes apart and its own stretch begins `at` bytes in."""
        start = self.line * stride + at
        if stride == self.width:
            return [(start, self.size)]
        return [(start + line * stride, self.width) for line in range(self.lines)]


class Tiles:
    """The tiles of a table by number, made when asked for: a large model has some hundred thousand."""

    def __init__(self, grids: tuple[Grid, ...], digests: bytes) -> None:
        self._grids, self._digests = grids, digests
        self._firsts = [grid.first for grid in grids]

    def __len__(self) -> int:
        return len(self._digests) // cid.DIGEST_BYTES

    def __getitem__(self, number: int) -> Tile:
        if not 0 <= number < len(self):
            raise IndexError(number)
        at = number * cid.DIGEST_BYTES
        grid = self._grids[bisect_right(self._firsts, number) - 1]
        return grid.tile(number, self._digests[at : at + cid.DIGEST_BYTES])


@dataclass(frozen=True)
class ShardTable:
    """Immutable; of one model there is one."""

    manifest: Manifest = field(repr=False)
    digests: bytes = field(repr=False)
    encoded: bytes = field(repr=False, compare=False)

    @cached_property
    def content_id(self) -> ContentId:
        return cid.of(self.encoded)

    @cached_property
    def grids(self) -> dict[str, Grid]:
        return {grid.tensor: grid for grid in grids_of(self.manifest)}

    @cached_property
    def chunks(self) -> Tiles:
        return Tiles(tuple(self.grids.values()), self.digests)

    def bytes_of(self, indexes: Iterable[int]) -> int:
        return sum(self.chunks[index].size for index in indexes)


def grids_of(manifest: Manifest) -> tuple[Grid, ...]:
    """Where the tiles of a model lie; none for a model that has no such tensors, or too many tiles."""
    extents = {extent.name: extent for found in manifest.outlines for extent in found.tensors}
    grids: list[Grid] = []
    total = 0
    for entry in manifest.tensors.values():
        grid = _grid(entry, extents[entry.name], total)
        if grid is not None:
            grids.append(grid)
            total += grid.count
    return tuple(grids) if total <= limits.SHARD_TILES_MAX else ()


def _grid(entry: TensorEntry, extent: TensorExtent, first: int) -> Grid | None:
    """None for a tensor that shards are not cut from, or whose tiles would be too many or too large."""
    shape, (values, size) = extent.shape, block_of(extent.ggml_type)
    if len(shape) < 2:
        return None
    row = shape[0] // values * size
    if _BY_COLUMNS.fullmatch(entry.name):
        lines, line_bytes = prod(shape[1:]), row
        width = size * max(1, limits.SHARD_TILE_VALUES_MIN // values)
    elif _BY_ROWS.fullmatch(entry.name):
        lines, line_bytes = prod(shape[2:]), shape[1] * row
        width = row * max(1, min(limits.SHARD_TILE_VALUES_MIN, limits.CHUNK_BYTES // row))
    else:
        return None
    grid = Grid(entry.name, entry.file, entry.offset, lines, line_bytes, width, first)
    fits = width <= limits.CHUNK_BYTES and grid.columns <= limits.SHARD_TILES_PER_LINE_MAX
    return grid if fits else None


def build(manifest: Manifest, digests: bytes) -> ShardTable:
    assert len(digests) == sum(grid.count for grid in grids_of(manifest)) * cid.DIGEST_BYTES > 0
    body = [FORMAT_VERSION, cid.to_digest(manifest.content_id), digests]
    return ShardTable(manifest, digests, bytes(msgpack.packb(body, use_bin_type=True)))


def decode(data: bytes, manifest: Manifest) -> ShardTable:
    """Read the table of a model from anywhere; BadModelFile unless it is exactly what `build` would write."""
    try:
        body = msgpack.unpackb(data, raw=False, max_ext_len=0, max_map_len=0)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise BadModelFile("shard table is not valid msgpack") from error
    match body:
        case [int(version), bytes(model), bytes(digests)] if version == FORMAT_VERSION:
            pass
        case _:
            raise BadModelFile("shard table has the wrong shape or version")
    if model != cid.to_digest(manifest.content_id):
        raise BadModelFile("shard table of another model")
    count = sum(grid.count for grid in grids_of(manifest))
    if not count or len(digests) != count * cid.DIGEST_BYTES:
        raise BadModelFile(f"shard table has {len(digests)} bytes of digests for {count} tiles")
    table = build(manifest, digests)
    if table.encoded != data:
        raise BadModelFile("shard table is not in canonical form")
    return table
