"""The C library's heap: what is freed goes back to the system instead of staying behind as holes.

glibc gives large blocks back when they are freed, until the first one is: that moves its threshold up to 32 MB, and
all later ones are cut from the heap and leave holes there. A node reads headers of some megabytes now and then, an
engine copies the keys and values of prefixes at every request.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

NODE_BLOCK_BYTES = 1024 * 1024
"""Headers and messages; a node allocates few blocks of that size."""
ENGINE_BLOCK_BYTES = 4 * 1024 * 1024
"""Above what sampling takes for every token (12 bytes an entry of the vocabulary): fresh pages cost time each time."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MADV_DONTNEED = 4


def keep_small(block_bytes: int) -> None:
    """Blocks of this size and more go back as soon as they are free, and so does the end of the heap."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_THRESHOLD, block_bytes)
            libc.mallopt(_M_TRIM_THRESHOLD, block_bytes)
            libc.mallopt(_M_ARENA_MAX, 2)


def own_pages(size: int) -> memoryview:
    """Room for megabytes that go as a whole: smaller blocks are cut from the heap and leave holes there."""
    flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if sys.platform != "win32" else {}
    return memoryview(mmap.mmap(-1, size, **flags))


def give_back() -> None:
    """Every whole page of the heap that is free: it looks through all of it, some milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def let_files_go() -> None:
    """Pages of libraries that were mapped while everything started; those that are run again are mapped again.

    The system maps sixteen pages for every one that is touched, and code that ran once (imports, the loading of a
    model) would count for ever. Only mappings that cannot be written to and hold no page of their own: what was
    relocated lies in such pages, and would be lost.
    """
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for first, end in _clean_mappings(Path("/proc/self/smaps").read_text()):
        advise(first, end - first, _MADV_DONTNEED)


def _clean_mappings(smaps: str) -> Iterator[tuple[int, int]]:
    """Private mappings of files, not writable, without a page that differs from the file: by addresses."""
    extent, is_candidate = "", False
    for line in smaps.splitlines():
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):
            extent, access, inode = fields[0], fields[1], fields[4]
            is_candidate = inode != "0" and access in ("r--p", "r-xp")
        elif is_candidate and fields[0] == "Anonymous:" and fields[1] == "0":
            first, end = extent.split("-")
            yield int(first, 16), int(end, 16)


def resident() -> dict[str, int]:
    """Resident bytes of this process, as far as the system tells."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        return {"rss_bytes": 0, "anonymous_bytes": 0}
    size = os.sysconf("SC_PAGE_SIZE")
    return {"rss_bytes": int(pages[1]) * size, "anonymous_bytes": (int(pages[1]) - int(pages[2])) * size}
