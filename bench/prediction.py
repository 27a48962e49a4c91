"""Predicted against measured decode speed: some layers are timed, the rest follows from the planner's law.

    python -m bench.prediction MODEL.gguf [--rounds N] [--threads N,N] [--out bench/results/prediction.json]

Every round times a slice of the model as a node does, predicts local, two and three stages from it, then runs
them; all in one minute of the same machine, so that other work on it disturbs both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.parts import Line, measure, spec_of
from p2pnode.compute.builder import Builder
from p2pnode.compute.cost import Device, Group, Link, Mesh
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.gguf import ModelIndex, open_model
from p2pnode.compute.measure import LayerTiming, time_layers
from p2pnode.compute.part import Part
from p2pnode.compute.planner import Wish
from p2pnode.compute.shape import shape_of
from p2pnode.frame import DType, Frame, Kind

PROMPT, STEPS = 64, 32
STAGES = (1, 2, 3)


async def time_slice(index: ModelIndex, path: Path, threads: int) -> LayerTiming:
    """A quarter of the layers in an engine of its own."""
    shape = shape_of(index, name="x", content_id="x")
    first = shape.layer_count // 4
    end = max(first + 1, first + shape.layer_count // 4)
    engine = await EngineClient.start()
    try:
        unit = (await engine.load(spec_of(index, path, Part(first, end), threads=threads))).unit_id
        values = np.random.default_rng(0).standard_normal((64, shape.width), dtype=np.float32)

        async def run_rows(rows: int) -> None:
            payload = values[:rows].tobytes()
            frame = Frame(
                Kind.ROWS, DType.F32, rows, shape.width, 1, payload, position_first=0, wanted_first=0
            )
            await engine.step(unit, frame)

        return await time_layers(run_rows, sum(shape.active_bytes[first:end]))
    finally:
        await engine.close()


def predicted(index: ModelIndex, timing: LayerTiming, stages: int) -> float:
    """Tokens a second of a chain of engines on one machine: the hops cost only their processing."""
    shape = shape_of(index, name="x", content_id="x")
    peers = [f"p{number}" for number in range(stages)]
    rates = (timing.decode_bytes_per_s, timing.prefill_bytes_per_s)
    mesh = Mesh(
        {peer: Device(peer, peer, 2**50, 2**50, *rates) for peer in peers},
        {(a, b): Link(0.0, 1e12) for a in peers for b in peers},
    )
    edges = [shape.layer_count * number // stages for number in range(stages + 1)]
    groups = [Group(a, b, (peer,)) for peer, a, b in zip(peers, edges, edges[1:], strict=False)]
    # No network here: engines hand over inside one process, so only computing is compared.
    return 1.0 / Builder(Wish(peers[0]), shape, mesh).predict("pipeline", groups).compute_s


async def one_round(index: ModelIndex, path: Path, threads: int) -> list[dict[str, Any]]:
    rows = []
    for stages in STAGES:
        timing = await time_slice(index, path, threads)
        line = await Line.load(index, path, stages, threads)
        try:
            found = await measure(line, PROMPT, STEPS)
        finally:
            await line.close()
        expected = predicted(index, timing, stages)
        rows.append(
            {
                "threads": threads,
                "stages": stages,
                "predicted_tokens_per_s": round(expected, 2),
                "measured_tokens_per_s": round(found.decode, 2),
                "error": round(found.decode / expected - 1, 3),
            }
        )
    return rows


async def run(path: Path, rounds: int, threads: Sequence[int]) -> list[dict[str, Any]]:
    index, _ = open_model(path)
    return [row for _ in range(rounds) for count in threads for row in await one_round(index, path, count)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    threads = [int(part) for part in options.threads.split(",")]
    rows = asyncio.run(run(options.model, options.rounds, threads))
    for row in rows:
        print(" ".join(f"{key}={value}" for key, value in row.items()))
    within = sum(abs(row["error"]) <= 0.2 for row in rows)
    print(
        f"{within} of {len(rows)} within 20 %, median error {statistics.median(r['error'] for r in rows):+.1%}"
    )
    if options.out is not None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        result = {
            "command": f"python -m bench.prediction {options.model.name} --rounds {options.rounds}",
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, load {load}",
            "within_20_percent": f"{within} of {len(rows)}",
            "rows": rows,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
