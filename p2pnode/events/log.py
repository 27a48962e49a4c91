"""The event log as the rest of the node sees it: one port, kept by MemoryLog and SqliteLog alike.

Decisions run where the log is written, one after another, against a state that holds every event before
them; so two callers can never both spend the last credit. An event counts from the moment `submit`
returns: then it is on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from p2pnode.events.block import Block
from p2pnode.events.codec import Record
from p2pnode.events.keys import LogKeys
from p2pnode.events.types import Event
from p2pnode.events.witness import WitnessAnswer
from p2pnode.units import EventIndex, LogSize

LOCAL: Final = "local"
"""The actor of what the node does by itself or its owner asks at the console."""

State = TypeVar("State")
State_co = TypeVar("State_co", covariant=True)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A fact to record; the log gives it a place, an id and a time. Without an actor it has the submission's."""

    event: Event
    actor: str | None = None
    correlation: str | None = None
    causation: bytes | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a decision came to: facts to record, and an answer for the caller."""

    events: Sequence[NewEvent] = ()
    result: Any = None


Decide = Callable[[State], "Decision | Sequence[NewEvent]"]
"""Pure: sees the state, answers facts or raises a condition of errors.py, which the caller gets."""

Subscriber = Callable[[Record], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was recorded; `repeated` when the idempotency key had been used and nothing new was."""

    records: tuple[Record, ...]
    result: Any = None
    repeated: bool = False

    @property
    def indexes(self) -> list[EventIndex]:
        return [record.index for record in self.records]


class Fold(Protocol[State]):
    """State from events and nothing else; `apply` answers the new state, which may be the old object changed."""

    @property
    def version(self) -> str:
        """Changes with the code, so that snapshots of other code are not used."""
        ...

    def initial(self) -> State: ...
    def apply(self, state: State, record: Record) -> State: ...
    def dump(self, state: State) -> bytes:
        """The one canonical encoding of a state: its hash is the state's hash."""
        ...

    def load(self, raw: bytes) -> State: ...


class NoFold:
    """For logs nobody decides on."""

    version = "none"

    def initial(self) -> None:
        return None

    def apply(self, state: None, record: Record) -> None:
        del state, record

    def dump(self, state: None) -> bytes:
        del state
        return b"\xc0"

    def load(self, raw: bytes) -> None:
        del raw


class EventLog(Protocol[State_co]):
    """An append-only record that can be proved. Reads see what is committed, and nothing else."""

    @property
    def size(self) -> LogSize: ...
    @property
    def state(self) -> State_co:
        """What decisions are made against; it belongs to the writer, others copy it before the first `submit`."""
        ...

    @property
    def keys(self) -> LogKeys: ...

    async def submit(
        self,
        decide: Decide[State_co],
        *,
        actor: str = LOCAL,
        idempotency_key: str | None = None,
        fingerprint: bytes = b"",
    ) -> Outcome:
        """Decide and record. A key used before by this actor answers with what was recorded then.

        Raises: what `decide` raises; IdempotencyConflict if the key came with another `fingerprint`;
        LogBusy, DiskFull (nothing was recorded); LogFailed (unknown: ask again after the restart).
        """
        ...

    async def append(
        self,
        events: Sequence[Event],
        *,
        actor: str = LOCAL,
        correlation: str | None = None,
        causation: bytes | None = None,
        idempotency_key: str | None = None,
    ) -> list[EventIndex]:
        """Record facts that need no decision."""
        ...

    def read(self, first: int, end: int) -> list[Record]:
        """Records of [first, end), at most LOG_READ_EVENTS_MAX."""
        ...

    def entries(self, first: int, end: int) -> list[bytes]:
        """The exact bytes behind `read`."""
        ...

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call back for each event once it is committed, in order, before its caller goes on; answers how to stop."""
        ...

    async def seal(self) -> Block | None:
        """Seal what is not sealed yet; None when everything is."""
        ...

    def checkpoint(self) -> str | None:
        """The newest signed checkpoint with the cosignatures gathered for it."""
        ...

    async def add_cosignature(self, size: int, line: str, *, peer: str = "") -> None:
        """Keep a witness's signature line for the checkpoint of that size; record it, at most once an hour."""
        ...

    async def witness(self, peer: str, request: str, binding: bytes) -> WitnessAnswer:
        """Answer a peer's add-checkpoint request; what it relies on is checked and remembered in one commit."""
        ...

    async def convict(self, proof: bytes) -> bool:
        """Record that a peer's log has two histories; False when one of that peer is recorded already.

        Raises: BadCheckpoint when the document proves nothing.
        """
        ...

    def blocks(self, first: int, end: int) -> list[Block]: ...
    @property
    def block_count(self) -> int: ...
    def tile(self, level: int, index: int) -> bytes:
        """Hashes of a tile so far (up to 256); nothing beyond the edge."""
        ...

    def root(self, size: int) -> bytes: ...
    def inclusion_proof(self, index: int, size: int) -> list[bytes]: ...
    def consistency_proof(self, size_first: int, size_second: int) -> list[bytes]: ...

    def commit_secret(self, subject: str, text: bytes, *, owner: str = "", keep_text: bool = False) -> bytes:
        """A salted commitment to put into an event; the salt is kept with that event's commit until forgotten."""
        ...

    async def forget(self, subject: str, *, actor: str = LOCAL) -> int:
        """Delete the salts (and texts) of a subject or owner and record it; answers how many."""
        ...

    async def rotate_keys(self) -> LogKeys:
        """Bind a new generation of keys; the checkpoint sealed now is signed by the old key and the new."""
        ...

    async def tick(self) -> None:
        """Look at the clock: seal what is due."""
        ...

    async def close(self) -> None:
        """Commit what waits, seal, and let go of the files."""
        ...
