"""Waiting a moment for frames that usually come together: four rows in one decode cost little more than one.

Without it the first frame of a round starts alone and the others follow, round after round. The wait is a
small part of a decode, and is given up for a while where nothing comes of it. In a ring of stages the sessions
are shared out among as many batches as there are stages: one batch of all would leave every other stage idle.
"""

from __future__ import annotations

from collections.abc import Collection

_SHARE_OF_DECODE = 0.05
_WAIT_S_MAX = 0.002
_MISSES_MAX = 6
_BATCHES_LOOKED_BACK = 2
_ROUNDS_LOOKED_BACK = 4
"""Of a ring: long enough that sessions which came one by one are seen together."""


class Gather:
    """Which sessions took part in the last batches, and whether waiting for them pays."""

    def __init__(self) -> None:
        self._last_seen: dict[int, int] = {}
        self._batch = 0
        self._decode_s = 0.0
        self._misses = 0
        self._skip = 0
        self._stages = 1

    def share_among(self, stages: int) -> None:
        """This unit is one of so many stages that can compute at the same time."""
        self._stages = stages

    @property
    def rows_max(self) -> int | None:
        """Most decoded rows of one batch; None for as many as there are."""
        return None if self._stages == 1 else max(1, -(-len(self._last_seen) // self._stages))

    def ran(self, sessions: Collection[int], spent_s: float) -> None:
        """A batch is done."""
        self._batch += 1
        self._decode_s = spent_s
        for session in sessions:
            self._last_seen[session] = self._batch
        for session in [key for key, batch in self._last_seen.items() if self._old(batch)]:
            del self._last_seen[session]

    def _old(self, batch: int) -> bool:
        back = _BATCHES_LOOKED_BACK if self._stages == 1 else _ROUNDS_LOOKED_BACK * self._stages
        return batch <= self._batch - back

    def forget(self, session: int) -> None:
        self._last_seen.pop(session, None)

    def missing(self, waiting: Collection[int]) -> bool:
        """Whether a session of the last batches is not waiting yet, and would still belong into this one."""
        most = self.rows_max
        if most is not None and len(waiting) >= most:
            return False
        return any(session not in waiting for session in self._last_seen)

    def wait_s(self) -> float:
        """How long to wait for the missing ones now; 0 while waiting did not pay."""
        if self._skip:
            self._skip -= 1
            return 0.0
        return min(_WAIT_S_MAX, _SHARE_OF_DECODE * self._decode_s)

    def waited(self, *, came: bool) -> None:
        """Whether anything came of the wait."""
        self._misses = 0 if came else min(self._misses + 1, _MISSES_MAX)
        self._skip = 2**self._misses - 1
