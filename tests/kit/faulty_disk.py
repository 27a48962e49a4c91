"""Disks that lose power or fail, for SQLite: a VFS that records every write, and one that fails the n-th."""

from __future__ import annotations

import itertools
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

SECTOR_BYTES = 512

_names = itertools.count()
"""SQLite keeps a pointer to a VFS's name: no two may share one, even one after the other."""

Operation = tuple[str, str, int, bytes]
"""(kind, file, offset, data): w write, t truncate, s sync, d delete, ack (offset = acknowledged events)."""


def exclusive(path: Path, vfs: str, autocheckpoint: int = 1000) -> Any:
    """The log's own settings, on another VFS; exclusive, since shared memory is not simulated."""
    connection = apsw.Connection(str(path), vfs=vfs)
    for pragma in (
        "locking_mode = EXCLUSIVE",
        "journal_mode = WAL",
        "synchronous = FULL",
        f"wal_autocheckpoint = {autocheckpoint}",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


@contextmanager
def recording_disk(operations: list[Operation], *, drops_syncs: bool = False) -> Iterator[str]:
    """A VFS that notes what would reach the disk, and when it was told to make it durable."""

    class File(apsw.VFSFile):
        def __init__(self, base: str, name: Any, flags: Any) -> None:
            raw = name.filename() if isinstance(name, apsw.URIFilename) else name
            self.name = Path(raw).name if raw else ""
            super().__init__(base, name, flags)

        def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802  SQLite's names
            operations.append(("w", self.name, offset, bytes(data)))
            super().xWrite(data, offset)

        def xTruncate(self, size: int) -> None:  # noqa: N802
            operations.append(("t", self.name, size, b""))
            super().xTruncate(size)

        def xSync(self, flags: int) -> None:  # noqa: N802
            if not drops_syncs:
                operations.append(("s", self.name, 0, b""))
            super().xSync(flags)

    class Disk(apsw.VFS):
        def xOpen(self, name: Any, flags: Any) -> File:  # noqa: N802
            return File("", name, flags)

        def xDelete(self, name: str, sync: bool) -> None:  # noqa: N802
            operations.append(("d", Path(name).name, 0, b""))
            super().xDelete(name, sync)

    name = f"recording-{next(_names)}"
    disk = Disk(name, "")
    try:
        yield name
    finally:
        disk.unregister()


def after_power_cut(
    operations: list[Operation], cut: int, rng: random.Random
) -> tuple[dict[str, bytes], int]:
    """One disk that is possible after a cut: what was synced, and of the rest nothing, all, or torn parts in
    any choice. Answers the files and how many events had been acknowledged."""
    files: dict[str, bytearray] = defaultdict(bytearray)
    pending: dict[str, list[Operation]] = defaultdict(list)
    acknowledged = 0
    for operation in operations[:cut]:
        kind, name, offset, _ = operation
        if kind == "ack":
            acknowledged = offset
        elif kind == "s":
            for waiting in pending.pop(name, []):
                _apply(files, waiting)
        elif kind == "d":
            pending.pop(name, None)
            files.pop(name, None)
        else:
            pending[name].append(operation)
    mode = rng.choice(("none", "all", "some", "some", "some"))
    for name, waiting_ones in pending.items():
        files.setdefault(name, bytearray())
        for operation in waiting_ones:
            if mode == "all" or (mode == "some" and rng.random() < 0.5):
                _apply(files, *_torn(operation, rng) if mode == "some" else (operation,))
    return {name: bytes(data) for name, data in files.items()}, acknowledged


@contextmanager
def failing_disk(should_fail: Callable[[str, int], Exception | None]) -> Iterator[tuple[str, list[int]]]:
    """A VFS that asks before each write, truncate and sync whether it fails; counts them."""
    count = [0]

    def ask(kind: str) -> None:
        count[0] += 1
        error = should_fail(kind, count[0])
        if error is not None:
            raise error

    class File(apsw.VFSFile):
        def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
            ask("w")
            super().xWrite(data, offset)

        def xTruncate(self, size: int) -> None:  # noqa: N802
            ask("t")
            super().xTruncate(size)

        def xSync(self, flags: int) -> None:  # noqa: N802
            ask("s")
            super().xSync(flags)

    class Disk(apsw.VFS):
        def xOpen(self, name: Any, flags: Any) -> File:  # noqa: N802
            return File("", name, flags)

    name = f"failing-{next(_names)}"
    disk = Disk(name, "")
    try:
        yield name, count
    finally:
        disk.unregister()


def fast_folder() -> str | None:
    """Memory rather than a disk, where there is some: these disks are simulated anyway."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _apply(files: dict[str, bytearray], *operations: Operation) -> None:
    for kind, name, offset, data in operations:
        content = files[name]
        if kind == "t":
            del content[offset:]
            continue
        if len(content) < offset + len(data):
            content.extend(bytes(offset + len(data) - len(content)))
        content[offset : offset + len(data)] = data


def _torn(operation: Operation, rng: random.Random) -> list[Operation]:
    """A write as the sectors of it that made it."""
    kind, name, offset, data = operation
    if kind != "w" or rng.random() < 0.5:
        return [operation]
    starts = range(0, len(data), SECTOR_BYTES)
    return [("w", name, offset + at, data[at : at + SECTOR_BYTES]) for at in starts if rng.random() < 0.5]
