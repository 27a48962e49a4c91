"""What a stage computed for each session: positions, rows, and a digest of what went in and came out.

The digests end up, salted, in receipts (specs/09-billing.md): neighbours in a ring hash the same bytes, so
what one stage says it sent is what the next says it got.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from blake3 import blake3

from p2pnode.frame import Frame
from p2pnode.limits import ROW_TALLIES_KEPT_MAX


@dataclass(slots=True)
class RowTally:
    """One session on one stage; rows computed again count again."""

    layer_first: int
    layer_end: int
    rows: int = 0
    position_first: int = 0
    position_end: int = 0
    _rows_in: blake3 = field(default_factory=blake3)
    _rows_out: blake3 = field(default_factory=blake3)

    def add(self, received: Frame, sent: Frame) -> None:
        """Rows in the order they were computed."""
        first, end = received.position_first, received.position_first + received.rows
        self.position_first = first if self.rows == 0 else min(self.position_first, first)
        self.position_end = max(self.position_end, end)
        self.rows += received.rows
        self._rows_in.update(received.payload)
        self._rows_out.update(sent.payload)

    @property
    def layer_tokens(self) -> int:
        """Layers times positions, each once: what is paid; a replay is the mesh's loss, not the caller's."""
        positions = self.position_end - self.position_first
        return (self.layer_end - self.layer_first) * min(self.rows, positions)

    @property
    def input_digest(self) -> bytes:
        """BLAKE3-256 of the payloads received, in order."""
        return self._rows_in.digest()

    @property
    def output_digest(self) -> bytes:
        return self._rows_out.digest()


TallyKey = tuple[str, int, int, int]
"""Plan, session, first layer, end layer."""


class RowTallies:
    """The newest tallies of this device; the oldest are forgotten."""

    def __init__(self) -> None:
        self._tallies: dict[TallyKey, RowTally] = {}

    def add(self, plan_id: str, layers: tuple[int, int], received: Frame, sent: Frame) -> None:
        key = (plan_id, received.session, *layers)
        tally = self._tallies.get(key)
        # A head that started again counts its sessions from 1 again.
        is_new_session = received.epoch == 0 and received.position_first == 0
        if tally is None or is_new_session:
            self._tallies.pop(key, None)
            tally = self._tallies[key] = RowTally(*layers)
            while len(self._tallies) > ROW_TALLIES_KEPT_MAX:
                del self._tallies[next(iter(self._tallies))]
        tally.add(received, sent)

    def get(self, plan_id: str, session: int, layers: tuple[int, int]) -> RowTally | None:
        return self._tallies.get((plan_id, session, *layers))
