"""A toy model, the ranks of tensor groups over it, and whether what is on a disk is what a rank computes with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from p2pnode.compute.gguf import ModelIndex, open_model
from p2pnode.compute.part import Part, Shard, Source, Zeros
from p2pnode.compute.surgery import cut
from p2pnode.compute.virtual_file import PieceReader
from p2pnode.models.manifest import Want
from p2pnode.models.shard_table import ShardTable
from p2pnode.models.store import ModelStore
from p2pnode.node.units import UnitOptions, unit_spec, wants_of
from tests.kit.toy_models import Toy, write_model

TOY = Toy(
    "llama", layers=2, width=256, heads=8, kv_heads=4, head_width=32, ff=1024, vocabulary=64, type="Q8_0"
)
OPTIONS = UnitOptions(context_tokens=64, sessions=1, threads=1)


def rank_of(index: ModelIndex, rank: int, shares: Sequence[int]) -> tuple[Part, list[Want]]:
    part = Part(0, index.layer_count, shard=Shard(rank, tuple(shares)))
    return part, wants_of(index, part)


def toy_at(path: Path, toy: Toy = TOY) -> ModelIndex:
    index, _ = open_model(write_model(path, toy))
    return index


def shard_bytes(index: ModelIndex, part: Part, wants: Sequence[Want]) -> int:
    """Bytes of the original that a rank computes with, and the table that a first stage looks rows up in."""
    own = sum(piece.total for piece in cut(index, part).all_pieces() if isinstance(piece, Source))
    names = {want.tensor for want in wants if want.tensor == "token_embd.weight"}
    return own + sum(index.tensors[name].size for name in names)


def loaded(store: ModelStore, table: ShardTable | None, index: ModelIndex, part: Part) -> bytes:
    """What an engine reads of a rank's file on this disk."""
    (model,) = {model.content_id: model for model in store.models()}.values()
    strips = store.shards.strips(model.content_id, table.content_id, wants_of(index, part)) if table else {}
    paths = store.paths(model.content_id)
    spec = unit_spec(index, paths, part, OPTIONS, model_id=b"", is_last=True, strips=strips)
    reader = PieceReader(spec.pieces)
    try:
        data = bytearray(reader.size)
        assert reader.read_into(0, memoryview(data)) == reader.size
        return bytes(data)
    finally:
        reader.close()


def expected(path: Path, index: ModelIndex, part: Part) -> bytes:
    """The same file, cut from the original."""
    data = path.read_bytes()
    out = []
    for piece in cut(index, part, b"").all_pieces():
        if isinstance(piece, Source):
            starts = (piece.offset + number * piece.stride for number in range(piece.count))
            out += [data[start : start + piece.size] for start in starts]
        else:
            out.append(bytes(piece.total) if isinstance(piece, Zeros) else piece.data)
    return b"".join(out)
