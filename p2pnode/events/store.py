"""SqliteLog: the event log on a disk, for one process at a time.

`submit` answers once the event is durable (WAL, synchronous=FULL, one commit for all who wait). Blocks only
add roots and signatures to what is durable already. Source: specs/08-log.md#store
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from p2pnode.errors import (
    BadCheckpoint,
    LogFailed,
    NotFound,
    RequestError,
    RollbackRefused,
)
from p2pnode.events.assembler import fingerprint_of
from p2pnode.events.block import Block
from p2pnode.events.codec import Record
from p2pnode.events.committer import Committer
from p2pnode.events.database import as_condition, connect_writer, create_schema
from p2pnode.events.disk_room import DiskRoom
from p2pnode.events.folder import (
    DATABASE,
    LOG_DIR,
    FolderLock,
    folder_condition,
    published_checkpoint,
)
from p2pnode.events.fraud import equivocation
from p2pnode.events.keys import LogKeys, decode_binding
from p2pnode.events.log import LOCAL, Decide, Fold, NewEvent, NoFold, Outcome, State, Subscriber
from p2pnode.events.note import parse_signature_line
from p2pnode.events.publisher import Publisher
from p2pnode.events.reader import LogReader
from p2pnode.events.rebuild import PartedFold, Progress
from p2pnode.events.rollback import check_published
from p2pnode.events.secret import commitment_of
from p2pnode.events.tables import Connection, SecretRow
from p2pnode.events.types import Event
from p2pnode.events.witness import BAD_REQUEST, WitnessAnswer, parse_add_checkpoint
from p2pnode.events.writer import Committed, Writer
from p2pnode.identity import Identity
from p2pnode.limits import (
    SECRET_TEXT_BYTES_MAX,
)
from p2pnode.machine import now_ms
from p2pnode.units import EventIndex, LogSize

T = TypeVar("T")
_SALT_BYTES = 32
_logger = logging.getLogger(__name__)


class SqliteLog(Generic[State]):
    """Made by `open`; implements `EventLog`."""

    def __init__(
        self, folder: Path, lock: FolderLock, connection: Connection, committer: Committer[State]
    ) -> None:
        self._folder, self._lock = folder, lock
        self._reader = LogReader(folder / DATABASE)
        self._size = LogSize(committer.assembler.size)
        self._state = committer.state
        self._keys = committer.assembler.keys
        self._now_ms, self._rng = committer.now_ms, committer.rng
        self._subscribers: list[Subscriber] = []
        self._failure_callbacks: list[Callable[[LogFailed], None]] = []
        self._publisher = Publisher(folder, self._now_ms)
        self._disk = DiskRoom(folder, self._now_ms)
        self.replayed_count = committer.replayed_count
        """Events folded when the log was opened: those after the snapshot."""
        self._reader.set_upper(self._size, committer.assembler.edge.upper())
        self.rebuild = committer.rebuild
        """What newer code folds beside the old state; None when the state is whole."""
        self._rebuilt_callbacks: list[Callable[[State], None]] = []

        def finish() -> None:
            try:
                self._reader.close()
                connection.close()
            finally:
                lock.release()

        self._publisher.publish(self._reader.checkpoint())
        self._writer = Writer(committer, self._committed, self._failed, self._rebuilt, finish)

    @classmethod
    def open(
        cls,
        data_dir: Path,
        identity: Identity,
        *,
        fold: Fold[State] | None = None,
        beside: PartedFold[State] | None = None,
        now_ms: Callable[[], int] = now_ms,
        rng: Callable[[int], bytes] = os.urandom,
        connect: Callable[[Path], Connection] = connect_writer,
        accept_rollback: bool = False,
    ) -> SqliteLog[State]:
        """Open or make the log of a data folder, prove it whole and fold it. Blocks; a second a 100,000 events.

        With `beside`, the same fold in parts, a long log is not folded before this answers but by the writer, between
        what it is asked; `rebuild` is then there, and decisions wait (specs/08-log.md#rebuilding).

        Raises: DataDirError (in use, read-only), DiskFull, CorruptRecord, and RollbackRefused when this node
        has published a longer or other log; with `accept_rollback` it goes on under a new origin instead.
        """
        folder = data_dir / LOG_DIR
        lock = FolderLock(folder)
        lock.acquire()
        path = folder / DATABASE
        connection: Connection | None = None
        try:
            connection = connect(path)
            create_schema(connection)
            chosen: Any = NoFold() if fold is None else fold
            committer: Committer[State] = Committer(connection, identity, chosen, now_ms, rng, beside)
            try:
                check_published(published_checkpoint(folder), committer)
            except RollbackRefused:
                if not accept_rollback:
                    raise
                committer.restart_origin()
                committer.flush()
            return cls(folder, lock, connection, committer)
        except BaseException as error:
            if connection is not None:
                connection.close()
            lock.release()
            if isinstance(error, sqlite3.Error):
                raise as_condition(error, path) from error
            if isinstance(error, OSError):
                raise folder_condition(error, folder) from error
            raise

    # --- what is committed --------------------------------------------------------------------------
    @property
    def size(self) -> LogSize:
        return self._size

    @property
    def state(self) -> State:
        return self._state

    @property
    def keys(self) -> LogKeys:
        return self._keys

    @property
    def reader(self) -> LogReader:
        """All queries, for faces that run beside the loop."""
        return self._reader

    @property
    def failure(self) -> LogFailed | None:
        """Why nothing can be recorded any more; the node must end."""
        return self._writer.failure

    @property
    def has_reserve(self) -> bool:
        """Whether there is disk enough to take on paid work."""
        return self._disk.has_reserve

    def read(self, first: int, end: int) -> list[Record]:
        return self._reader.read(first, min(end, self._size))

    def entries(self, first: int, end: int) -> list[bytes]:
        return self._reader.entries(first, min(end, self._size))

    def checkpoint(self) -> str | None:
        return self._reader.checkpoint()

    @property
    def block_count(self) -> int:
        return self._reader.block_count

    def blocks(self, first: int, end: int) -> list[Block]:
        return self._reader.blocks(first, end)

    def tile(self, level: int, index: int) -> bytes:
        return self._reader.tile(level, index)

    def root(self, size: int) -> bytes:
        return self._reader.root(size)

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        return self._reader.inclusion_proof(index, size)

    def consistency_proof(self, size_first: int, size_second: int) -> list[bytes]:
        return self._reader.consistency_proof(size_first, size_second)

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def on_failure(self, callback: Callable[[LogFailed], None]) -> None:
        """Call back, on the loop, when the log has failed."""
        self._failure_callbacks.append(callback)

    def on_rebuilt(self, callback: Callable[[State], None]) -> None:
        """Call back, on the loop and between two events, with a copy of the whole state, when a rebuild is through."""
        self._rebuilt_callbacks.append(callback)

    @property
    def rebuilding(self) -> Progress | None:
        """How far a rebuild is; None when there is none. It begins with the first call on a loop."""
        return None if self.rebuild is None else self.rebuild.progress(self._size)

    # --- recording ----------------------------------------------------------------------------------
    async def submit(
        self,
        decide: Decide[State],
        *,
        actor: str = LOCAL,
        idempotency_key: str | None = None,
        fingerprint: bytes = b"",
    ) -> Outcome:
        return await self._submit(decide, actor, idempotency_key, fingerprint, decides=True)

    async def _submit(
        self, decide: Decide[State], actor: str, key: str | None, fingerprint: bytes, *, decides: bool
    ) -> Outcome:
        self._disk.check_floor()

        def submit(committer: Committer[State]) -> Outcome:
            return committer.submit(decide, actor, key, fingerprint)

        outcome: Outcome = await self._writer.call(submit, decides=decides)
        return outcome

    async def append(
        self,
        events: Sequence[Event],
        *,
        actor: str = LOCAL,
        correlation: str | None = None,
        causation: bytes | None = None,
        idempotency_key: str | None = None,
    ) -> list[EventIndex]:
        new = [NewEvent(event, None, correlation, causation) for event in events]
        fingerprint = fingerprint_of(new) if idempotency_key is not None else b""
        outcome = await self._submit(lambda _: new, actor, idempotency_key, fingerprint, decides=False)
        return outcome.indexes

    async def query(self, ask: Callable[[State], T]) -> T:
        """Ask the state in the writer, after everything submitted before."""
        answer: T = await self._writer.call(lambda committer: ask(committer.state), decides=True)
        return answer

    async def seal(self) -> Block | None:
        block: Block | None = await self._writer.call(lambda committer: committer.seal())
        self._publisher.catch_up()
        return block

    async def hold(self, duration_ms: int) -> None:
        """Seal nothing by itself for so long (0: go on): its owner first asks whether it may still sign."""
        await self._writer.call(lambda c: c.assembler.hold(c.now_ms() + duration_ms if duration_ms else 0))

    async def tick(self) -> None:
        await self._writer.call(lambda _: None)

    async def add_cosignature(self, size: int, line: str, *, peer: str = "") -> None:
        parse_signature_line(line)
        await self._writer.call(lambda committer: committer.add_cosignature(size, line, peer))

    async def witness_lamport(self, seen: int) -> None:
        """Order later events after what a peer had seen."""
        await self._writer.call(lambda committer: committer.assembler.witness_lamport(seen))

    async def witness(self, peer: str, request: str, binding: bytes) -> WitnessAnswer:
        try:
            asked, bound = parse_add_checkpoint(request), decode_binding(binding)
        except BadCheckpoint as error:
            return WitnessAnswer(BAD_REQUEST, f"{error.message}\n")
        answer: WitnessAnswer = await self._writer.call(
            lambda committer: committer.witness(peer, asked, bound)
        )
        return answer

    async def convict(self, proof: bytes) -> bool:
        event = equivocation(proof)
        is_news: bool = await self._writer.call(lambda committer: committer.convict(event))
        return is_news

    def commit_secret(self, subject: str, text: bytes, *, owner: str = "", keep_text: bool = False) -> bytes:
        if keep_text and len(text) > SECRET_TEXT_BYTES_MAX:
            raise RequestError(f"a text of {len(text)} bytes is too long to be kept")
        salt = self._rng(_SALT_BYTES)
        commitment = commitment_of(salt, text)
        row = SecretRow(commitment, subject, owner, salt, text if keep_text else None)
        self._writer.leave(lambda committer: committer.keep_secret(row))
        return commitment

    async def forget(self, subject: str, *, actor: str = LOCAL) -> int:
        count: int = await self._writer.call(lambda committer: committer.forget(subject, actor))
        if count == 0:
            raise NotFound(f"nothing is kept about {subject!r}")
        return count

    async def rotate_keys(self) -> LogKeys:
        keys: LogKeys = await self._writer.call(lambda committer: committer.rotate())
        self._keys = keys
        self._publisher.catch_up()
        return keys

    async def restart_origin(self) -> LogKeys:
        """Go on under a new name after a witness showed a longer log under the old one."""
        keys: LogKeys = await self._writer.call(lambda committer: committer.restart_origin())
        self._keys = keys
        self._publisher.catch_up()
        return keys

    async def close(self) -> None:
        await asyncio.to_thread(self._writer.close)
        self._publish_last()  # here, where `_committed` publishes too: never two at once

    def close_blocking(self) -> None:
        """`close` for those without a loop."""
        self._writer.close()
        self._publish_last()

    def _publish_last(self) -> None:
        if self._writer.failure is None:
            self._publisher.publish_last(self._writer.last_checkpoint)

    # --- callbacks of the writer, on the loop -------------------------------------------------------
    def _committed(self, committed: Committed[State]) -> None:
        self._size, self._state = LogSize(committed.size), committed.state
        if committed.upper is not None:
            self._reader.set_upper(committed.size, committed.upper)
        if committed.checkpoint is not None:
            self._publisher.offer(committed.checkpoint)
        for record in committed.records:
            for callback in list(self._subscribers):
                try:
                    callback(record)
                except Exception:
                    _logger.exception("a subscriber failed at event %d", record.index)

    def _rebuilt(self, state: State) -> None:
        self.rebuild = None
        for callback in self._rebuilt_callbacks:
            callback(state)

    def _failed(self, failure: LogFailed) -> None:
        _logger.error("%s", failure.message)
        for callback in self._failure_callbacks:
            callback(failure)
