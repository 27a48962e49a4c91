"""The log's folder: who may write it, and the checkpoint last published from it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from p2pnode.durable import replace_file
from p2pnode.errors import BadPolicy, DataDirError, DiskFull, FolderInUse
from p2pnode.events.policy import Policy, parse_policy

LOG_DIR: Final = "log"
DATABASE: Final = "log.db"
LOCK: Final = "lock"
CHECKPOINT: Final = "checkpoint"
POLICY: Final = "policy"
"""Whose cosignatures the owner wants; put there by hand."""


def database_path(data_dir: Path) -> Path:
    """Where the log of a data folder is."""
    return data_dir / LOG_DIR / DATABASE


class FolderLock:
    """Held while a process writes the log; the system lets go of it when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor: int | None = None

    def acquire(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise folder_condition(error, self._path.parent) from error
        if not _lock(descriptor):
            os.close(descriptor)
            raise FolderInUse(f"another p2pnode already uses {self._path.parent.parent}")
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def publish_checkpoint(folder: Path, note: str) -> None:
    """Replace the published checkpoint, durably and in one step."""
    try:
        replace_file(folder / CHECKPOINT, note.encode())
    except OSError as error:
        raise folder_condition(error, folder) from error


def published_checkpoint(folder: Path) -> str | None:
    """The checkpoint others may have seen; None before the first."""
    try:
        return (folder / CHECKPOINT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataDirError(f"the published checkpoint in {folder} cannot be read: {error}") from error


def read_policy(data_dir: Path) -> Policy | None:
    """The owner's trust policy; None when there is none. Raises BadPolicy for one that cannot be read."""
    path = data_dir / LOG_DIR / POLICY
    try:
        return parse_policy(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataDirError(f"the policy {path} cannot be read: {error.strerror or error}") from error
    except BadPolicy as error:
        raise BadPolicy(f"{path}: {error.message}") from error


def free_bytes(folder: Path) -> int:
    """Free space for this user on the folder's disk."""
    return shutil.disk_usage(folder).free


def folder_condition(error: OSError, folder: Path) -> DataDirError:
    """An operating system's error as one line for the operator."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk of {folder} is full: {reason}")
    return DataDirError(
        f"the data folder {folder} cannot be written: {reason}",
        hint="choose a folder you may write to with --data",
    )


def _lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        with contextlib.suppress(OSError):
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            return True
        return False
    import fcntl

    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
