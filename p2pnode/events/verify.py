"""Prove a stored log from its bytes alone: recompute everything, believe nothing, name the first bad event.

Works beside a running node (read-only) and offline. What it can not see is a whole folder put back to an
earlier state; the published checkpoint and the peers who witnessed it do. Source: specs/08-log.md#verifying
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from p2pnode.errors import BadCheckpoint, DataDirError, NonCanonical
from p2pnode.events.block import GENESIS, Block, is_block_signed
from p2pnode.events.codec import Record, decode
from p2pnode.events.database import as_condition, connect_reader
from p2pnode.events.folder import LOG_DIR, database_path, published_checkpoint
from p2pnode.events.keys import is_binding_valid, verifiers_of
from p2pnode.events.merkle import HASH_BYTES, TILE_WIDTH, Edge, leaf_hash, root_at, root_of
from p2pnode.events.note import Verifier, is_signed, parse_checkpoint, parse_note
from p2pnode.events.tables import Tables
from p2pnode.events.types import KeysBound, UnknownEvent
from p2pnode.units import EventIndex

FINDINGS_MAX = 100
FILE_PROBLEMS_MAX = 5
_CHUNK = 2_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong; `index` is the first event it concerns."""

    index: int | None
    what: str


@dataclass(slots=True)
class Report:
    """What was checked and what was found."""

    size: int = 0
    blocks: int = 0
    sealed: int = 0
    peer: str = ""
    origin: str = ""
    unknown_events: int = 0
    root: bytes = b""
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.findings

    @property
    def first_bad(self) -> Finding | None:
        """The finding at the lowest index; those without an index come after."""
        return min(self.findings, key=lambda f: (f.index is None, f.index or 0), default=None)

    def knows_of(self, first: int, end: int) -> bool:
        """Whether something in a range is named already: what follows from it says less."""
        return any(f.index is not None and first <= f.index < end for f in self.findings)

    def add(self, index: int | None, what: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(index, what))


def verify_folder(
    data_dir: Path,
    *,
    peer: str | None = None,
    checkpoints: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Verify a data folder's log, against `peer` and any signed `checkpoints` seen elsewhere, too."""
    path = database_path(data_dir)
    if not path.exists():
        raise DataDirError(f"there is no log at {path}", hint="point --data at a node's data folder")
    published = published_checkpoint(data_dir / LOG_DIR)
    connection = connect_reader(path)
    try:
        connection.execute("BEGIN")
        report = verify_tables(
            Tables(connection), peer=peer, published=published, checkpoints=checkpoints, progress=progress
        )
        for problem in file_problems(connection):
            report.add(None, f"the file of the log is damaged: {problem}")
        return report
    except sqlite3.Error as error:
        raise as_condition(error, path) from error
    finally:
        connection.close()


def file_problems(connection: sqlite3.Connection) -> list[str]:
    """What is wrong with the file beside what the events prove: an index or a page that a later write stumbles over."""
    rows = connection.execute(f"PRAGMA integrity_check({FILE_PROBLEMS_MAX})").fetchall()
    return [" ".join(str(text).split()) for (text,) in rows if text != "ok"]


def verify_tables(
    tables: Tables,
    *,
    peer: str | None = None,
    published: str | None = None,
    checkpoints: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Report:
    """The same over an open connection; what it reads should be one transaction."""
    run = _Run(tables, peer)
    run.events_and_blocks(progress)
    for note in checkpoints:
        run.checkpoint(note, "the given checkpoint")
    if published is not None:
        run.checkpoint(published, "the published checkpoint")
        run.is_published_fresh(published)
    return run.report


class _Run:
    """One pass over the events, with the blocks beside them."""

    def __init__(self, tables: Tables, peer: str | None) -> None:
        self.report = Report()
        self._tables, self._peer = tables, peer
        self._edge = Edge()
        self._tree: dict[tuple[int, int], bytes] = {}
        self._blocks = self._stream_blocks()
        self._block = next(self._blocks, None)
        self._previous_hash = GENESIS
        self._block_leaves: list[bytes] = []
        self._bound: list[KeysBound] = []
        self._tile = b""
        self._last_id = b""
        self._last_lamport = 0

    def tile(self, level: int, index: int) -> bytes:
        """The recomputed upper tree, with the stored leaves below; so a root is never a stored node's word."""
        if level == 0:
            return self._tables.tile(0, index)
        return self._tree.get((level, index)) or self._edge.partial(level, index)

    def events_and_blocks(self, progress: Callable[[int], None] | None) -> None:
        report, size = self.report, self._tables.size()
        expected = 0
        while expected < size:
            first = expected
            for index, body, leaf in self._tables.events(first, min(first + _CHUNK, size)):
                if index != expected:
                    report.add(expected, f"event {expected} is missing; the next one has the number {index}")
                    report.size = expected
                    return
                self._event(index, body, leaf)
                expected += 1
            if expected == first:
                report.add(expected, f"event {expected} is missing")
                break
            if progress is not None:
                progress(expected)
        report.size, report.root = expected, self._edge.root()
        self._after_last(expected)

    def checkpoint(self, raw: str, name: str) -> None:
        """A checkpoint this node signed must be of this log."""
        report = self.report
        try:
            note = parse_note(raw)
            checkpoint = parse_checkpoint(note.text)
            verifier = self._verifier_for(checkpoint.origin, lambda v: is_signed(note, v))
        except BadCheckpoint as error:
            report.add(None, f"{name} is damaged: {error.message}")
            return
        if verifier is None:
            report.add(
                None, f"{name} ({checkpoint.origin}, size {checkpoint.size}) is not signed by this log"
            )
        elif checkpoint.size > report.size:
            report.add(
                report.size, f"{name} has {checkpoint.size} events, the log {report.size}: its tail was cut"
            )
        elif report.ok and root_at(self, checkpoint.size) != checkpoint.root:
            report.add(None, f"{name} is of another log: the first {checkpoint.size} events differ from it")

    def is_published_fresh(self, raw: str) -> None:
        try:
            size = parse_checkpoint(parse_note(raw).text).size
        except BadCheckpoint:
            return
        if size < self.report.sealed:
            self.report.warnings.append(
                f"the published checkpoint is stale: it has {size} events, {self.report.sealed} are sealed"
            )

    # --- events -------------------------------------------------------------------------------------
    def _event(self, index: int, body: bytes, leaf: bytes) -> None:
        report, computed = self.report, leaf_hash(body)
        if computed != leaf:
            report.add(index, f"event {index} was changed: its bytes do not have the hash written with it")
        elif computed != self._tiled_leaf(index, computed):
            report.add(index, f"event {index} is not the one in the tree")
        try:
            record = decode(body, EventIndex(index))
        except NonCanonical as error:
            report.add(index, f"event {index} is not readable: {error.message}")
        else:
            self._record(index, record)
        for level, tile_index, hashes in self._edge.append(computed):
            if level:
                self._tree[level, tile_index] = hashes
            first = tile_index * TILE_WIDTH ** (level + 1)
            if self._tables.full_tile(level, tile_index) != hashes and not report.knows_of(first, index + 1):
                report.add(first, f"tile {level}/{tile_index} is not that of the events below it")
        self._block_leaves.append(computed)
        while self._block is not None and self._block.header.end <= index + 1:
            self._sealed(self._block)
            self._block = next(self._blocks, None)

    def _record(self, index: int, record: Record) -> None:
        if record.id <= self._last_id or record.lamport <= self._last_lamport:
            self.report.add(index, f"event {index} is out of order")
        self._last_id, self._last_lamport = record.id, record.lamport
        if isinstance(record.event, UnknownEvent):
            self.report.unknown_events += 1
        if isinstance(record.event, KeysBound):
            self._binding(index, record.event)
        elif index == 0:
            self.report.add(0, "event 0 does not bind this log's keys")

    def _binding(self, index: int, event: KeysBound) -> None:
        report = self.report
        if not is_binding_valid(event):
            report.add(index, f"the keys in event {index} are not signed by the identity key of {event.peer}")
        if self._peer is not None and event.peer != self._peer:
            report.add(index, f"event {index} binds the keys of {event.peer}, not of {self._peer}")
        if self._bound and (
            event.peer != self._bound[-1].peer or event.generation != self._bound[-1].generation + 1
        ):
            report.add(index, f"the keys in event {index} do not follow those before")
        if self._bound and event.origin != self._bound[-1].origin != event.previous_origin:
            report.add(index, f"event {index} gives the log another name without saying which it had")
        self._bound.append(event)
        report.peer, report.origin = event.peer, event.origin

    def _tiled_leaf(self, index: int, computed: bytes) -> bytes:
        """The leaf in the stored full tile; the last, unfinished tile is made of the leaves themselves."""
        offset = index % TILE_WIDTH
        if offset == 0:
            self._tile = self._tables.tile(0, index // TILE_WIDTH)
        stored = self._tile[offset * HASH_BYTES : (offset + 1) * HASH_BYTES]
        return stored or computed

    # --- blocks -------------------------------------------------------------------------------------
    def _sealed(self, block: Block) -> None:
        report, header = self.report, block.header
        start = self._edge.size - len(self._block_leaves)
        where = f"block {header.number} (events {header.first} to {header.end - 1})"
        if header.number != report.blocks or header.first != start or header.end != self._edge.size:
            report.add(start, f"{where} does not follow block {report.blocks - 1}, which ends at {start}")
        if header.previous_hash != self._previous_hash:
            report.add(start, f"{where} does not name the block before it")
        if header.block_root != root_of(self._block_leaves) and not report.knows_of(start, self._edge.size):
            report.add(start, f"{where} has other events than those that were sealed")
        root = self._edge.root()
        if header.log_root != root and report.ok:
            report.add(start, f"{where} was sealed over another log")
        if self._bound:
            self._signatures(block, root, where, start)
        self._previous_hash, self._block_leaves = block.hash, []
        report.blocks, report.sealed = report.blocks + 1, header.end

    def _signatures(self, block: Block, root: bytes, where: str, start: int) -> None:
        report, bound = self.report, self._bound[-1]
        if block.header.node != bound.peer or not is_block_signed(block, bound.log_key):
            report.add(start, f"{where} is not signed by this log's key")
        try:
            note = parse_note(block.checkpoint)
            checkpoint = parse_checkpoint(note.text)
            if not is_signed(note, verifiers_of(bound)[0]):
                report.add(start, f"the checkpoint of {where} is not signed by this log's key")
            if (checkpoint.origin, checkpoint.size) != (bound.origin, block.header.end):
                report.add(
                    start, f"the checkpoint of {where} is of {checkpoint.origin}, size {checkpoint.size}"
                )
            elif checkpoint.root != root and report.ok:
                report.add(start, f"the checkpoint of {where} has another root")
        except BadCheckpoint as error:
            report.add(start, f"the checkpoint of {where} is damaged: {error.message}")

    def _after_last(self, size: int) -> None:
        """Blocks over events that are not there, tiles beyond the edge."""
        if size == 0:
            self.report.add(0, "the log is empty; even a new one has its keys")
        if self._block is not None:
            header = self._block.header
            self.report.add(
                size, f"block {header.number} seals events up to {header.end - 1}, the log ends at {size}"
            )

    def _stream_blocks(self) -> Iterator[Block]:
        number = 0
        while True:
            try:
                blocks = self._tables.blocks(number, number + 1)
            except NonCanonical as error:
                self.report.add(None, f"block {number} is not readable: {error.message}")
                return
            if not blocks:
                if self._tables.block_count() > number:
                    self.report.add(None, f"block {number} is missing")
                return
            yield blocks[0]
            number += 1

    def _verifier_for(self, origin: str, is_by: Callable[[Verifier], bool]) -> Verifier | None:
        """Which of the keys the log ever had signed a checkpoint of that origin."""
        own = [verifiers_of(event)[0] for event in self._bound if event.origin == origin]
        return next((verifier for verifier in own if is_by(verifier)), None)
