"""MemoryLog keeps the event log's contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2pnode.events.memory import MemoryLog
from tests.contract.event_log_contract import EventLogContract
from tests.kit.log_events import node_identity, seeded_bytes


class TestMemoryLog(EventLogContract):
    def make(self, folder: Path, fold: Any) -> Any:
        return MemoryLog(node_identity(), fold=fold, now_ms=self.clock, rng=seeded_bytes(1))
