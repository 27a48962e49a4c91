"""Resident memory of several processes together: what they share of a file lies in memory once and counts once.

A node and its engines map the same interpreter and libraries; the sum of their resident sizes would count those pages
for each. Pages of one process alone (heaps, weights, keys and values) are added up. Nothing is shared out with
processes of others, as a proportional size would do: a node is measured as if it were alone on its machine.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

_OF_A_FILE = bytes(byte & 0xA0 == 0xA0 for byte in range(256))
"""By the top byte of an entry of /proc/PID/pagemap: 1 where bits 63 (present) and 61 (not anonymous) are set."""
_ENTRY_BYTES = 8


def together_bytes(pids: Iterable[int]) -> int:
    """What these processes keep in memory, each page once; a process that is gone counts nothing.

    Where the system does not tell which pages: the sum of their resident sizes, which is never too little.
    """
    total, files = 0, dict[str, int]()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, psutil.NoSuchProcess):
            try:
                pages = list(_file_pages(pid))
                total += _anonymous_bytes(pid)
            except (OSError, ValueError):
                if _is_linux() and not psutil.pid_exists(pid):
                    continue
                total += int(psutil.Process(pid).memory_info().rss)
                continue
            for file, first, mask in pages:
                files[file] = files.get(file, 0) | mask << 8 * first
    return total + sum(mask.bit_count() for mask in files.values()) * mmap.PAGESIZE


def _is_linux() -> bool:
    return sys.platform == "linux"


def _anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no line about anonymous pages")


def _file_pages(pid: int) -> Iterator[tuple[str, int, int]]:
    """For every mapping of a file: which file, its first page there, and a byte for each page: 1 if it is resident."""
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            extent, _, offset, device, inode, *_ = line.split(maxsplit=5)
            if inode == "0":
                continue
            first, end = (int(address, 16) // mmap.PAGESIZE for address in extent.split("-"))
            entries = os.pread(pagemap.fileno(), (end - first) * _ENTRY_BYTES, first * _ENTRY_BYTES)
            resident = entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES].translate(_OF_A_FILE)
            yield f"{device} {inode}", int(offset, 16) // mmap.PAGESIZE, int.from_bytes(resident, "little")
