"""Processes that this one started and has not seen end, read from Linux's own list of them."""

from __future__ import annotations

from pathlib import Path


def children() -> set[int]:
    """Those of every thread; one that ended counts until somebody has waited for it. Empty where there is no /proc."""
    found: set[int] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            found.update(map(int, task.read_text().split()))
        except OSError:  # the thread has ended; its children are another one's now
            continue
    return found


def describe(pid: int) -> str:
    """Its number, state and command line, for a failure to show."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return f"{pid} (just gone)"
    return f"{pid} {state} {words.strip()}"


MARK = "P2PNODE_TEST_MARK"


def marked(mark: str) -> set[int]:
    """Every process that was started with this mark in its environment, and those that such a one started."""
    wanted = f"{MARK}={mark}".encode()
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            continue
        if wanted in words:
            found.add(int(path.parent.name))
    return found
