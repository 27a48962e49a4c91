"""What every transport of the benchmark is asked: bulk, round trips, streams opened anew; the same on all of them."""

from __future__ import annotations

import os
import statistics
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

BULK_S = 1.0
ROUND_TRIPS = {100: 300, 8192: 300, 262_144: 25}
PARTS = ("bulk", *map(str, ROUND_TRIPS), "new")
CHUNK = 262_144
Queue = Any


@dataclass(frozen=True)
class Variant:
    name: str
    kind: str
    datagram: int = 0
    core: str = "fast"
    parts: tuple[str, ...] = PARTS


Write = Callable[[bytes], Awaitable[None]]
Read = Callable[[int], Awaitable[bytes]]
Close = Callable[[], Awaitable[None]]
Channel = tuple[Write, Read, Close]
Open = Callable[[], Awaitable[Channel]]

HEADER = struct.Struct(">cI")
"""Kind (b bulk, r round trip) and size, before each body; the answer to a bulk body is one byte at its end."""


async def answer(write: Write, read: Read) -> None:
    """The serving side of a channel, until it ends."""
    while True:
        kind, size = HEADER.unpack(await read(HEADER.size))
        if kind == b"r":
            await write(await read(size))
            continue
        while size:
            step = min(size, CHUNK)
            await read(step)
            size -= step
        await write(struct.pack(">d", time.process_time()))


async def measure(open_channel: Open, parts: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    write, read, close = await open_channel()
    body = os.urandom(CHUNK)

    async def bulk(chunks: int) -> float:
        await write(HEADER.pack(b"b", chunks * CHUNK))
        for _ in range(chunks):
            await write(body)
        return float(struct.unpack(">d", await read(8))[0])

    if "bulk" in parts:
        started = time.perf_counter()
        await bulk(8)
        chunks = max(8, min(1200, int(8 * BULK_S / (time.perf_counter() - started))))
        far, near, started = await bulk(1), time.process_time(), time.perf_counter()
        far = await bulk(chunks) - far
        elapsed, near = time.perf_counter() - started, time.process_time() - near
        megabytes = chunks * CHUNK / 1e6
        result["bulk_mb_s"] = megabytes / elapsed
        result["cpu_ms_per_mb"] = {"send": near / megabytes * 1e3, "receive": far / megabytes * 1e3}

    async def trip(size: int, write: Write, read: Read) -> float:
        message = HEADER.pack(b"r", size) + body[:size]
        started = time.perf_counter()
        await write(message)
        await read(size)
        return (time.perf_counter() - started) * 1e3

    for size, count in ROUND_TRIPS.items():
        if str(size) not in parts:
            continue
        for _ in range(count // 10):
            await trip(size, write, read)
        times = sorted([await trip(size, write, read) for _ in range(count)])
        result[f"rtt_ms_{size}"] = {"p50": times[count // 2], "p99": times[int(count * 0.99)]}
    await close()
    if "new" not in parts:
        return result
    times = []
    for _ in range(60):
        started = time.perf_counter()
        write, read, close = await open_channel()
        await trip(8192, write, read)
        times.append((time.perf_counter() - started) * 1e3)
        await close()
    result["new_stream_rtt_ms_8192"] = {"p50": statistics.median(times)}
    return result
