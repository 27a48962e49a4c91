"""One line on a terminal's stderr that says how far something is; nothing in a pipe."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from typing import Any

from p2pnode.cli.output import one_line, size_text

_CELLS_MAX = 24
_BUCKETS = 10
"""The rate is that of the last ten reports: steady enough to read, quick enough to follow a change."""
_WORDS = {"fetching": "fetching", "loading": "loading", "preparing": "preparing"}


def duration_text(seconds: float) -> str:
    """`3m56s`, as short as it can be read."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"


def bar_text(fraction: float, cells: int = _CELLS_MAX) -> str:
    """Eighths of a cell, so that a slow bar moves too."""
    eighths = round(min(1.0, max(0.0, fraction)) * cells * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(cells)


class ProgressLine:
    """Events with `state`, `node`, `progress`, `eta_s` and perhaps bytes, as one line that is drawn again."""

    def __init__(self, write: Callable[[str], object] | None = None, columns: int | None = None) -> None:
        self._write = write or (sys.stderr.write if sys.stderr.isatty() else None)
        self._columns = columns
        self._seen: deque[tuple[float, int]] = deque(maxlen=_BUCKETS)
        self._step = ("", "")
        self._shown = False

    def show(self, event: Mapping[str, Any], now_s: float | None = None) -> None:
        if self._write is None:
            return
        text = self.text(event, time.monotonic() if now_s is None else now_s)
        columns = self._columns or shutil.get_terminal_size().columns
        self._write(f"\r\x1b[K{text[: columns - 1]}")
        self._flush()
        self._shown = True

    def text(self, event: Mapping[str, Any], now_s: float) -> str:
        state, node = str(event.get("state", "")), one_line(str(event.get("node", "")))
        if (state, node) != self._step:
            self._step = (state, node)
            self._seen.clear()
        words = f"{_WORDS.get(state, state)} on {node}"
        fraction = event.get("progress")
        if not isinstance(fraction, int | float):
            return f"{words} …"
        parts = [f"{words} {fraction:4.0%} ▕{bar_text(fraction)}▏"]
        done, total, eta_s = event.get("done_bytes"), event.get("total_bytes"), event.get("eta_s")
        if isinstance(done, int) and isinstance(total, int):
            self._seen.append((now_s, done))
            parts.append(f"{size_text(done)}/{size_text(total)}")
            (then_s, before), (seen_s, after) = self._seen[0], self._seen[-1]
            if seen_s > then_s:
                parts.append(f"{size_text((after - before) / (seen_s - then_s))}/s")
        if isinstance(eta_s, int | float):
            parts.append(duration_text(eta_s))
        return " ".join(parts)

    def clear(self) -> None:
        """The line is gone, as if it had never been there."""
        if self._shown and self._write is not None:
            self._write("\r\x1b[K")
            self._flush()
            self._shown = False

    def _flush(self) -> None:
        if self._write == sys.stderr.write:
            sys.stderr.flush()


def watch(events: Generator[dict[str, Any]], end: str) -> dict[str, Any]:
    """Show the events of a long command; its answer is the one of type `end`."""
    line = ProgressLine()
    answer: dict[str, Any] = {}
    try:
        for event in events:
            if event.get("type") == end:
                answer = {key: value for key, value in event.items() if key != "type"}
            else:
                line.show(event)
    finally:
        line.clear()
        events.close()
    return answer
