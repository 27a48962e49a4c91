"""How long nothing has come from another device, and what that says of it. Pure.

A device that lost its power says nothing of it; a connection to it stands until somebody notices. So a link on which
nothing comes is asked for a sign of life, every second anew, and what was not answered counts, never the clock alone:
when this device itself slept for an hour, the others are not to blame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from p2pnode import limits

State = Literal["online", "suspect", "offline"]


@dataclass(frozen=True, slots=True)
class Silence:
    """Of one connection."""

    bytes_received: int
    heard_s: float
    unanswered: int = 0
    """Signs of life that were asked for since, one each look."""

    def looked(self, bytes_received: int, now_s: float) -> Silence:
        """After one more look; whether to ask is `is_asking` of what this gives."""
        if bytes_received != self.bytes_received:
            return Silence(bytes_received, now_s)
        asked = self.unanswered + (now_s - self.heard_s >= limits.SILENCE_ASK_S)
        return Silence(bytes_received, self.heard_s, asked)

    @property
    def is_asking(self) -> bool:
        return self.unanswered > 0

    @property
    def state(self) -> State:
        """`suspect` before the last question has had its time; `offline` is for good."""
        if self.unanswered > limits.SILENCE_UNANSWERED_MAX:
            return "offline"
        return "suspect" if self.unanswered > limits.SILENCE_UNANSWERED_SUSPECT else "online"

    def silent_s(self, now_s: float) -> float:
        return max(0.0, now_s - self.heard_s)


def words(silent_s: float) -> str:
    """The same in every face and in the record."""
    return f"silent for {silent_s:.0f} s"
