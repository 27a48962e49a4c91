"""The newest checkpoint beside the log's database, for those who read files: after the commit, at most once a while."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from p2pnode.errors import DataDirError
from p2pnode.events.folder import publish_checkpoint
from p2pnode.events.note import parse_note
from p2pnode.limits import LOG_PUBLISH_MS_MIN

_logger = logging.getLogger(__name__)


class Publisher:
    """What is published is always behind the disk, never ahead. One thread at a time."""

    def __init__(self, folder: Path, now_ms: Callable[[], int]) -> None:
        self._folder, self._now_ms = folder, now_ms
        self._published_ms = 0
        self._unpublished: str | None = None

    def offer(self, note: str) -> None:
        """Published at once, or with a later one where the last is young."""
        self._unpublished = note
        if not 0 <= self._now_ms() - self._published_ms < LOG_PUBLISH_MS_MIN:
            self.catch_up()

    def catch_up(self) -> None:
        """What can not be written now is tried again with the next block: a stale checkpoint is still true."""
        if self._unpublished is not None:
            try:
                self.publish(self._unpublished)
            except DataDirError as error:
                _logger.warning("%s", error.message)

    def publish_last(self, note: str | None) -> None:
        """At the end of the log."""
        self._unpublished = note
        self.catch_up()

    def publish(self, note: str | None) -> None:
        """Now; DataDirError when it can not be written."""
        if note is not None:
            publish_checkpoint(self._folder, str(parse_note(note)))
            self._published_ms, self._unpublished = self._now_ms(), None
