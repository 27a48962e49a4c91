"""A log left by an earlier version of the code, which folded some parts of the state otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from p2pnode.events.committer import Committer
from p2pnode.events.database import connect_writer, create_schema
from p2pnode.events.folder import DATABASE, LOG_DIR
from p2pnode.events.log import NewEvent
from p2pnode.events.types import CreditHeld, CreditSettled, CreditToppedUp, Event, KeysBound
from p2pnode.identity import Identity
from p2pnode.projections import VERSIONS, MeshFold, MeshState
from tests.kit.chronicle import chronicle
from tests.kit.log_events import ManualClock, node_identity, seeded_bytes

WRONG_REQUESTS = 77_777
"""What the old code counted."""


class OldFold(MeshFold):
    """`parts` were folded otherwise, `unreadable` ones were also written in another form."""

    def __init__(self, parts: Iterable[str], unreadable: Iterable[str] = ()) -> None:
        changed = {*parts, *unreadable}
        self.version = ", ".join(f"{part} {n - (part in changed)}" for part, n in VERSIONS.items())
        self._unreadable = set(unreadable)
        self._is_wrong = "usage" in changed - self._unreadable

    def dump(self, state: MeshState) -> bytes:
        told = msgspec.msgpack.decode(super().dump(state))
        if self._is_wrong:
            told["usage"]["total"][0] = WRONG_REQUESTS
        for part in self._unreadable:
            told[part] = ["a form that nobody reads any more"]
        return msgspec.msgpack.encode(told, order="sorted")


def write_log(
    folder: Path,
    fold: MeshFold,
    events: Iterable[Any],
    identity: Identity | None = None,
    *,
    each: int = 500,
    tail: int = 0,
) -> int:
    """A log sealed but for its `tail`, with a snapshot by `fold`; `events` are facts, or records with their times."""
    (folder / LOG_DIR).mkdir(parents=True, exist_ok=True)
    connection = connect_writer(folder / LOG_DIR / DATABASE)
    create_schema(connection)
    clock = ManualClock()
    own = identity or node_identity()
    committer: Committer[MeshState] = Committer(connection, own, fold, clock, seeded_bytes(5))
    for number, fact in enumerate(events):
        _add(committer, clock, fact)
        if number % each == each - 1:
            committer.flush()
    committer.seal()
    committer.snapshot()
    committer.flush()
    for fact in billing_events(tail, first=3_000_000):
        _add(committer, clock, fact)
    committer.flush()
    size = committer.assembler.size
    connection.close()
    return size


def _add(committer: Committer[MeshState], clock: ManualClock, fact: Any) -> None:
    if isinstance(fact, Event):
        committer.assembler.add([NewEvent(fact)], "local", None, clock())
        return
    clock.now_ms = fact.wall_ms
    new = NewEvent(fact.event, correlation=fact.correlation)
    committer.assembler.add([new], fact.actor, fact.idempotency_key, clock())


def life(seed: int, steps: int = 300) -> list[Any]:
    """Records of every kind, for a log that has its own keys."""
    return [record for record in chronicle(seed, steps).records if not isinstance(record.event, KeysBound)]


def billing_events(count: int, first: int = 0) -> Iterable[Event]:
    """Top up, hold, settle, in turn, over fifty accounts; the sums are never zero."""
    for number in range(first, first + count):
        account, request = f"key{number // 3 % 50}", f"req-{number // 3}"
        if number % 3 == 0:
            yield CreditToppedUp(account=account, amount_microunits=1_000_000)
        elif number % 3 == 1:
            yield CreditHeld(
                hold_id=request,
                payer=account,
                request_id=request,
                amount_microunits=900_000,
                expires_ms=2_000_000_000_000,
            )
        else:
            yield CreditSettled(
                hold_id=request,
                payer=account,
                request_id=request,
                amount_microunits=800_000,
                shares=(("peer-a", 500_000), ("peer-b", 300_000)),
            )
