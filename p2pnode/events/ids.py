"""Event ids: UUIDv7, strictly growing within one log, so that an index over them stays append-only.

Source: RFC 9562 sections 5.7 and 6.2 (method 1, the 12 bits after the version as a counter).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

COUNTER_MAX: Final = 0xFFF


@dataclass(frozen=True, slots=True)
class IdState:
    """The last id's time and counter; a new log starts with the zero state."""

    unix_ms: int = 0
    counter: int = 0


def next_id(state: IdState, now_ms: int, rng: Callable[[int], bytes]) -> tuple[bytes, IdState]:
    """A 16-byte UUIDv7 greater than the one before, even when the clock stands or goes back."""
    if now_ms > state.unix_ms:
        state = IdState(now_ms, 0)
    elif state.counter < COUNTER_MAX:
        state = IdState(state.unix_ms, state.counter + 1)
    else:
        state = IdState(state.unix_ms + 1, 0)
    tail = int.from_bytes(rng(8), "big") & ((1 << 62) - 1)
    value = (state.unix_ms << 80) | (0x7 << 76) | (state.counter << 64) | (0b10 << 62) | tail
    return value.to_bytes(16, "big"), state


def state_after(event_id: bytes) -> IdState:
    """The state a generator had when it made `event_id`: how a log goes on after a restart."""
    value = int.from_bytes(event_id, "big")
    return IdState(value >> 80, (value >> 64) & COUNTER_MAX)
