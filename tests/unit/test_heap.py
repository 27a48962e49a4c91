"""What the C library and the system keep for a process goes back: shown in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HOLES = """
import ctypes, json, sys
from p2pnode import heap
if sys.argv[1] == "small":
    heap.keep_small(heap.ENGINE_BLOCK_BYTES)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = libc.memset.argtypes = None
def filled(size):
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    libc.memset(block, 1, ctypes.c_size_t(size))
    return block
def anonymous():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Anonymous:")) * 1024
libc.free(filled(20_000_000))  # from now on glibc takes up to that size from the heap
before = anonymous()
block = filled(16_000_000)
pin = [filled(100_000) for _ in range(3)]  # behind it: the heap cannot shrink below
libc.free(block)
held = anonymous() - before
heap.give_back()
print(json.dumps([held, anonymous() - before]))
"""

FILES = """
import json, mmap, sys
from p2pnode import heap
with open(sys.argv[1], "rb") as file:
    clean = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    own = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE
def total(area):
    return sum(area[at] for at in range(0, len(area), mmap.PAGESIZE))
own[0] = 7
before = total(clean), total(own)
held = resident()
heap.let_files_go()
gone = held - resident()
assert (total(clean), total(own)) == before and own[0] == 7
import decimal, ssl, sqlite3  # what was loaded still runs, and more can be loaded
assert decimal.Decimal(1) / 4 == decimal.Decimal("0.25") and sqlite3.connect(":memory:").execute("select 1").fetchone()
print(json.dumps([before[0], gone]))
"""


def said(program: str, *arguments: str) -> list[int]:
    found = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    numbers: list[int] = json.loads(found.stdout)
    return numbers


def test_large_blocks_leave_no_holes() -> None:
    hole, trimmed = said(HOLES, "as it is")
    kept, _ = said(HOLES, "small")
    assert hole > 16_000_000  # why this is done at all
    assert kept < 2_000_000
    assert trimmed < 2_000_000


def test_clean_pages_of_files_go_and_are_read_again(tmp_path: Path) -> None:
    """A mapping that was written to keeps its pages: they are nowhere else."""
    path = tmp_path / "mapped"
    path.write_bytes(b"\x01" * 16_000_000)
    ones, gone = said(FILES, str(path))
    assert ones == -(-16_000_000 // 4096)
    assert gone > 15_000_000
