"""Conditions a measurement sets for itself, and says: priority over other work, and how threads wait."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from p2pnode.compute.engine_process import engine_environment

_INNER = "P2PNODE_BENCH_INNER"
_AUTOGROUP = Path("/proc/self/autogroup")
_AUTOGROUP_NICE, _NICE = -15, -10


def run_with_priority(arguments: Sequence[str]) -> int | None:
    """Run this script again in a session of its own, ahead of other work; None when this is that run already.

    Linux shares processors between sessions first, so a session can go before all others without ending them.
    """
    if os.environ.get(_INNER):
        return None
    inner = subprocess.Popen(
        [sys.executable, *arguments], env={**os.environ, _INNER: "1"}, start_new_session=True
    )
    # A session of its own hears neither the terminal's Ctrl-C nor what ends this process.
    signal.signal(signal.SIGTERM, lambda _number, _frame: inner.send_signal(signal.SIGINT))
    try:
        return inner.wait()
    except KeyboardInterrupt:
        inner.send_signal(signal.SIGINT)
        return inner.wait()


def take_priority() -> dict[str, Any]:
    """As far as this system lets us; what was had stands in the results."""
    had: dict[str, Any] = {"autogroup_nice": 0, "nice": os.nice(0) if hasattr(os, "nice") else 0}
    try:
        _AUTOGROUP.write_text(str(_AUTOGROUP_NICE))
        had["autogroup_nice"] = _AUTOGROUP_NICE
    except OSError:
        pass
    with contextlib.suppress(OSError, AttributeError):
        had["nice"] = os.nice(_NICE - had["nice"])
    return had


_SPINNER = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == int(sys.argv[2]):
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def awake_cores() -> Iterator[bool]:
    """Keep every core from sleeping, by loops that run only while nothing else wants to; says whether it could.

    A halted core takes some 20 µs to wake (a virtual one its host's time too), as often as a frame finds nobody at
    work. Beside engines, whose threads wait by spinning, cores do not halt.
    """
    if not hasattr(os, "SCHED_IDLE"):
        yield False
        return
    spinners = [
        subprocess.Popen([sys.executable, "-c", _SPINNER, str(core), str(os.getpid())])
        for core in sorted(os.sched_getaffinity(0))
    ]
    try:
        yield True
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def conditions() -> dict[str, Any]:
    """Priority taken now, and what every process of the run waits by."""
    wait = os.environ.get("GOMP_SPINCOUNT") or engine_environment()["GOMP_SPINCOUNT"]
    os.environ["GOMP_SPINCOUNT"] = wait  # the raw loop and all engines alike, whatever the load says later
    return {**take_priority(), "GOMP_SPINCOUNT": wait}
