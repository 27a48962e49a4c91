"""What several processes keep in memory together: pages of a file that both map count once, their own pages add up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pnode.node.resident import together_bytes

SIZE = 16_000_000
READS_A_FILE = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    area = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
assert sum(area[at] for at in range(0, len(area), 4096)) == 0
print("ready", flush=True)
sys.stdin.read()
"""
HOLDS_ITS_OWN = """
import sys
own = bytearray(b"x") * int(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def running(program: str, *arguments: str) -> Iterator[int]:
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.communicate()


def test_a_file_that_two_processes_map_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    path.write_bytes(bytes(SIZE))
    with running(READS_A_FILE, str(path)) as one, running(READS_A_FILE, str(path)) as other:
        alone = [together_bytes([one]), together_bytes([other])]
        both = together_bytes([one, other])
    assert min(alone) > SIZE
    assert SIZE < both < sum(alone) - SIZE


def test_memory_of_their_own_adds_up() -> None:
    with running(HOLDS_ITS_OWN, str(SIZE)) as one, running(HOLDS_ITS_OWN, str(SIZE)) as other:
        assert together_bytes([one, other]) > 2 * SIZE


def test_a_process_that_is_gone_counts_nothing() -> None:
    with running(HOLDS_ITS_OWN, "1") as gone:
        pass
    assert together_bytes([gone]) == together_bytes([]) == 0
