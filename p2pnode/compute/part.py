"""Which part of a model, and what a cut of it consists of: bytes of the original, bytes of our own, and facts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from p2pnode.compute.gguf_values import ModelIndex
from p2pnode.errors import PlanError

ReadAt = Callable[[int, int, int], bytes]
"""(file number, offset, size) -> exactly `size` bytes of the original model."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Rank `rank` of a tensor group; `shares[i]` is the relative weight of rank i."""

    rank: int
    shares: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.shares)


@dataclass(frozen=True, slots=True)
class Part:
    """Layers [layer_first, layer_end), with the embedding lookup before or the output matrix behind them.

    No layers with `output` is the head's own part when other devices hold all layers.
    """

    layer_first: int
    layer_end: int
    embedding: bool = False
    output: bool = False
    shard: Shard | None = None

    @property
    def layer_count(self) -> int:
        return self.layer_end - self.layer_first

    def text(self) -> str:
        """One form, for fingerprints and people: `0-4+embedding`, `4-8+output`, `0-8 rank 1 of 2:1:1`."""
        ends = ("+embedding" if self.embedding else "") + ("+output" if self.output else "")
        shard = f" rank {self.shard.rank} of {':'.join(map(str, self.shard.shares))}" if self.shard else ""
        return f"{self.layer_first}-{self.layer_end}{ends}{shard}"


def whole(index: ModelIndex) -> Part:
    """The part that is everything."""
    return Part(0, real_layer_count(index), embedding=True, output=True)


def real_layer_count(index: ModelIndex) -> int:
    """Layers that carry the hidden state: those that only predict further tokens do not count."""
    count = index.layer_count - index.parameter_int("nextn_predict_layers", 0)
    if count < 1:
        raise PlanError(f"{index.architecture} has no layer to compute with", hint="choose another model")
    return count


def check_part(index: ModelIndex, part: Part) -> None:
    """Refuse a part that no model of this many layers has."""
    count = real_layer_count(index)
    if not 0 <= part.layer_first <= part.layer_end <= count:
        raise PlanError(
            f"layers [{part.layer_first}, {part.layer_end}) of a model of {count} layers",
            hint="layers are counted from 0 and the end is not included",
        )
    if part.embedding and part.layer_first != 0:
        raise PlanError("the embedding belongs before layer 0", hint="give it to the first stage")
    if part.output and part.layer_end != count:
        raise PlanError(f"the output belongs behind layer {count}", hint="give it to the last stage")
    if part.layer_count == 0 and (part.embedding or not part.output):
        raise PlanError(
            "a part without layers can only be the output",
            hint="embedding rows are looked up with embed_rows",
        )
    shard = part.shard
    if shard is not None and not (0 <= shard.rank < shard.count and min(shard.shares) > 0):
        raise PlanError(
            f"rank {shard.rank} of shares {shard.shares}", hint="every rank has a share greater than zero"
        )


@dataclass(frozen=True, slots=True)
class Source:
    """`size` bytes of file `file` at `offset`, `count` times at a distance of `stride`."""

    file: int
    offset: int
    size: int
    count: int = 1
    stride: int = 0

    @property
    def total(self) -> int:
        return self.size * self.count


@dataclass(frozen=True, slots=True)
class Inline:
    """Bytes of our own."""

    data: bytes = field(repr=False)

    @property
    def total(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Zeros:
    """Bytes of value zero: padding, and tensors that are only there because llama.cpp insists on them."""

    total: int


Piece = Source | Inline | Zeros


@dataclass(frozen=True, slots=True)
class CutFacts:
    """What an engine has to know about the file it gets."""

    architecture: str
    layer_count: int
    """Layers of the file; the last ones may be inert."""
    width: int
    """Floats of a hidden row (n_embd)."""
    vocabulary: int
    """Tokens of the model, and logits of a row."""
    input: Literal["tokens", "rows"]
    output: Literal["rows", "logits"]
    tap: str | None
    """Tensor to read and stop at when the output is rows; None: llama.cpp gives logits."""
    row_scale: float
    """Rows are divided by this before llama.cpp multiplies them again."""
    positions: int
    """Position numbers a row needs: 1, or 4 as (p, p, p, 0)."""
    tokenizer: bool
    """Whether the file can turn text into tokens; asking llama.cpp without it aborts."""
    sliding: bool
    """Some layers forget: rolling back needs the full cache (`swa_full`)."""
    recurrent: bool
    """Some layers keep a state: it cannot be rolled back partly, and speculation is off."""
    reduce: tuple[str, ...]
    """Partial sums that all ranks of a tensor group add up, in order: the name of a tensor (`ffn_moe_out-0`), or
    of the weight (`blk.0.ffn_down.weight`) that is its first operand, where graphs give the product no name."""
    fingerprint: str
    """Equal for equal units only: put before KV blobs."""


@dataclass(frozen=True, slots=True)
class VirtualFile:
    """A GGUF file that need not exist: `header`, then `pieces`."""

    header: bytes = field(repr=False)
    pieces: tuple[Piece, ...] = field(repr=False)
    size: int

    def all_pieces(self) -> Iterator[Piece]:
        yield Inline(self.header)
        yield from self.pieces

    def reader(self, read: ReadAt) -> CutReader:
        return CutReader(self, read)


@dataclass(frozen=True, slots=True)
class Cut(VirtualFile):
    """A model file for one part."""

    part: Part
    facts: CutFacts


class CutReader:
    """Random reads of the file that need not exist."""

    __slots__ = ("_pieces", "_read", "_starts", "size")

    def __init__(self, cut: VirtualFile, read: ReadAt) -> None:
        self._read = read
        self._pieces = list(cut.all_pieces())
        assert all(piece.total > 0 for piece in self._pieces)
        self._starts: list[int] = []
        self.size = 0
        for piece in self._pieces:
            self._starts.append(self.size)
            self.size += piece.total
        assert self.size == cut.size

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`; fewer only at the end."""
        out: list[bytes] = []
        end = min(offset + size, self.size)
        at = bisect_right(self._starts, offset) - 1
        while offset < end:
            piece = self._pieces[at]
            start = offset - self._starts[at]
            take = min(piece.total - start, end - offset)
            out.extend(_piece_bytes(piece, start, take, self._read))
            offset += take
            at += 1
        return b"".join(out)

    def chunks(self, size_max: int = 4 * 1024 * 1024) -> Iterator[bytes]:
        """The whole file, in order."""
        offset = 0
        while data := self.read(offset, size_max):
            offset += len(data)
            yield data


def _piece_bytes(piece: Piece, start: int, size: int, read: ReadAt) -> Iterator[bytes]:
    if isinstance(piece, Inline):
        yield piece.data[start : start + size]
    elif isinstance(piece, Zeros):
        yield bytes(size)
    else:
        while size > 0:
            number, inside = divmod(start, piece.size)
            take = min(piece.size - inside, size)
            yield read(piece.file, piece.offset + number * piece.stride + inside, take)
            start += take
            size -= take
