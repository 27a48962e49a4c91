"""What a stage computed for each session: positions, rows, and a digest of what went in and came out.

The digests end up, salted, in receipts (specs/09-billing.md): neighbours in a ring hash the same bytes, so
what one stage says it sent is what the next says it got.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from p2pnode.frame import Frame
from p2pnode.limits import ROW_TALLIES_KEPT_MAX


def rank_part(work: int, rank: int, shares: Sequence[int]) -> int:
    """One rank's part of a stage's work by its share of the width; all ranks' parts sum to the work.

    By largest remainder, the smaller rank first. Without shares one device has the stage alone.
    """
    if not shares:
        return work
    total = sum(shares)
    by_remainder = sorted(range(len(shares)), key=lambda r: (-(work * shares[r] % total), r))
    left = work - sum(work * share // total for share in shares)
    return work * shares[rank] // total + (by_remainder.index(rank) < left)


@dataclass(frozen=True, slots=True)
class TalliedStage:
    """A stage, or one rank's share of it, as its head had it prepared here."""

    plan_id: str
    head: str
    layers: tuple[int, int]
    rank: int = 0
    shares: tuple[int, ...] = ()
    layers_total: int = 0
    """Of the whole model; 0 where nobody counted."""

    def layer_tokens(self, positions: int) -> int:
        return rank_part((self.layers[1] - self.layers[0]) * positions, self.rank, self.shares)


@dataclass(slots=True)
class RowTally:
    """One session on one stage since its last receipt; rows computed again count again."""

    stage: TalliedStage
    rows: int = 0
    receipted: int = 0
    """Positions before this one stand in a receipt already: a replay of them is not paid again."""
    _first: int = 0
    position_end: int = 0
    _rows_in: blake3 = field(default_factory=blake3)
    _rows_out: blake3 = field(default_factory=blake3)

    def add(self, received: Frame, sent: Frame) -> None:
        """Rows in the order they were computed."""
        first, end = received.position_first, received.position_first + received.rows
        self._first = first if self.rows == 0 else min(self._first, first)
        self.position_end = max(self.position_end, end)
        self.rows += received.rows
        self._rows_in.update(received.payload)
        self._rows_out.update(sent.payload)

    def cut(self) -> None:
        """A receipt was given for all this: what comes now is for the next one."""
        self.receipted = max(self.receipted, self.position_end)
        self.rows, self._first = 0, self.receipted
        self._rows_in, self._rows_out = blake3(), blake3()

    @property
    def position_first(self) -> int:
        return max(self._first, self.receipted)

    @property
    def layer_tokens(self) -> int:
        """Layers times positions, each once: what is paid; a replay is the mesh's loss, not the caller's."""
        positions = max(self.position_end - self.position_first, 0)
        return self.stage.layer_tokens(min(self.rows, positions))

    @property
    def input_digest(self) -> bytes:
        """BLAKE3-256 of the payloads received, in order."""
        return self._rows_in.digest()

    @property
    def output_digest(self) -> bytes:
        return self._rows_out.digest()


TallyKey = tuple[str, int, int, int]
"""Plan, session, first layer, end layer."""


async def _nothing_to_settle() -> None:
    return


class RowTallies:
    """The newest tallies of this device; the oldest are forgotten."""

    def __init__(self) -> None:
        self._tallies: dict[TallyKey, RowTally] = {}
        self.settle: Callable[[], Awaitable[None]] = _nothing_to_settle
        """Brings in what engines computed and have not told of yet; awaited before a tally is read for others."""

    def add(self, stage: TalliedStage, received: Frame, sent: Frame) -> None:
        key = (stage.plan_id, received.session, *stage.layers)
        tally = self._tallies.get(key)
        # A head that started again counts its sessions from 1 again.
        is_new_session = received.epoch == 0 and received.position_first == 0
        if tally is None or is_new_session:
            self._tallies.pop(key, None)
            tally = self._tallies[key] = RowTally(stage)
            while len(self._tallies) > ROW_TALLIES_KEPT_MAX:
                del self._tallies[next(iter(self._tallies))]
        tally.add(received, sent)

    def get(self, plan_id: str, session: int, layers: tuple[int, int]) -> RowTally | None:
        return self._tallies.get((plan_id, session, *layers))
