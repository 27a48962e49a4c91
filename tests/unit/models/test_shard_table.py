"""Tiles of tensors that shards are cut from: where they lie, what they hash, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.errors import BadModelFile
from p2pnode.models import cid, shard_table
from p2pnode.models.header import block_of
from p2pnode.models.importer import read_manifest
from p2pnode.models.manifest import Manifest, Span
from p2pnode.models.shard_table import Grid, ShardTable, Tile, grids_of
from p2pnode.models.strips import Strip
from tests.kit.gguf_files import matrices

TYPES = {"F32": 0, "F16": 1, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14}
DOWN, UP, EXPERTS = "blk.0.ffn_down.weight", "blk.1.ffn_up.weight", "blk.0.ffn_gate_exps.weight"
Shapes = list[tuple[str, tuple[int, ...], int]]


def model_of(folder: Path, shapes: Shapes, seed: int = 1) -> tuple[Manifest, bytes]:
    data = matrices(shapes, random.Random(seed).randbytes)
    path = folder / "m.gguf"
    path.write_bytes(data)
    return read_manifest([path]), data


def table_of(manifest: Manifest, data: bytes) -> ShardTable:
    return shard_table.build(
        manifest, b"".join(grid.digests([whole(grid, data)]) for grid in grids_of(manifest))
    )


def whole(grid: Grid, data: bytes) -> bytes:
    return data[grid.offset : grid.offset + grid.lines * grid.line_bytes]


def by_hand(tile: Tile, tensor: bytes) -> bytes:
    """The same bytes by the words of the specification."""
    size = tile.grid.line_bytes
    lines = [
        tensor[number * size : (number + 1) * size] for number in range(tile.line, tile.line + tile.lines)
    ]
    return b"".join(line[tile.at : tile.at + tile.width] for line in lines)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_gathered_and_scattered_is_the_tensor(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Tiles in bands of any height, hashed from pieces of any size, make up every strip of the tensor."""
    folder = tmp_path_factory.mktemp("grid")
    kind = TYPES[data.draw(st.sampled_from(sorted(TYPES)))]
    values, size = block_of(kind)
    lines = data.draw(st.integers(1, 20))
    line_bytes = size * data.draw(st.integers(1, 12 if values > 1 else 200))
    width = size * max(1, 32 // values)
    grid = Grid("t", 0, 0, lines, line_bytes, width, data.draw(st.integers(0, 5)))
    tensor = random.Random(data.draw(st.integers(0, 9))).randbytes(lines * line_bytes)
    step = data.draw(st.integers(1, len(tensor)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CHUNK_BYTES", data.draw(st.sampled_from([64, 512, 1500, 2**20])))
        digests = grid.digests(tensor[at : at + step] for at in range(0, len(tensor), step))
        assert len(digests) == grid.count * cid.DIGEST_BYTES
        tiles = {}
        for number in range(grid.first, grid.first + grid.count):
            at = (number - grid.first) * cid.DIGEST_BYTES
            tiles[number] = grid.tile(number, digests[at : at + cid.DIGEST_BYTES])
            content = by_hand(tiles[number], tensor)
            assert (len(content), cid.digest(content)) == (tiles[number].size, tiles[number].digest)
        first = data.draw(st.integers(0, line_bytes - 1))
        span = Span(first, data.draw(st.integers(first + 1, line_bytes)), line_bytes)
        assert grid.fits(span)
        strip = Strip(folder, grid, 0, *grid.columns_of(span))
        assert strip.covers(span.first, span.end)
        for number in data.draw(st.permutations(strip.numbers)):
            assert strip.lacks(number)
            strip.write(tiles[number], by_hand(tiles[number], tensor))
        assert strip.is_complete
        found = strip.path.read_bytes()
        for line in range(lines):
            own = tensor[line * line_bytes :][strip.at : strip.at + strip.line_bytes]
            assert found[line * strip.line_bytes : (line + 1) * strip.line_bytes] == own
        assert all(strip.read(tiles[number]) == by_hand(tiles[number], tensor) for number in strip.numbers)
    assert strip.at <= span.first < strip.at + width
    assert strip.at + strip.line_bytes - span.end < width


def test_tiles_lie_where_shards_are_cut(tmp_path: Path) -> None:
    """Of columns a quantisation block or 32 values; of rows 32; of a stack of matrices the same of each."""
    shapes: Shapes = [
        (DOWN, (512, 5), TYPES["Q4_K"]),
        (UP, (64, 80), TYPES["F16"]),
        (EXPERTS, (32, 64, 3), TYPES["Q8_0"]),
        ("blk.0.attn_norm.weight", (64,), 0),
        ("blk.0.ffn_gate.weight", (64,), 0),
        ("blk.0.attn_output.weight", (48, 4), 0),
        ("output.weight", (64, 4), 0),
    ]
    manifest, _ = model_of(tmp_path, shapes)
    found = {grid.tensor: grid for grid in grids_of(manifest)}
    assert {name: (g.lines, g.line_bytes, g.width, g.count) for name, g in found.items()} == {
        DOWN: (5, 288, 144, 2),
        UP: (1, 80 * 128, 32 * 128, 3),
        EXPERTS: (3, 64 * 34, 32 * 34, 2),
        "blk.0.attn_output.weight": (4, 192, 128, 2),
    }
    assert [grid.first for grid in found.values()] == [0, 2, 5, 7]
    assert not found[UP].fits(Span(0, 128, 256)), "stretches of other lines"
    assert not found[UP].fits(Span(128, 128, 80 * 128)), "nothing"
    assert not found[UP].fits(Span(0, 80 * 128 + 1, 80 * 128)), "more than a line"


def test_a_tile_is_no_larger_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES", 1024)
    manifest, data = model_of(tmp_path, [(UP, (64, 80), 0), (DOWN, (64, 80), 0), (EXPERTS, (512, 2, 2), 0)])
    up, down = grids_of(manifest)
    assert (up.tensor, up.width, down.band) == (UP, 1024, 8)
    table = table_of(manifest, data)
    assert all(table.chunks[number].size <= 1024 for number in range(len(table.chunks)))
    assert table.bytes_of(range(len(table.chunks))) == 2 * 64 * 80 * 4


def test_what_would_be_too_many_tiles_comes_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, _ = model_of(tmp_path, [(UP, (64, 96), 0), (DOWN, (64, 2), 0)])
    monkeypatch.setattr(limits, "SHARD_TILES_PER_LINE_MAX", 2)
    assert [grid.tensor for grid in grids_of(manifest)] == [DOWN]
    monkeypatch.setattr(limits, "SHARD_TILES_MAX", 1)
    assert grids_of(manifest) == ()


def test_a_table_reads_back(tmp_path: Path) -> None:
    manifest, data = model_of(tmp_path, [(UP, (64, 80), 0), (DOWN, (64, 80), 0)])
    table = table_of(manifest, data)
    again = shard_table.decode(table.encoded, manifest)
    assert again == table
    assert again.content_id == table.content_id == cid.of(table.encoded)
    assert [again.chunks[number].index for number in range(len(again.chunks))] == list(range(5))
    for number in (-1, 5):
        with pytest.raises(IndexError):
            again.chunks[number]


def test_a_table_of_anything_else_is_refused(tmp_path: Path) -> None:
    manifest, data = model_of(tmp_path, [(UP, (64, 80), 0)])
    good = table_of(manifest, data).encoded
    other, _ = model_of(tmp_path, [("t", (4, 4), 0)])
    for bad in (b"", b"\xc1", good + b"\0", good[:-1], good.replace(b"\x93\x01", b"\x93\x02", 1)):
        with pytest.raises(BadModelFile):
            shard_table.decode(bad, manifest)
    with pytest.raises(BadModelFile, match="another model"):
        shard_table.decode(good, other)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_garbage_is_refused(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    manifest, _ = model_of(tmp_path_factory.getbasetemp(), [(UP, (8, 40), 0)])
    with pytest.raises(BadModelFile):
        shard_table.decode(junk, manifest)
