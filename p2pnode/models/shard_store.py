"""Shard tables and strips of one data folder: beside the chunks of a model, what its tensor-parallel ranks need.

Layout under `data/<cid>/shards/`: `own` (the id of the table that was computed here), `<table>/table`,
and the strips of that table. A table that a head named is believed for that head's orders only: strips are kept
under the table's own id, so bytes that fit a false one never meet those of another.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from p2pnode.errors import BadModelFile, BlobMismatch, DataDirError, DiskFull, ModelIncomplete, ModelUnknown
from p2pnode.models import cid as content
from p2pnode.models import shard_table
from p2pnode.models.files import data_errors, delete, write_atomic
from p2pnode.models.manifest import Manifest, Span, Want
from p2pnode.models.shard_table import Grid, ShardTable, Tile
from p2pnode.models.strips import Strip, gather, strips_in
from p2pnode.units import ContentId


class Chunks(Protocol):
    """What is needed of the store of chunks."""

    @property
    def root(self) -> Path: ...
    @property
    def lock(self) -> threading.RLock: ...
    def manifest(self, content_id: ContentId) -> Manifest: ...
    def missing(self, content_id: ContentId, indexes: Iterable[int]) -> list[int]: ...
    def paths(self, content_id: ContentId) -> tuple[Path, ...]: ...
    def read_chunk(self, content_id: ContentId, index: int) -> bytes: ...
    def reserve(self, content_id: ContentId, size: int) -> None: ...


class ShardStore:
    """Safe to use from several threads. Tables and strips are named by the table's content id."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._tables: dict[ContentId, ShardTable] = {}
        self._strips: dict[ContentId, dict[str, list[Strip]]] = {}
        """Of each table, by tensor."""
        self._making = threading.Lock()

    # --- tables --------------------------------------------------------------------------------------
    def own(self, content_id: ContentId) -> ShardTable | None:
        """The table as computed on this disk, from verified chunks and once; None where not all of them are here."""
        with self._making:
            return self._own(content_id)

    def _own(self, content_id: ContentId) -> ShardTable | None:
        with contextlib.suppress(OSError, ValueError, BadModelFile, ModelUnknown):
            named = (self._folder(content_id) / "own").read_text("ascii")
            return self.table(content_id, content.from_digest(content.to_digest(named)))
        manifest = self._chunks.manifest(content_id)
        grids = shard_table.grids_of(manifest)
        if not grids or not all(self._is_whole(manifest, grid.tensor) for grid in grids):
            return None
        try:
            digests = b"".join(grid.digests(self._content_of(manifest, grid.tensor)) for grid in grids)
        except (BlobMismatch, ModelIncomplete):
            return None  # found damaged: the store knows now that it is not whole
        table = shard_table.build(manifest, digests)
        self.add_table(table)
        write_atomic(self._folder(content_id) / "own", table.content_id.encode("ascii"))
        return table

    def _content_of(self, manifest: Manifest, tensor: str) -> Iterator[bytes]:
        for index in _chunks_of(manifest, tensor):
            yield self._chunks.read_chunk(manifest.content_id, index)

    def add_table(self, table: ShardTable) -> None:
        """Keep a table that was computed here or vouched for by a head."""
        with self._chunks.lock:
            folder = self._folder(table.manifest.content_id) / table.content_id
            with data_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / "table", table.encoded)
            self._tables[table.content_id] = table

    def table(self, content_id: ContentId, table_id: ContentId) -> ShardTable:
        """A table of a model on this disk, checked against its id; ModelUnknown, BadModelFile."""
        with self._chunks.lock:
            known = self._tables.get(table_id)
            if known is None:
                path = self._folder(content_id) / table_id / "table"
                if not path.is_file():
                    raise ModelUnknown(f"no shard table {table_id} on this device", model=content_id)
                with data_errors(path):
                    data = path.read_bytes()
                if content.of(data) != table_id:
                    raise BadModelFile(f"shard table {table_id} is damaged on this disk")
                known = self._tables[table_id] = shard_table.decode(data, self._chunks.manifest(content_id))
            if known.manifest.content_id != content_id:
                raise ModelUnknown(f"{table_id} is the shard table of another model", model=content_id)
            return known

    def find(self, table_id: ContentId) -> ShardTable | None:
        """A table by its id alone, of whatever model."""
        with self._chunks.lock, contextlib.suppress(BadModelFile, ModelUnknown, DataDirError):
            if table_id in self._tables:
                return self._tables[table_id]
            for path in (self._chunks.root / "data").glob(f"*/shards/{table_id}/table"):
                return self.table(ContentId(path.parts[-4]), table_id)
        return None

    def named(self, content_id: ContentId, table_id: ContentId) -> ShardTable:
        """The table that somebody asks for: known, or the one this device computes now; ModelUnknown."""
        with contextlib.suppress(BadModelFile, ModelUnknown):
            return self.table(content_id, table_id)
        if not self._making.acquire(blocking=False):  # threads that wait for it would be missing elsewhere
            raise ModelIncomplete("the shard table is being computed on this device; ask again")
        try:
            own = self._own(content_id)
        finally:
            self._making.release()
        if own is None or own.content_id != table_id:
            raise ModelUnknown(f"no shard table {table_id} on this device", model=content_id)
        return own

    # --- tiles ---------------------------------------------------------------------------------------
    def have(self, table: ShardTable) -> bytes:
        """One bit a tile, least significant first."""
        bits = bytearray(-(-len(table.chunks) // 8))
        with self._chunks.lock:
            here = {number for strip in self._all(table) for number in strip.have}
            for grid in table.grids.values():
                if self._is_whole(table.manifest, grid.tensor):
                    here.update(range(grid.first, grid.first + grid.count))
        for number in here:
            bits[number // 8] |= 1 << number % 8
        return bytes(bits)

    def read(self, table: ShardTable, index: int) -> bytes:
        """One tile, verified; ModelIncomplete, or BlobMismatch where the disk has other bytes, which are forgotten."""
        tile = table.chunks[index]
        with self._chunks.lock:
            strip = next((s for s in self._of(table, tile.grid) if s.has(index)), None)
            is_whole = strip is None and self._is_whole(table.manifest, tile.grid.tensor)
        if strip is not None:
            data = strip.read(tile)
        elif is_whole:
            path = self._chunks.paths(table.manifest.content_id)[tile.grid.file]
            at = tile.grid.offset
            data = gather(path, [(at + o, size) for o, size in tile.places(tile.at, tile.grid.line_bytes)])
        else:
            raise ModelIncomplete(f"tile {index} is not on this device", missing_bytes=tile.size)
        if content.digest(data) != tile.digest:
            self._forget(table, tile, strip)
            raise BlobMismatch(f"tile {index} of {table.content_id} is damaged on this disk", index=index)
        return data

    def _forget(self, table: ShardTable, tile: Tile, strip: Strip | None) -> None:
        if strip is not None:
            with self._chunks.lock:
                strip.forget(tile.index)
            return
        for index in _chunks_of(table.manifest, tile.grid.tensor):
            # Raises, and forgets, where it is damaged; where it is not, the table is wrong.
            self._chunks.read_chunk(table.manifest.content_id, index)
        with self._chunks.lock:
            self._tables.pop(table.content_id, None)
            delete(self._folder(table.manifest.content_id) / table.content_id)
            self._strips.pop(table.content_id, None)

    def place(self, table: ShardTable, wants: Sequence[Want]) -> list[int]:
        """Make a strip for each wanted span, of what is here already; the tiles that these need in all."""
        wanted: list[Strip] = []
        made: list[Strip] = []
        folder = self._folder(table.manifest.content_id) / table.content_id
        numbers = {tensor: number for number, tensor in enumerate(table.grids)}
        with self._chunks.lock:
            for want in wants:
                grid = table.grids.get(want.tensor)
                if grid is None or want.span is None or not grid.fits(want.span):
                    continue
                strip = _find([*self._of(table, grid), *made], grid, want.span)
                if strip is None:
                    strip = Strip(folder, grid, numbers[grid.tensor], *grid.columns_of(want.span))
                    made.append(strip)
                if strip not in wanted:
                    wanted.append(strip)
            self._make_room(table, made, wanted)
            for strip in wanted:
                for index in filter(strip.lacks, strip.numbers):
                    with contextlib.suppress(BlobMismatch, ModelIncomplete):
                        strip.write(table.chunks[index], self.read(table, index))
                strip.flush()
            for strip in made:
                self._of(table, strip.grid).append(strip)
        return sorted({number for strip in wanted for number in strip.numbers})

    def _make_room(self, table: ShardTable, made: Sequence[Strip], wanted: Sequence[Strip]) -> None:
        """For new strips; where there is none, those of former shares of the same tensors go first."""
        if not made:
            return
        size = sum(strip.size for strip in made)
        try:
            self.reserve(table, size)
        except DiskFull:
            for new in made:
                strips = self._of(table, new.grid)
                for old in [strip for strip in strips if strip not in wanted]:
                    old.delete()
                    strips.remove(old)
            self.reserve(table, size)

    def missing(self, table: ShardTable, indexes: Iterable[int]) -> list[int]:
        with self._chunks.lock:
            here = {number for strip in self._all(table) for number in strip.have}
        return [index for index in indexes if index not in here]

    def write(self, table: ShardTable, index: int, data: bytes | memoryview) -> None:
        """Keep one fetched tile where it is wanted; BlobMismatch unless it is exactly the tile asked for."""
        tile = table.chunks[index]
        if len(data) != tile.size or content.digest(data) != tile.digest:
            raise BlobMismatch(f"tile {index} is not what its shard table says", index=index)
        with self._chunks.lock:
            for strip in self._of(table, tile.grid):
                if strip.lacks(index):
                    strip.write(tile, data)

    def reserve(self, table: ShardTable, size: int) -> None:
        self._chunks.reserve(table.manifest.content_id, size)

    def flush(self, table: ShardTable) -> None:
        with self._chunks.lock:
            for strip in self._all(table):
                strip.flush()

    # --- what an engine reads ------------------------------------------------------------------------
    def strips(self, content_id: ContentId, table_id: ContentId, wants: Iterable[Want]) -> dict[str, Strip]:
        """For each tensor that is not here whole, the strip that has what is wanted of it."""
        try:
            table = self.table(content_id, table_id)
        except (BadModelFile, ModelUnknown):
            return {}  # all that was wanted came as whole tensors
        found = ((want.tensor, self.strip(table, want)) for want in wants)
        return {tensor: strip for tensor, strip in found if strip is not None}

    def strip(self, table: ShardTable, want: Want) -> Strip | None:
        """The strip that has all that is wanted; None where the tensor is here whole, or not all of that is here."""
        grid = table.grids.get(want.tensor)
        if grid is None or want.span is None or not grid.fits(want.span):
            return None
        with self._chunks.lock:
            if self._is_whole(table.manifest, want.tensor):
                return None
            found = _find([each for each in self._of(table, grid) if each.is_complete], grid, want.span)
        return found

    def needed(self, manifest: Manifest, wants: Iterable[Want]) -> list[Want]:
        """Those of which strips would save anything: not where all chunks of the tensor are here."""
        return [w for w in wants if w.span is not None and not self._is_whole(manifest, w.tensor)]

    # --- room ----------------------------------------------------------------------------------------
    def bytes_of(self, content_id: ContentId) -> int:
        """Bytes of tiles on this disk, for a model's share of the quota."""
        total = 0
        with self._chunks.lock:
            for table in self._tables_of(content_id):
                total += len(table.encoded) + sum(s.bytes_here(table) for s in self._all(table))
        return total

    def tidy(self, content_id: ContentId) -> int:
        """Delete strips of which all is elsewhere here: of tensors that came whole, or in a wider strip; bytes freed.

        Only while no engine reads any: at the start of a node.
        """
        freed = 0
        with self._chunks.lock:
            for table in self._tables_of(content_id):
                for strip in self._all(table):
                    strips = self._of(table, strip.grid)
                    wider = (each for each in strips if each is not strip and each.is_complete)
                    ends = strip.at, strip.at + strip.line_bytes
                    is_double = any(other.covers(*ends) for other in wider)
                    if is_double or self._is_whole(table.manifest, strip.grid.tensor):
                        freed += strip.bytes_here(table)
                        strip.delete()
                        strips.remove(strip)
        return freed

    def drop(self, table: ShardTable, wants: Sequence[Want]) -> None:
        """Give up strips that could not be completed."""
        with self._chunks.lock:
            for want in wants:
                strips = self._of(table, table.grids[want.tensor])
                for strip in [strip for strip in strips if not strip.is_complete]:
                    strip.delete()
                    strips.remove(strip)

    def forget_model(self, content_id: ContentId) -> None:
        """Its folder is deleted by whoever calls."""
        with self._chunks.lock:
            for table_id in [
                t for t, table in self._tables.items() if table.manifest.content_id == content_id
            ]:
                del self._tables[table_id]
                self._strips.pop(table_id, None)

    # --- inside --------------------------------------------------------------------------------------
    def _folder(self, content_id: ContentId) -> Path:
        return self._chunks.root / "data" / content_id / "shards"

    def _tables_of(self, content_id: ContentId) -> list[ShardTable]:
        folder = self._folder(content_id)
        found = []
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            with contextlib.suppress(BadModelFile, ModelUnknown):
                if path.is_dir():
                    found.append(self.table(content_id, ContentId(path.name)))
        return found

    def _strips_of(self, table: ShardTable) -> dict[str, list[Strip]]:
        found = self._strips.get(table.content_id)
        if found is None:
            folder = self._folder(table.manifest.content_id) / table.content_id
            found = self._strips[table.content_id] = {tensor: [] for tensor in table.grids}
            with data_errors(folder):
                for strip in strips_in(folder, table):
                    found[strip.grid.tensor].append(strip)
        return found

    def _of(self, table: ShardTable, grid: Grid) -> list[Strip]:
        return self._strips_of(table)[grid.tensor]

    def _all(self, table: ShardTable) -> list[Strip]:
        return [strip for strips in self._strips_of(table).values() for strip in strips]

    def _is_whole(self, manifest: Manifest, tensor: str) -> bool:
        return not self._chunks.missing(manifest.content_id, _chunks_of(manifest, tensor))


def _find(strips: Iterable[Strip], grid: Grid, span: Span) -> Strip | None:
    return next((s for s in strips if s.grid == grid and s.covers(span.first, span.end)), None)


def _chunks_of(manifest: Manifest, tensor: str) -> range:
    entry = manifest.tensors[tensor]
    return range(entry.chunk_first, entry.chunk_first + entry.chunk_count)
