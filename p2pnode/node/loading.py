"""What is being loaded or fetched now: how far each device is, and how long it still takes where that is known.

Progress of one step on one device never goes back. A time to go is told only after enough of the step was seen at
a steady pace; before that, and when a step stands still, there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from p2pnode import limits

Say = Callable[[dict[str, Any]], None]
_ORDER = {"fetching": 0, "loading": 1}


@dataclass(slots=True)
class _Step:
    state: str
    node: str
    first: tuple[float, float]
    """Time and fraction of the first report."""
    last: tuple[float, float]
    counts: dict[str, int]
    """`done_bytes` and `total_bytes` where bytes are counted."""

    def eta_s(self, now_s: float) -> float | None:
        (begun_s, at_first), (seen_s, at_last) = self.first, self.last
        took_s, done = seen_s - begun_s, at_last - at_first
        if took_s < limits.LOAD_ETA_SEEN_S_MIN or done < limits.LOAD_ETA_SEEN_FRACTION_MIN:
            return None
        if now_s - seen_s > limits.LOAD_STALLED_S:
            return None
        return max(0.0, (1 - at_last) * took_s / done - (now_s - seen_s))


@dataclass(slots=True)
class _Load:
    steps: dict[str, _Step] = field(default_factory=dict)
    """The newest step of each device."""
    heard: dict[str, Any] | None = None
    """What another device says that makes the model ready for us: its own view, of all its devices."""
    waiters: int = 0
    told_s: float = float("-inf")


class Loads:
    """Models on their way into memory (`loading`) or onto a disk (`transfer`), by name."""

    def __init__(self, *, kind: str, name: str, say: Say, clock: Callable[[], float]) -> None:
        self._kind = kind
        self._name = name
        self._say = say
        self._clock = clock
        self._loads: dict[str, _Load] = {}

    @contextmanager
    def of(self, model: str) -> Iterator[Say]:
        """While a model is being made ready; what is yielded takes the reports of its devices."""
        load = self._loads.setdefault(model, _Load())
        load.waiters += 1
        try:
            yield lambda data: self._report(model, load, data)
        finally:
            load.waiters -= 1
            if not load.waiters:
                del self._loads[model]
                if load.told_s != float("-inf"):
                    self._say({"kind": self._kind, "data": {"model": model, "state": "over"}})

    @contextmanager
    def elsewhere(self, model: str) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """While another device makes a model ready for a request of ours; what is yielded takes its views."""
        with self.of(model):
            load = self._loads[model]
            try:
                yield lambda view: self._hear(model, load, dict(view))
            finally:
                load.heard = None

    def view(self, model: str) -> dict[str, Any] | None:
        """The device that is furthest behind: `state`, `node`, `progress` 0..1, `eta_s`; None when nothing loads."""
        load = self._loads.get(model)
        if load is None:
            return None
        if not load.steps:
            if load.heard is not None:
                return dict(load.heard)
            return {"state": "preparing", "node": self._name, "progress": None, "eta_s": None}
        step = min(load.steps.values(), key=lambda s: (_ORDER.get(s.state, 0), s.last[1]))
        eta_s = step.eta_s(self._clock())
        return {
            "state": step.state,
            "node": step.node,
            "progress": round(step.last[1], 4),
            "eta_s": None if eta_s is None else round(eta_s, 1),
            **step.counts,
        }

    def _report(self, model: str, load: _Load, data: dict[str, Any]) -> None:
        node, state = str(data.get("name") or self._name), str(data.get("state", "loading"))
        fraction = data.get("progress")
        if fraction is None:
            fraction = data.get("done", 0) / max(1, data.get("total", 0))
        now_s, fraction = self._clock(), min(1.0, max(0.0, float(fraction)))
        step = load.steps.get(node)
        is_new = step is None or step.state != state
        counts = {"done_bytes": data["done"], "total_bytes": data["total"]} if state == "fetching" else {}
        if step is None or step.state != state:
            load.steps[node] = _Step(state, node, (now_s, fraction), (now_s, fraction), counts)
        elif fraction > step.last[1]:
            step.last, step.counts = (now_s, fraction), counts
        self._tell(model, load, is_new=is_new)

    def _hear(self, model: str, load: _Load, view: dict[str, Any]) -> None:
        before, load.heard = load.heard, view
        self._tell(model, load, is_new=before is None or before["state"] != view["state"])

    def _tell(self, model: str, load: _Load, *, is_new: bool) -> None:
        now_s = self._clock()
        if is_new or now_s - load.told_s >= limits.LOAD_TOLD_EVERY_S:
            load.told_s = now_s
            self._say({"kind": self._kind, "data": {"model": model, **(self.view(model) or {})}})
