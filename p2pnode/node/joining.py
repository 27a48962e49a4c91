"""How far each device came that wanted to join, step by step, with the reason where it stopped: the host's half of the
checklist that the joining device prints. In memory and bounded; what counts is in the record."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from p2pnode import limits
from p2pnode.errors import P2PNodeError
from p2pnode.transport.port import Connection
from p2pnode.units import PeerId

State = Literal["ok", "waiting", "failed"]


def host_of(connection: Connection) -> str:
    parts = connection.remote_multiaddr.split("/")
    return parts[2] if len(parts) > 2 else ""


@dataclass(slots=True)
class Attempt:
    """One device that came; a step that is told again replaces what was told of it."""

    peer: PeerId
    name: str
    address: str
    at_ms: int
    steps: dict[str, tuple[State, str]] = field(default_factory=dict)
    changed: Callable[[], None] = lambda: None

    def tell(self, step: str, state: State, text: str) -> None:
        self.steps[step] = (state, text)
        self.changed()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """What goes wrong inside is this step's failure; a condition of ours is told with its hint."""
        try:
            yield
        except P2PNodeError as error:
            self.tell(name, "failed", f"{error.message} ({error.hint})" if error.hint else error.message)
            raise
        except BaseException:
            self.tell(name, "failed", "the device went away")
            raise

    @property
    def is_admitted(self) -> bool:
        return "admitted" in self.steps and self.steps["admitted"][0] == "ok"

    @property
    def has_failed(self) -> bool:
        return any(state == "failed" for state, _ in self.steps.values())


class Joins:
    def __init__(self, *, now_ms: Callable[[], int], changed: Callable[[], None] = lambda: None) -> None:
        self._now_ms = now_ms
        self.changed = changed
        self._attempts: deque[Attempt] = deque(maxlen=limits.JOINS_SHOWN_MAX)

    def arrived(self, peer: PeerId, name: str, address: str) -> Attempt:
        """A device came and proved who it is. Its earlier attempt is forgotten; so is the oldest of its network address
        where there are too many, so that nobody can push the others off the list."""
        same = [attempt for attempt in self._attempts if attempt.address == address and attempt.peer != peer]
        crowded = same[: max(0, len(same) + 1 - limits.JOINS_PER_ADDRESS_MAX)]
        kept = [attempt for attempt in self._attempts if attempt.peer != peer and attempt not in crowded]
        self._attempts = deque(kept, maxlen=limits.JOINS_SHOWN_MAX)
        called = name[: limits.NAME_CHARACTERS_MAX] or peer[-6:]
        attempt = Attempt(peer, called, address, self._now_ms(), changed=self._say)
        self._attempts.append(attempt)
        attempt.tell("connected", "ok", f"connected from {address}, its identity is proven")
        return attempt

    def _say(self) -> None:
        self.changed()

    def view(self, rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Newest first; `rows` is what /peers says of each device, for the steps that come after it was let in."""
        since_ms = self._now_ms() - limits.JOINS_SHOWN_MS
        return [
            {
                "peer": attempt.peer,
                "name": attempt.name,
                "at_ms": attempt.at_ms,
                "failed": attempt.has_failed,
                "done": not attempt.has_failed and all(step["state"] == "ok" for step in steps),
                "steps": steps,
            }
            for attempt in reversed(self._attempts)
            if attempt.at_ms >= since_ms
            for steps in [_steps(attempt, rows.get(attempt.peer, {}))]
        ]


def _steps(attempt: Attempt, row: Mapping[str, Any]) -> list[dict[str, str]]:
    told = [(name, *what) for name, what in attempt.steps.items()]
    if attempt.is_admitted:
        told += _after(row)
    return [{"step": name, "state": state, "text": text} for name, state, text in told]


def _after(row: Mapping[str, Any]) -> list[tuple[str, State, str]]:
    """What became of a member, as far as its own status says."""
    is_online = row.get("state") == "online"
    if not is_online or "capability" not in row:
        text = (
            "online, waiting for its first status" if is_online else "waiting for it to connect as a member"
        )
        return [("status", "waiting", text)]
    steps: list[tuple[str, State, str]] = [
        ("status", "ok", "says what it can do, and is in the plans from now on")
    ]
    for stage in _stages(row.get("stages")):
        first, end = stage["layers"]
        words = f"{'holds' if stage.get('up') else 'loads'} layers {first}–{end - 1} of {stage.get('model')}"
        steps.append(("layers", "ok" if stage.get("up") else "waiting", words))
    return steps


def _stages(said: object) -> list[dict[str, Any]]:
    """What another device says it holds, as far as it makes sense."""
    rows = said[: limits.JOINS_STAGES_SHOWN_MAX] if isinstance(said, list) else []
    return [row for row in rows if isinstance(row, dict) and _is_range(row.get("layers"))]


def _is_range(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(n, int) for n in value)
