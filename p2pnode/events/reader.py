"""Reading a log folder, whether its node runs or not: never writes, never locks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from p2pnode.errors import DataDirError, NotFound
from p2pnode.events import merkle
from p2pnode.events.block import Block
from p2pnode.events.codec import Record, decode_trusted
from p2pnode.events.database import connect_reader
from p2pnode.events.folder import database_path
from p2pnode.events.merkle import Edge
from p2pnode.events.note import parse_note, parse_signature_line
from p2pnode.events.proving import Proving
from p2pnode.events.tables import SecretRow, Tables
from p2pnode.events.witness import Witnessed
from p2pnode.limits import LOG_READ_EVENTS_MAX
from p2pnode.units import EventIndex, LogSize


class LogReader(Proving):
    """Records, blocks, tiles and proofs of what was committed when asked."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise DataDirError(f"there is no log at {path}", hint="point --data at a node's data folder")
        self.tables = Tables(connect_reader(path))
        self._lock = threading.Lock()
        self._upper: tuple[bytes, ...] = ()
        self._upper_size = -1

    @classmethod
    def of_folder(cls, data_dir: Path) -> LogReader:
        return cls(database_path(data_dir))

    @property
    def size(self) -> LogSize:
        with self._lock:
            return LogSize(self.tables.size())

    def entries(self, first: int, end: int) -> list[bytes]:
        with self._lock:
            return self.tables.bodies(first, min(end, first + LOG_READ_EVENTS_MAX))

    def read(self, first: int, end: int) -> list[Record]:
        return [
            decode_trusted(body, EventIndex(index))
            for index, body in enumerate(self.entries(first, end), start=first)
        ]

    def record(self, index: int) -> Record:
        found = self.read(index, index + 1) if index >= 0 else []
        if not found:
            raise NotFound(f"there is no event {index}; the log has {self.size}")
        return found[0]

    def find(self, what: str) -> list[Record]:
        """Events by index, by id in hexadecimal, or by the request they belong to."""
        if what.isascii() and what.isdigit():
            return [self.record(int(what))]
        with self._lock:
            hexadecimal = what.replace("-", "").lower()
            is_id = len(hexadecimal) == 32 and all(char in "0123456789abcdef" for char in hexadecimal)
            index = self.tables.find_event(bytes.fromhex(hexadecimal)) if is_id else None
            indexes = self.tables.correlated(what, LOG_READ_EVENTS_MAX) if index is None else [index]
        if not indexes:
            raise NotFound(f"no event has the index, id or request {what!r}")
        return [self.record(index) for index in indexes]

    def frauds(self) -> list[Record]:
        """Where peers were caught with two histories."""
        with self._lock:
            indexes = self.tables.frauds()
        return [self.record(index) for index in indexes]

    def secret(self, commitment: bytes) -> SecretRow | None:
        """The salt behind a commitment, unless it was forgotten."""
        with self._lock:
            return self.tables.secret(commitment)

    def newest_cosignatures(self) -> list[tuple[int, str]]:
        with self._lock:
            return self.tables.newest_cosignatures()

    def witnessed(self, origin: str) -> Witnessed | None:
        """The newest checkpoint of a log that this node cosigned."""
        with self._lock:
            return self.tables.witnessed(origin)

    def all_witnessed(self) -> list[Witnessed]:
        """The newest checkpoints of other logs that this node cosigned."""
        with self._lock:
            return self.tables.all_witnessed()

    def bindings(self) -> list[int]:
        """Where the log's keys were bound."""
        with self._lock:
            return self.tables.bindings()

    @property
    def block_count(self) -> int:
        with self._lock:
            return self.tables.block_count()

    def blocks(self, first: int, end: int) -> list[Block]:
        with self._lock:
            return self.tables.blocks(first, min(end, first + LOG_READ_EVENTS_MAX))

    def block_of(self, index: int) -> Block | None:
        with self._lock:
            return self.tables.block_of(index)

    def block_proof(self, index: int) -> dict[str, Any]:
        """The way from an event to its block's root: a tree over the block's leaves alone."""
        block = self.block_of(index) if index >= 0 else None
        if block is None:
            raise NotFound(f"event {index} is in no block yet")
        header = block.header
        with self._lock:
            leaves = self.tables.leaves(header.first, header.end)
        hashes = merkle.inclusion_proof(_BlockTree(leaves), index - header.first, len(leaves))
        return {
            "index": index,
            "block": header.number,
            "offset": index - header.first,
            "size": len(leaves),
            "leaf": leaves[index - header.first].hex(),
            "block_root": header.block_root.hex(),
            "proof": [value.hex() for value in hashes],
        }

    def cosigned_checkpoints(self) -> list[str]:
        """Checkpoints with their cosignatures, newest first; the newest of all is among them, cosigned or not."""
        with self._lock:
            sizes = list(dict.fromkeys(size for size, _ in self.tables.newest_cosignatures()))
            found = [(self.tables.block_of(size - 1), self.tables.cosignatures(size)) for size in sizes]
        newest = self.checkpoint()
        notes = [] if newest is None else [newest]
        for block, lines in found:
            if block is not None:
                note = parse_note(block.checkpoint)
                notes.append(str(note.with_signatures(*map(parse_signature_line, lines))))
        return notes

    def checkpoint(self) -> str | None:
        """The newest checkpoint, with the cosignatures gathered for it."""
        with self._lock:
            block = self.tables.last_block()
            lines = [] if block is None else self.tables.cosignatures(block.header.end)
        if block is None:
            return None
        return str(parse_note(block.checkpoint).with_signatures(*map(parse_signature_line, lines)))

    def tile(self, level: int, index: int) -> bytes:
        with self._lock:
            stored = self.tables.tile(level, index)
            return stored or self._upper_tile(level, index)

    def close(self) -> None:
        with self._lock:
            self.tables.connection.close()

    def set_upper(self, size: int, upper: tuple[bytes, ...]) -> None:
        """Take over the upper edge from the writer, which has it at hand."""
        with self._lock:
            self._upper_size, self._upper = size, upper

    def _upper_tile(self, level: int, index: int) -> bytes:
        """The unfinished tile of an upper level; it changes only when a tile below is completed."""
        if level == 0:
            return b""
        size = self.tables.size()
        if self._upper_size >> merkle.TILE_HEIGHT != size >> merkle.TILE_HEIGHT:
            self._upper, self._upper_size = Edge.load(self.tables, size).upper(), size
        at_edge = level <= len(self._upper) and index == size >> merkle.TILE_HEIGHT * (level + 1)
        return self._upper[level - 1] if at_edge else b""


class _BlockTree:
    """A block's leaves as the one tile they fit in."""

    def __init__(self, leaves: list[bytes]) -> None:
        self._tile = b"".join(leaves)

    def tile(self, level: int, index: int) -> bytes:
        assert (level, index) == (0, 0), "a block is smaller than a tile"
        return self._tile
