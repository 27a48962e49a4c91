"""What other programs take from a measurement: their share of a core while it ran, so that it can be made again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")

SHARE_MAX = 0.1
"""Of one core. Threads of an engine wait for each other at every layer: what one loses, all lose."""
TRIES_MAX = 4


def _busy_s() -> float:
    """All cores since the machine started, what its host took from it included."""
    spent = psutil.cpu_times()
    return float(sum(spent) - spent.idle - getattr(spent, "iowait", 0.0) - getattr(spent, "guest", 0.0)
                 - getattr(spent, "guest_nice", 0.0))  # fmt: skip


def _own_s() -> float:
    """This program and all it started, what has ended since included."""
    total, me = 0.0, psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            spent = process.cpu_times()
            total += spent.user + spent.system
            total += getattr(spent, "children_user", 0.0) + getattr(spent, "children_system", 0.0)
    return total


class Watch:
    """From when it is made; `share` is what others had of a core since then."""

    def __init__(self) -> None:
        self._started_s, self._busy_s, self._own_s = time.perf_counter(), _busy_s(), _own_s()

    @property
    def share(self) -> float:
        others_s = (_busy_s() - self._busy_s) - (_own_s() - self._own_s)
        return max(0.0, others_s) / (time.perf_counter() - self._started_s)


def undisturbed(work: Callable[[], T], tries: int = TRIES_MAX) -> tuple[T, float]:
    """The first that others left alone, or the one they disturbed least, and their share meanwhile."""
    best: tuple[T, float] | None = None
    for _ in range(tries):
        watch = Watch()
        found = work(), watch.share
        if best is None or found[1] < best[1]:
            best = found
        if best[1] <= SHARE_MAX:
            break
    assert best is not None
    return best
