"""Strips: what of a tensor a shard needs, on this disk as the shard reads it.

A strip is some columns of tiles over all lines, line behind line, in a file of its own: what an engine loads is one
run of it, and the disk holds no byte of another rank. Beside it stands a bit for each tile, replaced as a whole
once the tiles are durable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from p2pnode.models.files import data_errors, write_atomic
from p2pnode.models.shard_table import Grid, ShardTable, Tile

_NAME = re.compile(r"(\d{1,6})-(\d{1,6})-(\d{1,6})")


class Strip:
    """Columns of tiles [first, end) of one tensor. Not safe for several threads; the store's lock is held."""

    def __init__(self, folder: Path, grid: Grid, number: int, first: int, end: int) -> None:
        self.grid, self.first, self.end = grid, first, end
        self.path = folder / f"{number}-{first}-{end}"
        self._bits_path = folder / f"{number}-{first}-{end}.have"
        self.numbers = grid.numbers(first, end)
        self.at = first * grid.width
        """Where in a line of the tensor it begins, in bytes."""
        self.line_bytes = min(end * grid.width, grid.line_bytes) - self.at
        self._have = self._load()
        self._is_dirty = False

    @property
    def size(self) -> int:
        """Bytes of the whole strip."""
        return self.line_bytes * self.grid.lines

    @property
    def is_complete(self) -> bool:
        return len(self._have) == len(self.numbers)

    def bytes_here(self, table: ShardTable) -> int:
        return self.size if self.is_complete else table.bytes_of(self._have)

    def covers(self, first: int, end: int) -> bool:
        """Whether bytes [first, end) of each line lie in it."""
        return self.at <= first and end <= self.at + self.line_bytes

    def has(self, index: int) -> bool:
        return index in self._have

    @property
    def have(self) -> frozenset[int]:
        return frozenset(self._have)

    def lacks(self, index: int) -> bool:
        """Whether the tile belongs here and is not here."""
        column = (index - self.grid.first) % self.grid.columns
        is_own = 0 <= index - self.grid.first < self.grid.count and self.first <= column < self.end
        return is_own and index not in self._have

    def write(self, tile: Tile, data: bytes | memoryview) -> None:
        """Put a verified tile at its place; durable after `flush`."""
        with data_errors(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if os.fstat(descriptor).st_size != self.size:
                    os.truncate(descriptor, self.size)
                for number, (offset, size) in enumerate(self._places(tile)):
                    view = memoryview(data)[number * size : (number + 1) * size]
                    while view:
                        done = os.pwrite(descriptor, view, offset)
                        offset, view = offset + done, view[done:]
            finally:
                os.close(descriptor)
        self._have.add(tile.index)
        self._is_dirty = True

    def read(self, tile: Tile) -> bytes:
        return gather(self.path, self._places(tile))

    def _places(self, tile: Tile) -> list[tuple[int, int]]:
        return tile.places(tile.at - self.at, self.line_bytes)

    def forget(self, index: int) -> None:
        self._have.discard(index)
        self._is_dirty = True
        self.flush()

    def flush(self) -> None:
        """Data first, then the bits."""
        if not self._is_dirty:
            return
        bits = bytearray(-(-len(self.numbers) // 8))
        for position, number in enumerate(self.numbers):
            if number in self._have:
                bits[position // 8] |= 1 << position % 8
        try:
            with data_errors(self.path):
                with self.path.open("rb") as file:
                    os.fsync(file.fileno())
                write_atomic(self._bits_path, bytes(bits))
        except BaseException:
            self._have = self._load()  # what the system could not make durable may be gone
            raise
        finally:
            self._is_dirty = False

    def delete(self) -> None:
        """The bits first: they must not promise what is gone."""
        self._bits_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self._have.clear()
        self._is_dirty = False

    def _load(self) -> set[int]:
        try:
            bits = self._bits_path.read_bytes()
            size = self.path.stat().st_size
        except OSError:
            return set()
        if size != self.size or len(bits) != -(-len(self.numbers) // 8):
            return set()
        return {number for at, number in enumerate(self.numbers) if bits[at // 8] >> at % 8 & 1}


def gather(path: Path, found: list[tuple[int, int]]) -> bytes:
    """Bytes of a file from many places; short where the file is."""
    with data_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return b"".join(os.pread(descriptor, size, offset) for offset, size in found)
        finally:
            os.close(descriptor)


def strips_in(folder: Path, table: ShardTable) -> Iterator[Strip]:
    """The strips of a table on this disk; files of other names, or that fit no tensor, are no strips."""
    grids = list(table.grids.values())
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        number, first, end = (int(part) for part in match.groups())
        if number < len(grids) and first < end <= grids[number].columns:
            yield Strip(folder, grids[number], number, first, end)
