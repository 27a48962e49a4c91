"""MemoryLog: the event log without a disk, for tests and the simulator; same order, same proofs, same refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from p2pnode.errors import BadCheckpoint, IdempotencyConflict, LogFailed, NotFound
from p2pnode.events.assembler import Assembler, Position, fingerprint_of
from p2pnode.events.block import Block
from p2pnode.events.codec import Record, decode_trusted
from p2pnode.events.fraud import equivocation
from p2pnode.events.keys import LogKeys, decode_binding
from p2pnode.events.log import LOCAL, Decide, Fold, NewEvent, NoFold, Outcome, State, Subscriber
from p2pnode.events.note import parse_note, parse_signature_line
from p2pnode.events.proving import Proving
from p2pnode.events.secret import commitment_of
from p2pnode.events.tables import SecretRow
from p2pnode.events.types import Event, PeerEquivocated, SubjectForgotten, WitnessReceived
from p2pnode.events.witness import BAD_REQUEST, WitnessAnswer, Witnessed, answer_witness, parse_add_checkpoint
from p2pnode.identity import Identity
from p2pnode.limits import WITNESS_EVENT_MS_MIN
from p2pnode.units import EventIndex, LogSize

T = TypeVar("T")


class MemoryLog(Proving, Generic[State]):
    """Implements `EventLog`; clock and randomness are arguments, so runs repeat."""

    def __init__(
        self,
        identity: Identity,
        *,
        fold: Fold[State] | None = None,
        now_ms: Callable[[], int],
        rng: Callable[[int], bytes],
    ) -> None:
        chosen: Any = NoFold() if fold is None else fold
        self._identity, self._now_ms, self._rng = identity, now_ms, rng
        self._assembler: Assembler[State] = Assembler(
            LogKeys.derive(identity), chosen, chosen.initial(), Position(), rng
        )
        self._bodies: list[bytes] = []
        self._tiles: dict[tuple[int, int], bytes] = {}
        self._blocks: list[Block] = []
        self._cosignatures: dict[int, list[str]] = {}
        self._secrets: list[SecretRow] = []
        self._witnessed: dict[str, Witnessed] = {}
        self._told_ms: dict[str, int] = {}
        self._caught: dict[str, str] = {}
        self._used_keys: dict[tuple[str, str], tuple[bytes, int, int]] = {}
        self._subscribers: list[Subscriber] = []
        self._is_closed = False
        self._assembler.rotate_into_new_log(now_ms())
        self._commit()

    @property
    def size(self) -> LogSize:
        return LogSize(len(self._bodies))

    @property
    def state(self) -> State:
        """The state decisions are made against; here it may be read at any time."""
        return self._assembler.state

    @property
    def keys(self) -> LogKeys:
        return self._assembler.keys

    @property
    def failure(self) -> LogFailed | None:
        return None

    @property
    def has_reserve(self) -> bool:
        return True

    @property
    def block_count(self) -> int:
        return len(self._blocks)

    async def submit(
        self,
        decide: Decide[State],
        *,
        actor: str = LOCAL,
        idempotency_key: str | None = None,
        fingerprint: bytes = b"",
    ) -> Outcome:
        self._check_open()
        if idempotency_key is not None and (actor, idempotency_key) in self._used_keys:
            known, first, end = self._used_keys[actor, idempotency_key]
            if known != fingerprint:
                raise IdempotencyConflict(
                    f"the idempotency key {idempotency_key!r} was used for something else",
                    hint="use a new key for a new request",
                )
            return Outcome(tuple(self.read(first, end)), None, repeated=True)
        decision, records = self._assembler.decide(decide, actor, idempotency_key, self._now_ms())
        for record in records:
            if isinstance(record.event, PeerEquivocated):
                self._caught.setdefault(record.event.origin, record.event.peer)
        if idempotency_key is not None and records:
            span = (fingerprint, int(records[0].index), records[-1].index + 1)
            self._used_keys[actor, idempotency_key] = span
        self._commit()
        return Outcome(tuple(records), decision.result)

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
        outcome = await self.submit(
            lambda _: new, actor=actor, idempotency_key=idempotency_key, fingerprint=fingerprint
        )
        return outcome.indexes

    async def query(self, ask: Callable[[State], T]) -> T:
        return ask(self.state)

    def read(self, first: int, end: int) -> list[Record]:
        bodies = enumerate(self.entries(first, end), start=first)
        return [decode_trusted(body, EventIndex(index)) for index, body in bodies]

    def entries(self, first: int, end: int) -> list[bytes]:
        return self._bodies[max(first, 0) : max(end, 0)]

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    async def seal(self) -> Block | None:
        self._check_open()
        block = self._assembler.seal(self._now_ms())
        self._commit()
        return block

    def checkpoint(self) -> str | None:
        block = self._blocks[-1]
        lines = self._cosignatures.get(block.header.end, [])
        return str(parse_note(block.checkpoint).with_signatures(*map(parse_signature_line, sorted(lines))))

    async def add_cosignature(self, size: int, line: str, *, peer: str = "") -> None:
        parse_signature_line(line)
        now_ms = self._now_ms()
        if peer and now_ms - self._told_ms.get(peer, 0) >= WITNESS_EVENT_MS_MIN:
            self._told_ms[peer] = now_ms
            await self.append([WitnessReceived(peer=peer, size=size, root=self.root(size), cosignature=line)])
        lines = self._cosignatures.setdefault(size, [])
        if line not in lines:
            lines.append(line)

    async def witness_lamport(self, seen: int) -> None:
        self._assembler.witness_lamport(seen)

    def blocks(self, first: int, end: int) -> list[Block]:
        return self._blocks[first:end]

    def tile(self, level: int, index: int) -> bytes:
        return self._tiles.get((level, index)) or self._assembler.edge.partial(level, index)

    async def witness(self, peer: str, request: str, binding: bytes) -> WitnessAnswer:
        try:
            asked, bound = parse_add_checkpoint(request), decode_binding(binding)
        except BadCheckpoint as error:
            return WitnessAnswer(BAD_REQUEST, f"{error.message}\n")
        latest = self._witnessed.get(bound.origin)
        answer, kept, event = answer_witness(self.keys, peer, asked, bound, latest, self._now_ms())
        if kept is not None:
            self._witnessed[kept.origin] = kept
        if isinstance(event, PeerEquivocated):
            await self._catch(event)
        elif event is not None:
            await self.append([event])
        return answer

    async def convict(self, proof: bytes) -> bool:
        event = equivocation(proof)
        return event.peer not in self._caught.values() and await self._catch(event)

    async def _catch(self, event: PeerEquivocated) -> bool:
        if event.origin in self._caught:
            return False
        self._caught[event.origin] = event.peer
        await self.append([event])
        return True

    def commit_secret(self, subject: str, text: bytes, *, owner: str = "", keep_text: bool = False) -> bytes:
        salt = self._rng(32)
        commitment = commitment_of(salt, text)
        self._secrets.append(SecretRow(commitment, subject, owner, salt, text if keep_text else None))
        return commitment

    async def forget(self, subject: str, *, actor: str = LOCAL) -> int:
        gone = [row for row in self._secrets if subject in (row.subject, row.owner)]
        if not gone:
            raise NotFound(f"nothing is kept about {subject!r}")
        self._secrets = [row for row in self._secrets if row not in gone]
        event = SubjectForgotten(subject=subject, commitments=tuple(row.commitment for row in gone))
        await self.append([event], actor=actor)
        return len(gone)

    async def rotate_keys(self) -> LogKeys:
        old = self.keys
        new = LogKeys.derive(self._identity, old.generation + 1, old.origin)
        self._assembler.rotate(new, self._now_ms())
        self._commit()
        return new

    async def tick(self) -> None:
        if self._assembler.is_seal_due(self._now_ms()):
            await self.seal()

    async def close(self) -> None:
        if not self._is_closed:
            await self.seal()
            self._is_closed = True

    def _commit(self) -> None:
        draft = self._assembler.take()
        self._bodies.extend(entry.body for entry in draft.entries)
        self._tiles.update({(level, index): hashes for level, index, hashes in draft.tiles})
        self._blocks.extend(draft.blocks)
        for entry in draft.entries:
            for callback in list(self._subscribers):
                callback(entry.record)

    def _check_open(self) -> None:
        if self._is_closed:
            raise LogFailed("the log is closed", hint="")
