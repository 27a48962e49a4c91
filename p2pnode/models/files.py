"""Small truths about files: atomic writes, and operating system errors in the project's own words."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from p2pnode import limits
from p2pnode.durable import replace_file
from p2pnode.errors import DataDirError, DiskFull


@contextlib.contextmanager
def data_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside into DiskFull or DataDirError about this path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(f"cannot write {path}: {reason}", path=str(path)) from error
        hint = "make it writable or choose another folder with --data"
        raise DataDirError(f"cannot use {path}: {reason}", hint=hint, path=str(path)) from error


def check_disk(folder: Path, size: int) -> None:
    """DiskFull unless so many bytes fit beside what is left free for others."""
    with data_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < size + limits.STORE_FREE_BYTES_MIN:
        kept = limits.STORE_FREE_BYTES_MIN
        raise DiskFull(
            f"{free / 1e6:.1f} MB are free for models in {folder}, {(size + kept) / 1e6:.1f} MB are needed",
            needed_bytes=size + kept,
            free_bytes=free,
        )


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file: after a crash it has the old or the new content, whole."""
    with data_errors(path):
        replace_file(path, data)


def delete(path: Path) -> int:
    """Remove a file or a folder of files; bytes it occupied."""
    try:
        if path.is_dir():
            size = sum(getattr(entry.stat(), "st_blocks", 0) * 512 for entry in path.rglob("*"))
            shutil.rmtree(path)
            return size
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size
