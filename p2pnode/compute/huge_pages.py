"""Weights in huge pages: the system is asked for them after llama.cpp has taken the memory and before it fills it.

Every token reads all weights once, and at every end of a page the processor looks up an address and begins to read
ahead anew; `bench/pages.py` measures what pages of megabytes instead of 4 KiB are worth. Keys and values
stay in small pages, since few of them are ever written (`untouched`).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

from p2pnode.compute.untouched import added, memory_map

_BYTES_MIN = 4 * 1024 * 1024
"""Two huge pages of most processors; less holds no weights that matter."""
_MADV_HUGEPAGE = 14

Progress = Callable[[float], bool]


def filled_in_huge_pages(progress: Progress | None) -> Progress | None:
    """A listener for the loading of one model that hears of it as `progress` does.

    llama.cpp speaks of progress first when all buffers are there and none is filled. A system that gives no huge pages
    gives small ones.
    """
    if sys.platform != "linux":
        return progress
    before, is_asked = memory_map(), False

    def hear(done: float) -> bool:
        nonlocal is_asked
        if not is_asked:
            is_asked = True
            _ask(before)
        return progress is None or progress(done)

    return hear


def _ask(before: str) -> None:
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, stop in added(before, memory_map()):
        if stop - start >= _BYTES_MIN:
            advise(start, stop - start, _MADV_HUGEPAGE)
