"""From token pieces to text a person may see: whole UTF-8 only, stop sequences held back. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextAssembler:
    """Feed pieces, get what is safe to show; `stopped` names the stop sequence that was met."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.stopped: str | None = None

    def feed(self, piece: bytes) -> str:
        """New text, without anything that is, or may yet become, a stop sequence."""
        if self.stopped is not None:
            return ""
        self._held += self._decoder.decode(piece)
        return self._release(final=False)

    def finish(self) -> str:
        """What was held back, once nothing more comes."""
        if self.stopped is not None:
            return ""
        self._held += self._decoder.decode(b"", final=True)
        return self._release(final=True)

    def _release(self, *, final: bool) -> str:
        matches = [(self._held.index(text), text) for text in self._stop if text in self._held]
        met = min(matches, default=None)
        # A stop sequence that began earlier and may still be completed goes before one that is complete.
        open_at = len(self._held) if final else min(map(self._open_at, self._stop), default=len(self._held))
        if met is not None and met[0] <= open_at:
            shown, self._held, self.stopped = self._held[: met[0]], "", met[1]
            return shown
        shown, self._held = self._held[:open_at], self._held[open_at:]
        return shown

    def _open_at(self, stop: str) -> int:
        """Where the held text ends with a beginning of `stop`; its length when it does not."""
        for size in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:size]):
                return len(self._held) - size
        return len(self._held)
