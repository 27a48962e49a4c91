"""What a part wants on this disk: whole tensors of slices, own rows of shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from p2pnode import limits
from p2pnode.compute.gguf import open_model
from p2pnode.compute.part import Part, Shard, Source
from p2pnode.compute.surgery import cut, needed_tensors
from p2pnode.models.shard_table import grids_of
from p2pnode.models.store import ModelStore
from p2pnode.node.units import wants_of
from tests.kit.toy_models import TOYS, write_model

LLAMA = TOYS["llama"]
COLUMNS = ("attn_output", "ffn_down")


def shard(rank: int, *shares: int) -> Part:
    return Part(0, 2, shard=Shard(rank, shares))


@pytest.mark.parametrize("part", [shard(0, 1, 1), shard(1, 1, 1), shard(1, 2, 1)])
def test_a_rank_wants_its_own_rows(tmp_path: Path, part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte its cut reads; beside tensors cut by columns at most the rest of two chunks a tensor."""
    monkeypatch.setattr(limits, "CHUNK_BYTES", 256)
    path = write_model(tmp_path / "m.gguf", replace(LLAMA, layers=3))
    index, _ = open_model(path)
    store = ModelStore(tmp_path / "store")
    manifest = store.add_file(path).manifest
    wants = wants_of(index, part)
    chunks = manifest.chunks_for(wants)
    read = [piece for piece in cut(index, part).all_pieces() if isinstance(piece, Source)]
    ranges = [
        (piece.file, piece.offset + number * piece.stride, piece.size)
        for piece in read
        for number in range(piece.count)
    ]
    assert set(manifest.chunks_at(ranges)) <= set(chunks)
    for name in needed_tensors(index, part):
        entry = manifest.tensors[name]
        own = [want for want in wants if want.tensor == name]
        fetched = manifest.bytes_of(manifest.chunks_for(own))
        inside = sum(size for _, at, size in ranges if entry.offset <= at < entry.offset + entry.size)
        if any(kind in name for kind in COLUMNS):
            assert inside <= fetched <= entry.size
        else:
            assert fetched <= inside + 2 * limits.CHUNK_BYTES
    whole = manifest.bytes_of(manifest.chunks_for(wants_of(index, Part(0, 2))))
    assert manifest.bytes_of(chunks) < whole
    store.close()


@pytest.mark.parametrize("architecture", ["llama", "qwen3moe"])
@pytest.mark.parametrize("rank", [0, 1])
def test_spans_are_what_a_cut_reads(tmp_path: Path, architecture: str, rank: int) -> None:
    """Of tensors cut by rows or columns the span of each line, of all others nothing but their chunks."""
    path = write_model(tmp_path / "m.gguf", TOYS[architecture])
    index, _ = open_model(path)
    store = ModelStore(tmp_path / "store")
    grids = {grid.tensor: grid for grid in grids_of(store.add_file(path).manifest)}
    part = shard(rank, 1, 1)
    thin = {want.tensor: want.span for want in wants_of(index, part) if want.span is not None}
    read = {
        (piece.offset, piece.size, piece.count, piece.stride)
        for piece in cut(index, part).all_pieces()
        if isinstance(piece, Source) and piece.size < piece.stride
    }
    assert set(thin) == {name for name in grids if name.startswith(("blk.0.", "blk.1."))}
    assert read == {
        (grids[name].offset + span.first, span.end - span.first, grids[name].lines, span.every)
        for name, span in thin.items()
    }
    assert all(grids[name].fits(span) for name, span in thin.items())
    store.close()


def test_a_slice_wants_whole_tensors(tmp_path: Path) -> None:
    index, _ = open_model(write_model(tmp_path / "m.gguf", LLAMA))
    part = Part(1, 2)
    assert [(want.tensor, want.first, want.end) for want in wants_of(index, part)] == [
        (name, 0, None) for name in needed_tensors(index, part)
    ]
