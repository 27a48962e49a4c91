"""What this machine can do, measured: memory bandwidth, a real layer's time, disk, power.

The engine's part comes in as a callback, so that nothing here knows how a layer is run. Methods block for some
tenths of a second; call them from a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from p2pnode import limits

Clock = Callable[[], float]
Pause = Callable[[float], Awaitable[None]]
RunRows = Callable[[int, int], Awaitable[float]]
"""Compute this many rows from this position on through the layers under test; the seconds the engine took for that."""


@dataclass(frozen=True, slots=True)
class LayerTiming:
    """Some layers of a model, run on this machine."""

    layer_bytes: int
    """Weights one token reads in these layers."""
    decode_s: float
    """Time the engine computed on one row without context."""
    prefill_s: float
    """Time for `prefill_rows` rows at once."""
    prefill_rows: int
    overhead_s: float
    """What a step of one row takes besides: to the engine and back."""
    context_s: float = 0.0
    """What one row takes more when it is compared with `context_bytes` of keys and values."""
    context_bytes: int = 0
    spread: float = 1.0
    """The slowest round over the fastest: how much other work was in the way."""

    @property
    def decode_bytes_per_s(self) -> float:
        return self.layer_bytes / self.decode_s

    @property
    def prefill_bytes_per_s(self) -> float:
        """Weight bytes times rows per second."""
        return self.layer_bytes * self.prefill_rows / self.prefill_s

    @property
    def context_bytes_per_s(self) -> float:
        """Keys and values a decoded row is compared with, per second."""
        if not self.context_bytes or self.context_s <= 0:
            return limits.CONTEXT_BYTES_PER_S_MAX
        return min(self.context_bytes / self.context_s, limits.CONTEXT_BYTES_PER_S_MAX)


async def time_layers(
    run_rows: RunRows,
    layer_bytes: int,
    *,
    kv_bytes_per_token: int = 0,
    prefill_rows: int = 64,
    clock: Clock = time.perf_counter,
    pause: Pause = asyncio.sleep,
) -> LayerTiming:
    """Rounds with pauses between them, after a warm-up: the first run touches the weights for the first time.

    A device is planned for what it can do when nothing else runs on it, so the fastest round counts.
    """
    await run_rows(1, 0)
    await run_rows(prefill_rows, 0)
    rounds = []
    for number in range(limits.MEASURE_ROUNDS):
        if number:
            await pause(limits.MEASURE_PAUSE_S)
        rounds.append(await _round(run_rows, prefill_rows, clock))
    bare = [each.bare_s for each in rounds]
    context = min(each.behind_s for each in rounds) - min(bare)
    return LayerTiming(
        layer_bytes,
        min(bare),
        min(each.prefill_s for each in rounds),
        prefill_rows,
        min(each.besides_s for each in rounds),
        max(context, 0.0),
        kv_bytes_per_token * prefill_rows * limits.MEASURE_CONTEXT_CHUNKS,
        max(bare) / min(bare),
    )


@dataclass(frozen=True, slots=True)
class _Round:
    bare_s: float
    behind_s: float
    """One row behind a context."""
    prefill_s: float
    besides_s: float


async def _round(run_rows: RunRows, prefill_rows: int, clock: Clock) -> _Round:
    steps, chunks = range(limits.MEASURE_DECODE_STEPS), range(limits.MEASURE_CONTEXT_CHUNKS)
    bare = [await _timed(run_rows, 1, 0, clock) for _ in steps]
    prefill = [await _timed(run_rows, prefill_rows, number * prefill_rows, clock) for number in chunks]
    end = len(chunks) * prefill_rows
    # One after the other: what recurrent layers have taken in cannot be taken back for the same place again.
    behind = [await _timed(run_rows, 1, end + number, clock) for number in steps]
    return _Round(
        _quick(computed for computed, _ in bare),
        _quick(computed for computed, _ in behind),
        _quick(computed for computed, _ in prefill),
        _quick(besides for _, besides in (*bare, *behind)),
    )


def _quick(values: Iterable[float]) -> float:
    """The end of the fastest quarter: a single lucky step is no speed, and a single disturbed one neither."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4]


async def _timed(run_rows: RunRows, rows: int, position: int, clock: Clock) -> tuple[float, float]:
    """Seconds computed, and seconds besides."""
    started = clock()
    computed = max(await run_rows(rows, position), limits.MEASURE_SECONDS_MIN)
    return computed, max(clock() - started - computed, limits.MEASURE_SECONDS_MIN)


def memory_bytes_per_s(
    threads: int, *, size: int = limits.MEASURE_MEMORY_BYTES, clock: Clock = time.perf_counter
) -> float:
    """Reading speed of memory with so many threads: the ceiling of decode speed, known before any model is there."""
    share = max(size // threads, 4096) // 8
    arrays = [np.ones(share, dtype=np.int64) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(limits.MEASURE_MEMORY_ROUNDS):
            started = clock()
            list(pool.map(np.sum, arrays))
            taken = max(clock() - started, limits.MEASURE_SECONDS_MIN)
            best = max(best, threads * share * 8 / taken)
    return best


def disk_bytes_per_s(
    path: Path, *, size: int = limits.MEASURE_DISK_BYTES, clock: Clock = time.perf_counter
) -> float | None:
    """Reading speed of the disk under a large file, past the system's cache where it lets us; None for a small file."""
    if path.stat().st_size < size:
        return None
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
        started = clock()
        left = size
        while left > 0 and (data := file.read(min(left, limits.MEASURE_DISK_READ_BYTES))):
            left -= len(data)
        return size / max(clock() - started, limits.MEASURE_SECONDS_MIN)


def decode_rate_guess(memory_rate: float) -> float:
    """Before a layer was timed: kernels reach a part of what plain reading reaches."""
    return memory_rate * limits.MEASURE_KERNEL_SHARE


def machine(data_dir: Path, *, memory_max_bytes: int | None = None) -> dict[str, Any]:
    """Free and total memory and disk, cores, and whether running costs the owner something."""
    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    if memory_max_bytes is not None:
        total, free = min(total, memory_max_bytes), min(free, memory_max_bytes)
    return {
        "memory_total_bytes": total,
        "memory_free_bytes": free,
        "disk_free_bytes": shutil.disk_usage(data_dir).free,
        "cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "on_battery": on_battery(),
    }


def on_battery() -> bool:
    """True when it runs on its battery; False where that cannot be known."""
    battery = None
    with contextlib.suppress(OSError, RuntimeError):
        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return bool(battery is not None and not battery.power_plugged)
