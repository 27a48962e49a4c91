"""How fast this machine is, told to the others: measured once a day in a process of its own, remembered."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2pnode import limits
from p2pnode.compute.child_process import end_at_once, start_whole
from p2pnode.models.files import write_atomic

# numpy and the arrays it reads would stay in the node's memory for good; a child takes them with it.
_PROGRAM = (
    "import json, sys; from p2pnode.compute import measure as m; "
    "r = m.memory_bytes_per_s(int(sys.argv[1])); "
    "print(json.dumps({'memory_bytes_per_s': round(r), 'decode_bytes_per_s': round(m.decode_rate_guess(r))}))"
)


async def machine_rates(data_dir: Path, threads: int, now_ms: Callable[[], int]) -> dict[str, Any]:
    """{"memory_bytes_per_s", "decode_bytes_per_s"}; empty when it could not be measured."""
    path = data_dir / "measured.json"
    known = _remembered(path)
    if known.get("threads") == threads and now_ms() - int(known.get("at_ms", 0)) < limits.MEASURE_FRESH_MS:
        return _rates(known)
    process = await start_whole(
        asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _PROGRAM,
            str(threads),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    )
    try:
        async with asyncio.timeout(limits.MEASURE_S_MAX):
            out, _ = await process.communicate()
        found = _rates(json.loads(out))
    except (TimeoutError, ValueError):
        return {}
    finally:
        await end_at_once(process)
    document = {**found, "threads": threads, "at_ms": now_ms()}
    await asyncio.to_thread(write_atomic, path, json.dumps(document).encode())
    return found


def _remembered(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _rates(document: dict[str, Any]) -> dict[str, Any]:
    names = ("memory_bytes_per_s", "decode_bytes_per_s")
    return {name: document[name] for name in names if isinstance(document.get(name), int | float)}
