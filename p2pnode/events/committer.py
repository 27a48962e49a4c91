"""The writer's inside, without its thread: opens a log, proves that it is whole, folds it, commits batches.

Any error while committing is final for this object: memory is ahead of the disk by an unknown amount, and
only opening the log again tells. Source: specs/08-log.md#store
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any, Generic

from p2pnode.errors import CorruptRecord, IdempotencyConflict, LogFailed
from p2pnode.events.assembler import Assembler, Draft, Position
from p2pnode.events.block import GENESIS, Block
from p2pnode.events.codec import Record, decode_trusted
from p2pnode.events.database import (
    Connection,
    IdempotencyRow,
    SecretRow,
    SnapshotRow,
    Tables,
    write_cosignature,
    write_draft,
)
from p2pnode.events.ids import IdState, state_after
from p2pnode.events.keys import LogKeys, is_binding_valid, origin_of
from p2pnode.events.log import LOCAL, Decide, Fold, NewEvent, Outcome, State
from p2pnode.events.merkle import Edge, leaf_hash, root_at
from p2pnode.events.rebuild import PartedFold, Rebuild
from p2pnode.events.types import KeysBound, PeerEquivocated, SubjectForgotten, WitnessReceived
from p2pnode.events.witness import UNKNOWN, AddCheckpoint, WitnessAnswer, Witnessed, answer_witness
from p2pnode.identity import Identity
from p2pnode.limits import (
    LOG_REBUILD_EVENTS_MIN,
    LOG_SNAPSHOT_EVENTS,
    WITNESS_EVENT_MS_MIN,
    WITNESS_ORIGINS_MAX,
)
from p2pnode.units import EventIndex

_CHUNK = 5_000


class StoredTree:
    """Tiles from the tables, the unfinished upper ones from the edge."""

    def __init__(self, tables: Tables, edge: Edge) -> None:
        self._tables, self._edge = tables, edge

    def tile(self, level: int, index: int) -> bytes:
        return self._tables.tile(level, index) or self._edge.partial(level, index)


class Committer(Generic[State]):
    """One log, one connection, one thread."""

    def __init__(
        self,
        connection: Connection,
        identity: Identity,
        fold: Fold[State],
        now_ms: Callable[[], int],
        rng: Callable[[int], bytes],
        beside: PartedFold[State] | None = None,
    ) -> None:
        self.tables = Tables(connection)
        self.now_ms, self.rng = now_ms, rng
        self._connection, self._identity, self._fold = connection, identity, fold
        self._keys_batch: dict[tuple[str, str], IdempotencyRow] = {}
        self._secrets: list[SecretRow] = []
        self._also: list[Callable[[Connection], None]] = []
        self._witnessed: dict[str, Witnessed] = {}
        self._told_ms: dict[str, int] = {}
        self._caught: dict[str, str] = {}
        """Origins whose fraud was recorded and whose they are: the same proof again is no news."""
        self._snapshot_size = 0
        self._is_rebuilt = False
        self.rebuild: Rebuild[State] | None = None
        """What newer code folds beside the old state; `rebuild_step` goes on with it."""
        self.previous_origin = ""
        """The name this log went by before a refused rollback."""
        size = self.tables.size()
        position = self._position(size)
        self.replayed_count = 0
        state = self._fold_stored(size, position, beside)
        chosen = fold if self.rebuild is None else self.rebuild.current
        self.assembler = Assembler(self._bound_keys(size), chosen, state, position, rng)
        for index in self.tables.frauds():
            event = self._record(index).event
            if isinstance(event, PeerEquivocated):
                self._caught[event.origin] = event.peer
        if size == 0:
            self.assembler.rotate_into_new_log(now_ms())
            self.flush()

    @property
    def state(self) -> State:
        return self.assembler.state

    def run(self, jobs: Sequence[Callable[[Committer[State]], Any]]) -> tuple[list[Any], Draft]:
        """Do the jobs in order and commit what they came to; a job's condition is its result.

        Raises: LogFailed when the commit failed or a fold broke; this object is then of no more use.
        """
        results: list[Any] = []
        for job in jobs:
            try:
                results.append(job(self))
            except Exception as error:
                if self.assembler.is_broken:
                    raise LogFailed(f"an event could not be folded: {error!r}") from error
                results.append(error)
        self._seal_if_due()
        return results, self.flush()

    def flush(self) -> Draft:
        """Commit what was taken in since the last flush."""
        draft = self.assembler.take()
        keys, secrets, also = list(self._keys_batch.values()), self._secrets, self._also
        if draft.entries or draft.blocks or keys or secrets or also:
            try:
                write_draft(self._connection, draft, keys, secrets, also)
            except Exception as error:
                raise LogFailed(f"the log could not be written: {error}") from error
        self._keys_batch, self._secrets, self._also, self._witnessed = {}, [], [], {}
        return draft

    # --- jobs ---------------------------------------------------------------------------------------
    def submit(self, decide: Decide[State], actor: str, key: str | None, fingerprint: bytes) -> Outcome:
        """Decide, unless the key was used before."""
        if key is not None:
            row = self._keys_batch.get((actor, key)) or self.tables.idempotency(actor, key)
            if row is not None:
                return self._repeat(row, fingerprint)
        decision, records = self.assembler.decide(decide, actor, key, self.now_ms())
        for record in records:
            if isinstance(record.event, PeerEquivocated):
                self._caught.setdefault(record.event.origin, record.event.peer)
        if key is not None and records:
            end = records[-1].index + 1
            self._keys_batch[actor, key] = IdempotencyRow(actor, key, fingerprint, records[0].index, end)
        return Outcome(tuple(records), decision.result)

    def seal(self) -> Block | None:
        return self.assembler.seal(self.now_ms())

    def rotate(self) -> LogKeys:
        old = self.assembler.keys
        new = LogKeys.derive(self._identity, old.generation + 1, old.origin)
        self.assembler.rotate(new, self.now_ms())
        return new

    def restart_origin(self) -> LogKeys:
        """Go on under a new name and new keys, after it became known that the old name has signed more."""
        old = self.assembler.keys
        generation = old.generation + 1
        new = LogKeys.derive(self._identity, generation, origin_of(self._identity.peer_id, generation))
        self.assembler.rotate(new, self.now_ms(), previous_origin=old.origin)
        return new

    def keep_secret(self, row: SecretRow) -> None:
        self._secrets.append(row)

    def forget(self, subject: str, actor: str) -> int:
        """Delete salts; a text in the write-ahead log goes with the next checkpoint of the database."""
        rows = self.tables.secrets_of(subject)
        waiting = [row for row in self._secrets if subject in (row.subject, row.owner)]
        self._secrets = [row for row in self._secrets if row not in waiting]
        commitments = [row.commitment for row in (*rows, *waiting)]
        for first in range(0, len(commitments), 1024):
            part = tuple(commitments[first : first + 1024])
            event = SubjectForgotten(subject=subject, commitments=part)
            self.assembler.add([NewEvent(event)], actor, None, self.now_ms())
        self._also.append(
            lambda c: c.execute("DELETE FROM secrets WHERE subject = ? OR owner = ?", (subject, subject))
        )
        return len(commitments)

    def add_cosignature(self, size: int, line: str, peer: str) -> None:
        """Keep a cosignature; now and then an event tells of it."""
        now_ms = self.now_ms()
        if peer and now_ms - self._told_ms.get(peer, 0) >= WITNESS_EVENT_MS_MIN:
            self._told_ms[peer] = now_ms
            root = root_at(StoredTree(self.tables, self.assembler.edge), size)
            event = WitnessReceived(peer=peer, size=size, root=root, cosignature=line)
            self.assembler.add([NewEvent(event)], LOCAL, None, now_ms)
        self._also.append(lambda c: write_cosignature(c, size, line))

    def witness(self, peer: str, request: AddCheckpoint, binding: KeysBound) -> WitnessAnswer:
        """Check against what was cosigned before and remember, both in this transaction."""
        latest = self._witnessed.get(binding.origin) or self.tables.witnessed(binding.origin)
        if latest is None and self.tables.witnessed_count() + len(self._witnessed) >= WITNESS_ORIGINS_MAX:
            return WitnessAnswer(UNKNOWN, f"this witness knows {WITNESS_ORIGINS_MAX} logs already")
        now_ms = self.now_ms()
        answer, kept, event = answer_witness(self.assembler.keys, peer, request, binding, latest, now_ms)
        if kept is not None:
            self._witnessed[kept.origin] = kept
            row = (kept.origin, kept.size, kept.root, kept.note, kept.binding, kept.recorded_ms)
            self._also.append(
                lambda c: c.execute("INSERT OR REPLACE INTO witnessed VALUES (?,?,?,?,?,?)", row)
            )
        if isinstance(event, PeerEquivocated):
            self._catch(event)
        elif event is not None:
            self.assembler.add([NewEvent(event)], LOCAL, None, now_ms)
        return answer

    def convict(self, event: PeerEquivocated) -> bool:
        """Record a fraud, unless one of this peer is recorded: a cheat must not fill the log with its names."""
        return event.peer not in self._caught.values() and self._catch(event)

    def _catch(self, event: PeerEquivocated) -> bool:
        if event.origin in self._caught:
            return False
        self._caught[event.origin] = event.peer
        self.assembler.add([NewEvent(event)], LOCAL, None, self.now_ms())
        return True

    def snapshot(self) -> None:
        """Keep the folded state, if everything it holds is sealed; the old one until a rebuild is through."""
        size = self.assembler.size
        if self.assembler.unsealed_count or size == self._snapshot_size or self.rebuild is not None:
            return
        self._is_rebuilt = False
        state = self._fold.dump(self.state)
        row = ("state", size, self.assembler.edge.root(), self._fold.version, sha256(state).digest(), state)
        self._also.append(lambda c: c.execute("INSERT OR REPLACE INTO snapshots VALUES (?,?,?,?,?,?)", row))
        self._snapshot_size = size

    def rebuild_step(self) -> State | None:
        """Fold a slice, between two commits. At the end decisions go on with the whole state, and the answer is a copy
        of it for those who read.

        Raises: LogFailed when the record cannot be folded.
        """
        assert self.rebuild is not None, "there is something to rebuild"
        size = self.assembler.size
        try:
            if not self.rebuild.step(self.tables, size):
                return None
            copy = self.rebuild.finish(self.assembler.state)
        except CorruptRecord as error:
            raise LogFailed(f"the record could not be folded: {error.message}") from error
        self.assembler.fold_by(self._fold)
        self.rebuild = None
        self._snapshot_size, self._is_rebuilt = 0, True
        return copy

    # --- opening ------------------------------------------------------------------------------------
    def _position(self, size: int) -> Position:
        """Rebuild the right edge and check it against the newest seal, before anything is signed again."""
        edge = Edge.load(StoredTree(self.tables, Edge()), size)
        block = self.tables.last_block()
        sealed = 0 if block is None else block.header.end
        if sealed > size:
            raise CorruptRecord(f"the log ends at {size}, but {sealed} events were sealed", index=size)
        if block is not None and root_at(StoredTree(self.tables, edge), sealed) != block.header.log_root:
            raise CorruptRecord(
                f"the first {sealed} events are not those that were sealed",
                hint="p2pnode log verify names the first one that differs",
                index=block.header.first,
            )
        unsealed = []
        for index, body, leaf in self.tables.events(sealed, size):
            if leaf_hash(body) != leaf:
                raise CorruptRecord(f"event {index} is not what was written", index=index)
            unsealed.append(leaf)
        last_id = self.tables.last_event_id()
        return Position(
            edge=edge,
            ids=IdState() if last_id is None else state_after(last_id),
            lamport=self._last_lamport(size),
            block_number=0 if block is None else block.header.number + 1,
            previous_hash=GENESIS if block is None else block.hash,
            unsealed=unsealed,
            unsealed_since_ms=self.now_ms(),
        )

    def _last_lamport(self, size: int) -> int:
        return self._record(size - 1).lamport if size else 0

    def _record(self, index: int) -> Record:
        return decode_trusted(self.tables.bodies(index, index + 1)[0], EventIndex(index))

    def _bound_keys(self, size: int) -> LogKeys:
        """The newest keys bound in the log; they must be this node's."""
        if size == 0:
            return LogKeys.derive(self._identity)
        row = self._connection.execute("SELECT max(seq) FROM bindings").fetchone()
        index = 0 if row[0] is None else int(row[0])
        event = self._record(index).event
        if not isinstance(event, KeysBound) or not is_binding_valid(event):
            raise CorruptRecord(f"event {index} does not bind this log's keys", index=index)
        keys = LogKeys.derive(self._identity, event.generation, event.origin)
        if keys.bound(event.previous_origin) != event:
            raise CorruptRecord(
                f"the log belongs to {event.peer}, the identity key to {self._identity.peer_id}",
                hint="put the identity key and the log of one node together",
                index=index,
            )
        self.previous_origin = event.previous_origin
        return keys

    def _fold_stored(self, size: int, position: Position, beside: PartedFold[State] | None) -> State:
        """From the newest good snapshot, or from the beginning: at once, or what is much of it beside the old state."""
        row = self._whole_snapshot(size, position.edge)
        state, first = self._load_snapshot(row)
        if first or beside is None or size < LOG_REBUILD_EVENTS_MIN:
            return self._fold_on(self._fold, state, first, size)
        self.rebuild = Rebuild(beside, row)
        if self.rebuild.has_current:
            self._fold_on(self.rebuild.current, self.rebuild.shown, self.rebuild.as_of, size)
        return self.rebuild.decided_on()

    def _fold_on(self, fold: Fold[State], state: State, first: int, size: int) -> State:
        """Over what is stored from `first` on; every replayed body is checked."""
        self._snapshot_size = first
        while first < size:
            end = min(first + _CHUNK, size)
            for index, body, leaf in self.tables.events(first, end):
                if index != first or leaf_hash(body) != leaf:
                    raise CorruptRecord(f"event {first} is not what was written", index=first)
                state = fold.apply(state, decode_trusted(body, EventIndex(index)))
                first += 1
            if first != end:
                raise CorruptRecord(f"event {first} is missing", index=first)
            self.replayed_count = first - self._snapshot_size
        return state

    def _whole_snapshot(self, size: int, edge: Edge) -> SnapshotRow | None:
        """The kept snapshot, of whatever code, if log and hash agree with it; else as if there were none."""
        row = self.tables.snapshot()
        if row is None or not 0 < row.size <= size or sha256(row.state).digest() != row.state_hash:
            return None
        return row if root_at(StoredTree(self.tables, edge), row.size) == row.log_root else None

    def _load_snapshot(self, row: SnapshotRow | None) -> tuple[State, int]:
        if row is not None and row.version == self._fold.version:
            with suppress(CorruptRecord):
                return self._fold.load(row.state), row.size
        return self._fold.initial(), 0

    def _repeat(self, row: IdempotencyRow, fingerprint: bytes) -> Outcome:
        if row.fingerprint != fingerprint:
            raise IdempotencyConflict(
                f"the idempotency key {row.key!r} was used for something else",
                hint="use a new key for a new request",
            )
        stored = self.tables.size()
        if row.end <= stored:
            bodies = enumerate(self.tables.bodies(row.first, row.end), start=row.first)
            records = tuple(decode_trusted(body, EventIndex(index)) for index, body in bodies)
        else:
            records = self.assembler.drafted(row.first, row.end)
        return Outcome(records, None, repeated=True)

    def _seal_if_due(self) -> None:
        now_ms = self.now_ms()
        if self.assembler.is_held(now_ms):
            return
        is_snapshot_due = self._is_rebuilt or self._is_snapshot_due()
        if is_snapshot_due or self.assembler.is_seal_due(now_ms):
            self.assembler.seal(now_ms)
        if is_snapshot_due:
            self.snapshot()

    def _is_snapshot_due(self) -> bool:
        is_whole = self.rebuild is None
        return is_whole and self.assembler.size - self._snapshot_size >= LOG_SNAPSHOT_EVENTS
