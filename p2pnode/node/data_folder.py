"""The node's folder at its first start: taken as a whole, and given back as it was when the start fails."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from p2pnode.errors import DataDirError
from p2pnode.models.files import data_errors


class DataFolder:
    """What `prepare` made or found empty, `give_back` takes away again; a folder in use is left alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: list[Path] = []
        self._was_empty = False

    def prepare(self) -> None:
        """A folder that can be written, private to its owner."""
        with data_errors(self.path):
            for folder in reversed([self.path, *self.path.parents]):
                # Whoever makes a folder owns it: of two first starts at once only one may take it away.
                with contextlib.suppress(FileExistsError):
                    folder.mkdir(mode=0o700)
                    self._made.append(folder)
            self._was_empty = not any(self.path.iterdir())
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise DataDirError(
                f"the data folder {self.path} cannot be written", hint="choose another with --data"
            )
        probe = self.path / f".probe-{os.getpid()}"
        with data_errors(self.path):
            try:
                probe.write_bytes(b"p2pnode")
            finally:
                probe.unlink(missing_ok=True)

    def give_back(self) -> None:
        """As it was before `prepare`, if nothing was in it then. Never raises: a start has failed already."""
        with contextlib.suppress(OSError):
            for entry in self.path.iterdir() if self._was_empty else ():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):  # someone put something there meanwhile
                folder.rmdir()
