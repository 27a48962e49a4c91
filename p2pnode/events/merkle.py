"""The log as a Merkle tree: RFC 6962 hashing over C2SP tlog-tiles of height 8.

Nothing here reads storage: proofs take a one-method `TileReader`. Tile (level, index) holds the hashes of
the perfect subtrees of height 8*level, 256 at most, left to right; a tile at the right edge may be partial.
Sources: RFC 6962 section 2.1, RFC 9162 sections 2.1.3.2 and 2.1.4.2, c2sp.org/tlog-tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final, Protocol

from p2pnode.errors import CorruptRecord

HASH_BYTES: Final = 32
TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 1 << TILE_HEIGHT
TILE_BYTES: Final = TILE_WIDTH * HASH_BYTES
PROOF_HASHES_MAX: Final = 64
"""A path in a tree of up to 2**63 leaves."""
EMPTY_ROOT: Final = sha256(b"").digest()


class TileReader(Protocol):
    """Where the tree's hashes are kept."""

    def tile(self, level: int, index: int) -> bytes:
        """The tile's hashes so far; 1 to 256 of 32 bytes, or nothing when it does not exist."""
        ...


def leaf_hash(entry: bytes) -> bytes:
    """Hash of one entry (RFC 6962: a zero byte before it, so that no node can pass for a leaf)."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of two neighbours (RFC 6962: a one byte before them)."""
    return sha256(b"\x01" + left + right).digest()


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Root of the tree over these leaf hashes. Cost: len - 1 hashes."""
    if not hashes:
        return EMPTY_ROOT
    row = list(hashes)
    while len(row) > 1:
        paired = [sha256(b"\x01" + row[i] + row[i + 1]).digest() for i in range(0, len(row) - 1, 2)]
        if len(row) & 1:
            paired.append(row[-1])
        row = paired
    return row[0]


def split_hashes(tile: bytes) -> list[bytes]:
    """The hashes in a tile."""
    return [tile[i : i + HASH_BYTES] for i in range(0, len(tile), HASH_BYTES)]


class Edge:
    """The growing right edge: the partial tile of every level. Cost: two hashes a leaf, averaged."""

    __slots__ = ("_levels", "size")

    def __init__(self) -> None:
        self.size = 0
        self._levels: list[bytearray] = [bytearray()]

    @classmethod
    def load(cls, reader: TileReader, size: int) -> Edge:
        """The edge of a stored tree. Cost: one tile and at most 255 * 255 hashes a level."""
        edge = cls()
        edge.size = size
        edge._levels = []
        level, width = 0, size
        while True:
            full, rest = divmod(width, TILE_WIDTH)
            if level == 0:
                partial = reader.tile(0, full)[: rest * HASH_BYTES] if rest else b""
            else:
                below = range(full * TILE_WIDTH, full * TILE_WIDTH + rest)
                partial = b"".join(_full_tile_root(reader, level - 1, index) for index in below)
            if len(partial) != rest * HASH_BYTES:
                raise CorruptRecord(f"tile {level}/{full} has not the {rest} hashes of a tree of {size}")
            edge._levels.append(bytearray(partial))
            if full == 0:
                return edge
            level, width = level + 1, full

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Add a leaf hash; answers the tiles (level, index, hashes) that it completed."""
        assert len(leaf) == HASH_BYTES, "a leaf is a hash"
        self.size += 1
        completed: list[tuple[int, int, bytes]] = []
        level, carry = 0, leaf
        while True:
            partial = self._levels[level]
            partial += carry
            if len(partial) < TILE_BYTES:
                return completed
            tile = bytes(partial)
            index = (self.size >> (TILE_HEIGHT * (level + 1))) - 1
            completed.append((level, index, tile))
            partial.clear()
            carry = root_of(split_hashes(tile))
            level += 1
            if level == len(self._levels):
                self._levels.append(bytearray())

    def partial(self, level: int, index: int) -> bytes:
        """The hashes in the unfinished tile of a level, if that is its index."""
        at_edge = level < len(self._levels) and index == self.size >> TILE_HEIGHT * (level + 1)
        return bytes(self._levels[level]) if at_edge else b""

    def upper(self) -> tuple[bytes, ...]:
        """The unfinished tiles of levels 1 and up, as they stand."""
        return tuple(bytes(partial) for partial in self._levels[1:])

    def root(self) -> bytes:
        """Root of the tree so far. Cost: at most 255 hashes a level."""
        root: bytes | None = None
        for partial in self._levels:
            for part in reversed(_perfect_roots(split_hashes(bytes(partial)))):
                root = part if root is None else node_hash(part, root)
        return EMPTY_ROOT if root is None else root


def root_at(reader: TileReader, size: int) -> bytes:
    """Root of the first `size` leaves."""
    return EMPTY_ROOT if size == 0 else _Subtrees(reader, size).root(0, size)


def inclusion_proof(reader: TileReader, index: int, size: int) -> list[bytes]:
    """Path from leaf `index` to the root of the first `size` leaves. Cost: one read a tile on the way."""
    assert 0 <= index < size, "a leaf is inside its tree"
    subtrees = _Subtrees(reader, size)
    return [subtrees.root(first, end) for first, end in reversed(_siblings(index, size))]


def consistency_proof(reader: TileReader, size_first: int, size_second: int) -> list[bytes]:
    """Proof that the tree of `size_first` leaves is a prefix of that of `size_second`."""
    assert 0 < size_first <= size_second, "a proof leads from a smaller, non-empty tree to a larger one"
    subtrees = _Subtrees(reader, size_second)
    first, end = 0, size_second
    ranges: list[tuple[int, int]] = []
    while size_first != end:
        middle = first + _split_point(end - first)
        if size_first <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((first, middle))
            first = middle
    if first:
        ranges.append((first, end))
    return [subtrees.root(low, high) for low, high in reversed(ranges)]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the proof leads from the leaf hash at `index` to the root of a tree of `size`."""
    if not 0 <= index < size or not _all_hashes(leaf, root, *proof) or len(proof) > PROOF_HASHES_MAX:
        return False
    position, last, current = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            current = node_hash(sibling, current)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            current = node_hash(current, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and current == root


def verify_consistency(
    size_first: int, size_second: int, proof: Sequence[bytes], root_first: bytes, root_second: bytes
) -> bool:
    """Whether the second tree begins with the first; nothing can be shown from an empty tree."""
    if size_first == size_second:
        return size_first > 0 and not proof and root_first == root_second
    roots = consistency_roots(size_first, size_second, proof, root_first)
    return roots == (root_first, root_second)


def consistency_roots(
    size_first: int, size_second: int, proof: Sequence[bytes], root_first: bytes
) -> tuple[bytes, bytes] | None:
    """The roots of both trees that a proof leads to; None when it has not the hashes it must have.

    `root_first` counts only where the first tree is perfect: then it is a node of the second one.
    """
    if not 0 < size_first < size_second or not 0 < len(proof) <= PROOF_HASHES_MAX:
        return None
    if not _all_hashes(root_first, *proof):
        return None
    path = list(proof) if size_first & (size_first - 1) else [root_first, *proof]
    position, last = size_first - 1, size_second - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            return None
        if position & 1 or position == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        position, last = position >> 1, last >> 1
    return (first, second) if last == 0 else None


def first_difference(one: TileReader, other: TileReader, size: int) -> int | None:
    """The first leaf in which two trees differ among their first `size`; None when they do not."""
    trees = (_Subtrees(one, size), _Subtrees(other, size))
    first, end = 0, size
    if size == 0 or trees[0].root(first, end) == trees[1].root(first, end):
        return None
    while end - first > 1:
        middle = first + _split_point(end - first)
        if trees[0].root(first, middle) == trees[1].root(first, middle):
            first = middle
        else:
            end = middle
    return first


class _Subtrees:
    """Roots of aligned ranges, each tile read once."""

    def __init__(self, reader: TileReader, size: int) -> None:
        self._reader = reader
        self._size = size
        self._tiles: dict[tuple[int, int], bytes] = {}

    def root(self, first: int, end: int) -> bytes:
        """Root over [first, end), `first` aligned as in RFC 6962's splitting."""
        parts: list[bytes] = []
        position = first
        for height in range((end - first).bit_length() - 1, -1, -1):
            if (end - first) >> height & 1:
                parts.append(self._perfect(height, position >> height))
                position += 1 << height
        root = parts.pop()
        while parts:
            root = node_hash(parts.pop(), root)
        return root

    def _perfect(self, height: int, index: int) -> bytes:
        """Root of the perfect subtree of 2**height leaves numbered `index` among its like."""
        level, inner = divmod(height, TILE_HEIGHT)
        tile_index, offset = divmod(index << inner, TILE_WIDTH)
        tile = self._tiles.get((level, tile_index))
        if tile is None:
            tile = self._tiles[level, tile_index] = self._reader.tile(level, tile_index)
        end = offset + (1 << inner)
        if len(tile) < end * HASH_BYTES:
            raise CorruptRecord(f"tile {level}/{tile_index} is too short for a tree of {self._size}")
        return root_of(split_hashes(tile[offset * HASH_BYTES : end * HASH_BYTES]))


def _full_tile_root(reader: TileReader, level: int, index: int) -> bytes:
    tile = reader.tile(level, index)
    if len(tile) < TILE_BYTES:
        raise CorruptRecord(f"tile {level}/{index} is not full")
    return root_of(split_hashes(tile[:TILE_BYTES]))


def _perfect_roots(hashes: Sequence[bytes]) -> list[bytes]:
    """Roots of the perfect subtrees that make up a partial tile, largest first."""
    roots, position = [], 0
    for height in range(len(hashes).bit_length() - 1, -1, -1):
        if len(hashes) >> height & 1:
            roots.append(root_of(hashes[position : position + (1 << height)]))
            position += 1 << height
    return roots


def _siblings(index: int, size: int) -> list[tuple[int, int]]:
    """Ranges beside the way from the root down to a leaf, topmost first."""
    first, end = 0, size
    ranges: list[tuple[int, int]] = []
    while end - first > 1:
        middle = first + _split_point(end - first)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((first, middle))
            first = middle
    return ranges


def _split_point(width: int) -> int:
    """Largest power of two smaller than `width` (RFC 6962's k)."""
    return 1 << ((width - 1).bit_length() - 1)


def _all_hashes(*hashes: bytes) -> bool:
    return all(len(value) == HASH_BYTES for value in hashes)
