"""Memory that was only cleared, given back to the system until somebody writes into it.

llama.cpp clears the keys and values of a whole context when it makes one, and the room for the logits of all
sessions: tens of megabytes that most devices never fill. Giving a page of zeros back changes nothing that can be
read: it is zeros again when it is touched, and counts from then on.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pnode.compute.llama_abi import lib

_CHUNK_BYTES = 64 * 1024
_MADV_DONTNEED = 4
_ZEROS = ctypes.create_string_buffer(_CHUNK_BYTES)


@contextmanager
def untouched_given_back() -> Iterator[None]:
    """What was allocated inside and holds only zeros is not resident afterwards.

    Only where nobody else could be writing meanwhile: one Python thread, and memory that only processors see.
    """
    if sys.platform != "linux" or threading.active_count() > 1 or not _only_processors():
        yield
        return
    before = memory_map()
    yield
    for start, stop in added(before, memory_map()):
        _give_back(start, stop)


def _only_processors() -> bool:
    devices = map(lib.ggml_backend_dev_get, range(lib.ggml_backend_dev_count()))
    return all(lib.ggml_backend_dev_name(device) == b"CPU" for device in devices)


def memory_map() -> str:
    """All areas of this process now, in the system's words.

    Not taken apart yet: the small objects that takes are new memory themselves.
    """
    return Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")


def added(before: str, after: str) -> list[tuple[int, int]]:
    """What private writable memory of no file the second of two maps has and the first has not, by addresses."""
    known = list(_anonymous(before))
    return [part for first, end in _anonymous(after) for part in _outside(first, end, known)]


def _anonymous(maps: str) -> Iterator[tuple[int, int]]:
    for line in maps.splitlines():
        extent, access, _, _, inode, *_ = line.split(maxsplit=5)
        if inode == "0" and access == "rw-p" and not line.endswith("[stack]"):
            first, end = extent.split("-")
            yield int(first, 16), int(end, 16)


def _outside(first: int, end: int, areas: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What of an area was not part of any of these, which are in order."""
    for low, high in areas:
        if high <= first or low >= end:
            continue
        if first < low:
            yield first, low
        first = max(first, high)
    if first < end:
        yield first, end


def _give_back(first: int, end: int) -> None:
    libc = ctypes.PyDLL(None)  # keeps the interpreter's lock: nothing runs between a look and its consequence
    compare, advise = libc.memcmp, libc.madvise
    compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = address = -(-first // _CHUNK_BYTES) * _CHUNK_BYTES
    while True:
        is_inside = address + _CHUNK_BYTES <= end
        if is_inside and compare(address, _ZEROS, _CHUNK_BYTES) == 0:
            address += _CHUNK_BYTES
            continue
        if address > start:
            advise(start, address - start, _MADV_DONTNEED)
        if not is_inside:
            return
        start = address = address + _CHUNK_BYTES
