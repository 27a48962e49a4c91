"""Small truths about files: atomic writes, and operating system errors in the project's own words."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

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


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file: after a crash it has the old or the new content, whole."""
    temporary = path.with_name(path.name + ".new")
    with data_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and new files durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def delete(path: Path) -> int:
    """Remove a file or a folder of files; bytes it occupied."""
    try:
        if path.is_dir():
            size = sum(getattr(entry.stat(), "st_blocks", 0) * 512 for entry in path.iterdir())
            shutil.rmtree(path)
            return size
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size
