"""The writer's inside, without its thread: takes a log as `opening` found it, and commits batches.

Any error while committing is final for this object: memory is ahead of the disk by an unknown amount, and
only opening the log again tells. Source: specs/08-log.md#store
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, Generic

from p2pnode.errors import CorruptRecord, IdempotencyConflict, LogFailed
from p2pnode.events.assembler import Assembler, Draft
from p2pnode.events.block import Block
from p2pnode.events.codec import decode_trusted
from p2pnode.events.database import write_cosignature, write_draft
from p2pnode.events.keys import LogKeys, origin_of
from p2pnode.events.log import LOCAL, Decide, Fold, NewEvent, Outcome, State
from p2pnode.events.merkle import root_at
from p2pnode.events.opening import StoredTree, bound_keys, fold_stored, position_of, record_at
from p2pnode.events.rebuild import PartedFold
from p2pnode.events.tables import Connection, IdempotencyRow, SecretRow, Tables
from p2pnode.events.types import KeysBound, PeerEquivocated, SubjectForgotten, WitnessReceived
from p2pnode.events.witness import UNKNOWN, AddCheckpoint, WitnessAnswer, Witnessed, answer_witness
from p2pnode.identity import Identity
from p2pnode.limits import (
    LOG_SNAPSHOT_EVENTS,
    WITNESS_EVENT_MS_MIN,
    WITNESS_ORIGINS_MAX,
)
from p2pnode.units import EventIndex


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
        size = self.tables.size()
        position = position_of(self.tables, size, now_ms())
        folded = fold_stored(self.tables, fold, beside, size, position.edge)
        self.replayed_count, self._snapshot_size = folded.replayed_count, folded.first
        self._wants_snapshot = folded.rebuild is None and folded.replayed_count >= LOG_SNAPSHOT_EVENTS
        """Much was folded since the last one. It waits for a seal and never causes one: after a start nothing is signed
        before a witness was asked."""
        if self._wants_snapshot:
            self._snapshot_size = size
        self.rebuild = folded.rebuild
        """What newer code folds beside the old state; `rebuild_step` goes on with it."""
        keys, self.previous_origin = bound_keys(self.tables, identity, size)
        chosen = fold if self.rebuild is None else self.rebuild.current
        self.assembler = Assembler(keys, chosen, folded.state, position, rng)
        for index in self.tables.frauds():
            event = record_at(self.tables, index).event
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
        is_news = size != self._snapshot_size or self._wants_snapshot
        if self.assembler.unsealed_count or not is_news or self.rebuild is not None:
            return
        self._wants_snapshot = False
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
        self._snapshot_size, self._wants_snapshot = size, True
        return copy

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
        since = self.assembler.size - self._snapshot_size
        is_snapshot_due = self.rebuild is None and since >= LOG_SNAPSHOT_EVENTS
        if is_snapshot_due or self.assembler.is_seal_due(now_ms):
            self.assembler.seal(now_ms)
        if is_snapshot_due or self._wants_snapshot:
            self.snapshot()
