"""Key-value states between engines: llama.cpp's blob behind a header of our own.

llama.cpp does not check whose state it is given, so a fingerprint of model, layers and cache types goes
in front, with the size and a checksum, and nothing unchecked reaches it. States of plain attention can be cut
by layers, joined and shortened, so that prefill and decode need not have the same stages.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from p2pnode.errors import RemoteProtocolError, ShapeMismatch

MAGIC = b"P2PK"
VERSION = 1
_HEAD = struct.Struct("<4sBBHIIQ")
FINGERPRINT_BYTES_MAX = 1024


def pack(fingerprint: str, positions: int, blob: bytes | bytearray | memoryview) -> bytearray:
    """Header, fingerprint and blob in one buffer."""
    name = fingerprint.encode()
    assert len(name) <= FINGERPRINT_BYTES_MAX
    out = bytearray(_HEAD.pack(MAGIC, VERSION, 0, len(name), positions, zlib.crc32(blob), len(blob)))
    out += name
    out += blob
    return out


def unpack(fingerprint: str, data: bytes | bytearray | memoryview) -> tuple[int, memoryview]:
    """Positions and blob of a state that belongs to `fingerprint`."""
    view = memoryview(data)
    if len(view) < _HEAD.size:
        raise RemoteProtocolError("a key-value state shorter than its header")
    magic, version, _, name_bytes, positions, crc, blob_bytes = _HEAD.unpack_from(view)
    if magic != MAGIC or version != VERSION:
        raise RemoteProtocolError("not a key-value state of a version we know")
    if name_bytes > FINGERPRINT_BYTES_MAX or len(view) != _HEAD.size + name_bytes + blob_bytes:
        raise RemoteProtocolError("a key-value state whose sizes do not add up")
    name = bytes(view[_HEAD.size : _HEAD.size + name_bytes])
    if name != fingerprint.encode():
        raise ShapeMismatch(
            "this key-value state belongs to another model, layer range or cache type",
            hint="prefill here instead",
        )
    blob = view[_HEAD.size + name_bytes :]
    if zlib.crc32(blob) != crc:
        raise RemoteProtocolError("the checksum of a key-value state does not match")
    return positions, blob


# --- inside the blob -------------------------------------------------------------------------------
_BLOB_HEAD = struct.Struct("<IiII")
_CELL = struct.Struct("<iIi")
_LAYERS = struct.Struct("<II")
_LAYER = struct.Struct("<iQ")
_LAYERS_MAX = 4096


@dataclass(frozen=True, slots=True)
class _Rows:
    """One layer's keys or values: tensor type, bytes a position, the bytes."""

    kind: int
    row_bytes: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Blob:
    """A state of one plain attention cache, taken apart (layout of libllama 0.5, flash attention on)."""

    head: tuple[int, int, int]
    cells: tuple[tuple[int, int, int], ...]
    """Position, number of sequence ids, sequence id."""
    keys: tuple[_Rows, ...]
    values: tuple[_Rows, ...]

    def layers(self, first: int, end: int) -> Blob:
        """The state of layers [first, end) of these."""
        if not 0 <= first < end <= len(self.keys):
            raise ShapeMismatch(f"layers [{first}, {end}) of a state of {len(self.keys)}")
        return Blob(self.head, self.cells, self.keys[first:end], self.values[first:end])

    def positions(self, count: int) -> Blob:
        """The state of the first `count` positions."""
        if not 0 < count <= len(self.cells) or [cell[0] for cell in self.cells] != list(
            range(len(self.cells))
        ):
            raise ShapeMismatch(f"{count} positions of a state of {len(self.cells)}")

        def shorter(rows: tuple[_Rows, ...]) -> tuple[_Rows, ...]:
            return tuple(_Rows(row.kind, row.row_bytes, row.data[: row.row_bytes * count]) for row in rows)

        return Blob(self.head, self.cells[:count], shorter(self.keys), shorter(self.values))

    def joined(self, others: Sequence[Blob]) -> Blob:
        """Layers of this state, then those of the others."""
        if any(other.cells != self.cells for other in others):
            raise ShapeMismatch("states of different positions cannot be joined")
        keys, values = list(self.keys), list(self.values)
        for other in others:
            keys += other.keys
            values += other.values
        return Blob(self.head, self.cells, tuple(keys), tuple(values))

    def build(self) -> bytearray:
        out = bytearray()
        for piece in self.pieces():
            out += piece
        return out

    def pieces(self) -> Iterator[bytes | memoryview]:
        """What `build` joins: one after the other where megabytes twice would be too much."""
        yield _BLOB_HEAD.pack(*self.head, len(self.cells))
        yield b"".join(_CELL.pack(*cell) for cell in self.cells)
        yield _LAYERS.pack(0, len(self.keys))
        for rows in (*self.keys, *self.values):
            yield _LAYER.pack(rows.kind, rows.row_bytes)
            yield rows.data


class _Cursor:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self.take(layout.size))

    def take(self, size: int) -> memoryview:
        if size > len(self._data) - self._at:
            raise ShapeMismatch("a key-value state that ends early, or of a layout we do not know")
        self._at += size
        return self._data[self._at - size : self._at]

    @property
    def ended(self) -> bool:
        return self._at == len(self._data)


def take_apart(blob: bytes | bytearray | memoryview) -> Blob:
    """Raises ShapeMismatch for caches that are not plain attention with rows of values."""
    cursor = _Cursor(memoryview(blob))
    magic, sequence, streams, cell_count = cursor.unpack(_BLOB_HEAD)
    if streams != 1:
        raise ShapeMismatch(f"a key-value state of {streams} streams")
    cells = []
    for _ in range(cell_count):
        position, ids, owner = cursor.unpack(_CELL)
        if ids != 1:
            raise ShapeMismatch("a key-value state with positions of several sequences")
        cells.append((position, ids, owner))
    transposed, layer_count = cursor.unpack(_LAYERS)
    if transposed or layer_count > _LAYERS_MAX:
        raise ShapeMismatch("a key-value state with transposed values: load with flash attention on")
    sides = []
    for _ in range(2):
        rows = []
        for _ in range(layer_count):
            kind, row_bytes = cursor.unpack(_LAYER)
            rows.append(_Rows(kind, row_bytes, cursor.take(row_bytes * cell_count)))
        sides.append(tuple(rows))
    if not cursor.ended:
        raise ShapeMismatch("a key-value state of several caches cannot be cut")
    return Blob((magic, sequence, streams), tuple(cells), sides[0], sides[1])
