"""Commands in, facts out: the node's one way of changing what is known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2pnode.commands import Command
from p2pnode.decide import decide
from p2pnode.events.codec import Record
from p2pnode.events.store import SqliteLog
from p2pnode.identity import Identity
from p2pnode.projections import MeshFold, MeshState
from p2pnode.projections.state import apply, restore, snapshot
from p2pnode.projections.views import view


class Ledger:
    """The log with the node's own fold of it; views read this fold and nothing else."""

    def __init__(self, log: SqliteLog[MeshState], *, now_ms: Callable[[], int]) -> None:
        self.log = log
        self._now_ms = now_ms
        # The writer's state belongs to the writer's thread; ours starts as a copy and follows what is committed.
        self.state = restore(snapshot(log.state))
        log.subscribe(self._follow)
        self.appends, self.append_s = 0, 0.0
        """Commands recorded since this start, and how long whoever gave them waited until they were durable."""

    @classmethod
    async def open(cls, data_dir: Path, identity: Identity, *, now_ms: Callable[[], int]) -> Ledger:
        log = await asyncio.to_thread(SqliteLog.open, data_dir, identity, fold=MeshFold(), now_ms=now_ms)
        return cls(log, now_ms=now_ms)

    def _follow(self, record: Record) -> None:
        self.state = apply(self.state, record)

    async def do(self, command: Command, *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Decide and record; the answer, once it is durable. Raises the condition when it is refused."""
        begun_s = time.perf_counter()
        outcome = await self.log.submit(
            lambda state: decide(state, command, self._now_ms()),
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
        return view(self.state, name, self._now_ms())

    async def close(self) -> None:
        await self.log.close()
