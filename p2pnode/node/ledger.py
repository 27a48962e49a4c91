"""Commands in, facts out: the node's one way of changing what is known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2pnode.commands import Command
from p2pnode.decide import decide
from p2pnode.errors import StateRebuilding
from p2pnode.events.codec import Record
from p2pnode.events.log import LOCAL
from p2pnode.events.store import SqliteLog
from p2pnode.identity import Identity
from p2pnode.projections import MeshFold, MeshState
from p2pnode.projections.state import apply, restore, snapshot
from p2pnode.projections.views import PARTS_SHOWN, view


class Ledger:
    """The log with the node's own fold of it; views read this fold and nothing else."""

    def __init__(self, log: SqliteLog[MeshState], *, now_ms: Callable[[], int]) -> None:
        self.log = log
        self._now_ms = now_ms
        self.is_exact = asyncio.Event()
        """Set once everything that is decided by is exact, and not as an older version of the code left it."""
        self._apply = apply
        if log.rebuild is None:
            # The writer's state belongs to the writer's thread; ours starts as a copy and follows what is committed.
            self.state = restore(snapshot(log.state))
        else:
            self.state, self._apply = log.rebuild.shown, log.rebuild.current.apply
            log.on_rebuilt(self._take_over)
        if log.rebuild is None or log.rebuild.may_decide:
            self.is_exact.set()
        log.subscribe(self._follow)
        self.appends, self.append_s = 0, 0.0
        """Commands recorded since this start, and how long whoever gave them waited until they were durable."""

    @classmethod
    async def open(cls, data_dir: Path, identity: Identity, *, now_ms: Callable[[], int]) -> Ledger:
        """Proved whole, and folded unless newer code has much to fold: then `is_exact` tells when it has."""
        fold = MeshFold()
        log = await asyncio.to_thread(
            SqliteLog.open, data_dir, identity, fold=fold, beside=fold, now_ms=now_ms
        )
        ledger = cls(log, now_ms=now_ms)
        await log.tick()  # from now on there is a loop to tell, so a rebuild begins
        return ledger

    def _follow(self, record: Record) -> None:
        self.state = self._apply(self.state, record)

    def _take_over(self, state: MeshState) -> None:
        """The rebuilt state in the place of the old one, between two events."""
        assert state.size == self.log.size, "the copy was made after the last event told"
        self.state, self._apply = state, apply
        self.is_exact.set()

    def rebuilding(self) -> dict[str, Any] | None:
        """How far newer code is with folding the record anew, for faces; None when there is nothing to fold."""
        progress = self.log.rebuilding
        if progress is None:
            return None
        return {
            "folded": progress.folded,
            "size": progress.size,
            "as_of": progress.as_of,
            "parts": sorted(progress.parts),
            "unreadable": sorted(progress.unreadable),
            "decides": self.is_exact.is_set(),
        }

    async def do(
        self, command: Command, *, idempotency_key: str | None = None, actor: str = LOCAL
    ) -> dict[str, Any]:
        """Decide and record; the answer, once it is durable. Raises the condition when it is refused."""
        begun_s = time.perf_counter()
        outcome = await self.log.submit(
            lambda state: decide(state, command, self._now_ms()),
            actor=actor,
            idempotency_key=idempotency_key,
            fingerprint=repr(command).encode() if idempotency_key else b"",
        )
        self.appends += 1
        self.append_s += time.perf_counter() - begun_s
        if outcome.repeated:  # its state knows the key, so the same question gets the first answer again
            return dict(decide(self.state, command, self._now_ms()).result)
        return dict(outcome.result)

    def append_metric(self) -> dict[str, Any]:
        """As a row of the metrics' view."""
        return {
            "name": "p2pnode_log_append_seconds",
            "type": "summary",
            "help": "From a decision to its being durable in the log.",
            "samples": [{"labels": {}, "count": self.appends, "value": self.append_s}],
        }

    def view(self, name: str) -> dict[str, Any]:
        """What is known. While newer code folds it anew, what the old code left, marked with `rebuilding`.

        Raises: StateRebuilding when what the old code left can not be read.
        """
        progress, shown = self.log.rebuilding, PARTS_SHOWN[name]
        if progress is None or not shown & progress.parts:
            return view(self.state, name, self._now_ms())
        if shown & progress.unreadable:
            raise StateRebuilding(
                f"{progress.folded} of {progress.size} events are folded by this version of p2pnode",
                folded=progress.folded,
                size=progress.size,
            )
        return {**view(self.state, name, self._now_ms()), "rebuilding": self.rebuilding()}

    async def close(self) -> None:
        await self.log.close()
