"""The order of things: decisions become numbered, encoded, hashed events, tiles and blocks.

Pure (clock and randomness come in); what it prepares must then be committed whole, or this object thrown
away, because its state is already past it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Generic

from p2pnode.events.block import GENESIS, Block, seal_block
from p2pnode.events.codec import Record, encode, fingerprint
from p2pnode.events.ids import IdState, next_id
from p2pnode.events.keys import LogKeys
from p2pnode.events.log import Decide, Decision, Fold, NewEvent, State
from p2pnode.events.merkle import Edge, leaf_hash
from p2pnode.limits import LOG_BLOCK_EVENTS, LOG_BLOCK_MS, LOG_HELD_EVENTS_MAX, LOG_HOLD_MS
from p2pnode.units import EventIndex, UnixMs


@dataclass(frozen=True, slots=True)
class Entry:
    """One event ready for the disk."""

    record: Record
    body: bytes
    leaf: bytes


@dataclass(slots=True)
class Draft:
    """What one commit writes."""

    entries: list[Entry] = field(default_factory=list)
    tiles: list[tuple[int, int, bytes]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


@dataclass(slots=True)
class Position:
    """Where a log stands: everything the assembler needs to go on after a restart."""

    edge: Edge = field(default_factory=Edge)
    ids: IdState = field(default_factory=IdState)
    lamport: int = 0
    block_number: int = 0
    previous_hash: bytes = GENESIS
    unsealed: list[bytes] = field(default_factory=list)
    """Leaf hashes since the last block."""
    unsealed_since_ms: int = 0


class Assembler(Generic[State]):
    """Takes decisions one by one; `take` hands over what is to be committed."""

    def __init__(
        self,
        keys: LogKeys,
        fold: Fold[State],
        state: State,
        position: Position,
        rng: Callable[[int], bytes],
    ) -> None:
        self._keys = [keys]
        self._fold = fold
        self.state = state
        self._at = position
        self._rng = rng
        self._draft = Draft()
        self._held_until_ms = 0
        self.is_broken = False
        """A fold failed halfway: state and log do not belong together any more."""

    def fold_by(self, fold: Fold[State]) -> None:
        """Apply what comes from now on by another fold: the state is whole again."""
        self._fold = fold

    @property
    def size(self) -> int:
        """Events so far, those of the draft included."""
        return self._at.edge.size

    @property
    def keys(self) -> LogKeys:
        return self._keys[-1]

    @property
    def edge(self) -> Edge:
        return self._at.edge

    @property
    def unsealed_count(self) -> int:
        return len(self._at.unsealed)

    @property
    def seal_due_ms(self) -> int | None:
        """When the open block is to be sealed; None while it is empty."""
        due_ms = self._at.unsealed_since_ms + LOG_BLOCK_MS
        return max(due_ms, self._held_until_ms) if self._at.unsealed else None

    def hold(self, until_ms: int) -> None:
        """Seal nothing by itself until then, while it is unknown whether the log may still sign."""
        self._held_until_ms = until_ms

    def is_held(self, now_ms: int) -> bool:
        """Not longer than it was meant to be, whatever the clock does; and a block stays smaller than a tile."""
        left_ms = self._held_until_ms - now_ms
        return 0 < left_ms <= LOG_HOLD_MS and self.unsealed_count < LOG_HELD_EVENTS_MAX

    def is_seal_due(self, now_ms: int) -> bool:
        """Whether the open block is old enough, or the clock went back; whether it is held is asked before."""
        since_ms = self._at.unsealed_since_ms
        return bool(self._at.unsealed) and not since_ms <= now_ms < since_ms + LOG_BLOCK_MS

    def witness_lamport(self, seen: int) -> None:
        """Go past a peer's logical clock."""
        self._at.lamport = max(self._at.lamport, seen)

    def decide(
        self, decide: Decide[State], actor: str, idempotency_key: str | None, now_ms: int
    ) -> tuple[Decision, list[Record]]:
        """Run a decision and take in what it came to; on any condition nothing has changed."""
        answer = decide(self.state)
        decision = answer if isinstance(answer, Decision) else Decision(answer)
        return decision, self.add(decision.events, actor, idempotency_key, now_ms)

    def add(
        self, events: Sequence[NewEvent], actor: str, idempotency_key: str | None, now_ms: int
    ) -> list[Record]:
        """Number, encode and apply facts; all of them or, when one does not fit its limits, none."""
        ids, lamport = self._at.ids, self._at.lamport
        entries: list[Entry] = []
        for new in events:
            event_id, ids = next_id(ids, now_ms, self._rng)
            lamport += 1
            record = Record(
                EventIndex(self.size + len(entries)),
                event_id,
                actor if new.actor is None else new.actor,
                UnixMs(now_ms),
                lamport,
                new.correlation,
                new.causation,
                idempotency_key,
                new.event,
            )
            body = encode(record)
            entries.append(Entry(record, body, leaf_hash(body)))
        self._at.ids, self._at.lamport = ids, lamport
        self.is_broken = True
        for entry in entries:
            self._take_in(entry, now_ms)
        self.is_broken = False
        return [entry.record for entry in entries]

    def rotate_into_new_log(self, now_ms: int) -> None:
        """Event 0: the identity key's word for the keys, sealed at once."""
        self.add([NewEvent(self.keys.bound())], self.keys.peer, None, now_ms)
        self.seal(now_ms)

    def drafted(self, first: int, end: int) -> tuple[Record, ...]:
        """Records that are not committed yet."""
        return tuple(e.record for e in self._draft.entries if first <= e.record.index < end)

    def rotate(self, keys: LogKeys, now_ms: int, previous_origin: str = "") -> list[Record]:
        """Bind new keys and seal with the old and the new one, so that whoever knew the old can follow."""
        self.seal(now_ms)
        records = self.add([NewEvent(keys.bound(previous_origin))], keys.peer, None, now_ms)
        if previous_origin:
            self._keys = [keys]
        else:
            self._keys.append(keys)
        self.seal(now_ms)
        return records

    def seal(self, now_ms: int) -> Block | None:
        """Close the open block; None when it is empty."""
        at = self._at
        if not at.unsealed:
            return None
        block = seal_block(
            self._keys,
            number=at.block_number,
            first=at.edge.size - len(at.unsealed),
            leaves=at.unsealed,
            log_root=at.edge.root(),
            previous_hash=at.previous_hash,
            now_ms=now_ms,
        )
        at.block_number += 1
        at.previous_hash = block.hash
        at.unsealed = []
        self._keys = self._keys[-1:]
        self._draft.blocks.append(block)
        return block

    def take(self) -> Draft:
        """Everything since the last take, to be committed together."""
        draft, self._draft = self._draft, Draft()
        return draft

    def _take_in(self, entry: Entry, now_ms: int) -> None:
        at = self._at
        self.state = self._fold.apply(self.state, entry.record)
        self._draft.entries.append(entry)
        self._draft.tiles.extend(at.edge.append(entry.leaf))
        if not at.unsealed:
            at.unsealed_since_ms = now_ms
        at.unsealed.append(entry.leaf)
        if len(at.unsealed) >= LOG_BLOCK_EVENTS and not self.is_held(now_ms):
            self.seal(now_ms)


def fingerprint_of(events: Sequence[NewEvent]) -> bytes:
    """What tells one `append` under an idempotency key from another: hash over kinds and fields."""
    digest = sha256()
    for new in events:
        digest.update(fingerprint(new.event))
    return digest.digest()
