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
        first = min(
            ((self._held.find(text), text) for text in self._stop if text in self._held), default=None
        )
        if first is not None:
            shown, self._held, self.stopped = self._held[: first[0]], "", first[1]
            return shown
        keep = 0 if final else max((self._overlap(text) for text in self._stop), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def _overlap(self, stop: str) -> int:
        """Longest end of the held text that begins `stop`."""
        for size in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:size]):
                return size
        return 0
