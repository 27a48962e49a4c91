"""This program as a file for a device that has none: what the checkout it runs from holds, the same bytes each time."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import tarfile
import tempfile
import weakref
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from p2pnode import limits

ROOT = Path(__file__).resolve().parents[2]
_PIECE_BYTES = 256 * 1024
_PATTERNS = (
    "pyproject.toml",
    "constraints.txt",
    "Makefile",
    "README.md",
    "LICENSE",
    "SECURITY.md",
    "tools/*.py",
    "p2pnode/**/*.py",
    "p2pnode/**/*.c",
    "p2pnode/py.typed",
    "web/**/*",
    "models/p2pnode-demo.gguf",
)


@dataclass(frozen=True, slots=True)
class Packed:
    path: Path
    sha256: str
    size_bytes: int

    async def pieces(self) -> AsyncIterator[bytes]:
        with self.path.open("rb") as file:  # from the page cache
            while piece := file.read(_PIECE_BYTES):
                yield piece


class Archive:
    """Packed when it is first asked for, into a file that goes with it; None where a wheel was installed."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._turn = asyncio.Lock()
        self._packed: Packed | None = None

    async def packed(self) -> Packed | None:
        if not (self._root / "pyproject.toml").is_file():
            return None
        async with self._turn:
            if self._packed is None:
                self._packed = await asyncio.to_thread(self._pack)
        return self._packed

    def _pack(self) -> Packed | None:
        handle, name = tempfile.mkstemp(prefix="p2pnode-", suffix=".tar.gz")
        path = Path(name)
        weakref.finalize(self, path.unlink, missing_ok=True)
        with (
            os.fdopen(handle, "wb") as file,
            gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            for found in self._files():
                entry = tarfile.TarInfo(found.relative_to(self._root).as_posix())
                entry.size, entry.mode = found.stat().st_size, 0o644
                with found.open("rb") as source:
                    tar.addfile(entry, source)
        size = path.stat().st_size
        if size > limits.INVITE_ARCHIVE_BYTES_MAX:
            return None
        with path.open("rb") as written:
            return Packed(path, hashlib.file_digest(written, "sha256").hexdigest(), size)

    def _files(self) -> Iterator[Path]:
        found = {path for pattern in _PATTERNS for path in self._root.glob(pattern)}
        return (path for path in sorted(found) if path.is_file() and not path.is_symlink())
