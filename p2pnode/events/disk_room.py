"""Room on the disk of the log: for paid work, and for anything at all. Asked often, looked up at most once a while."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from p2pnode.errors import DiskFull
from p2pnode.events.folder import free_bytes
from p2pnode.limits import LOG_DISK_FLOOR_BYTES, LOG_DISK_RESERVE_BYTES, LOG_PUBLISH_MS_MIN


class DiskRoom:
    def __init__(self, folder: Path, now_ms: Callable[[], int]) -> None:
        self._folder, self._now_ms = folder, now_ms
        self._free_bytes, self._looked_ms = free_bytes(folder), 0

    @property
    def has_reserve(self) -> bool:
        """Whether there is enough to take on paid work."""
        return self._free() >= LOG_DISK_RESERVE_BYTES

    def check_floor(self) -> None:
        """DiskFull when not even the log's own housekeeping would fit any more."""
        if self._free() < LOG_DISK_FLOOR_BYTES:
            raise DiskFull(
                f"{self._free_bytes / 1e6:.1f} MB are free for the log in {self._folder}, "
                f"{LOG_DISK_FLOOR_BYTES / 1e6:.0f} MB are needed"
            )

    def _free(self) -> int:
        now_ms = self._now_ms()
        if not 0 <= now_ms - self._looked_ms < LOG_PUBLISH_MS_MIN:
            self._free_bytes, self._looked_ms = free_bytes(self._folder), now_ms
        return self._free_bytes
