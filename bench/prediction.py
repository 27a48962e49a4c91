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

from bench.others import SHARE_MAX, TRIES_MAX, Watch
from bench.parts import Line, measure, spec_of
from p2pnode.compute import cost
from p2pnode.compute.cost import Device, Group, Link, Mesh
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.gguf import ModelIndex, open_model
from p2pnode.compute.measure import LayerTiming
from p2pnode.compute.shape import shape_of
from p2pnode.node.layer_rates import sample_of, time_rows

PROMPT, STEPS = 64, 32
STAGES = (1, 2, 3)


async def time_slice(index: ModelIndex, path: Path, threads: int) -> LayerTiming:
    """The layers that a node times, in an engine of their own."""
    shape = shape_of(index, name="x", content_id="x")
    part = sample_of(shape, 2**50)
    assert part is not None, "this model cannot be cut"
    engine = await EngineClient.start()
    try:
        unit = (await engine.load(spec_of(index, path, part, threads=threads))).unit_id
        return await time_rows(engine, unit, shape, part)
    finally:
        await engine.close()


def predicted(index: ModelIndex, timing: LayerTiming, stages: int) -> float:
    """Tokens a second of a chain of engines on one machine: the hops cost only their processing."""
    shape = shape_of(index, name="x", content_id="x")
    peers = [f"p{number}" for number in range(stages)]
    rates = (timing.decode_bytes_per_s, timing.prefill_bytes_per_s)
    mesh = Mesh(
        {
            p: Device(
                p,
                p,
                2**50,
                2**50,
                *rates,
                step_overhead_s=timing.overhead_s,
                context_bytes_per_s=timing.context_bytes_per_s,
            )
            for p in peers
        },
        {(a, b): Link(0.0, 1e12) for a in peers for b in peers},
    )
    edges = [shape.layer_count * number // stages for number in range(stages + 1)]
    groups = [Group(a, b, (peer,)) for peer, a, b in zip(peers, edges, edges[1:], strict=False)]
    # No network here, and the last of these engines samples too: only computing is compared.
    computing = [cost.group_decode_s(shape, mesh, group, PROMPT + STEPS // 2) for group in groups]
    return 1.0 / (sum(computing) + cost.output_decode_s(shape, mesh.devices[peers[0]]))


async def one_case(index: ModelIndex, path: Path, threads: int, stages: int) -> dict[str, Any]:
    """Timed and then run, once more when other programs had a part of the machine meanwhile."""
    tried: list[dict[str, Any]] = []
    while len(tried) < TRIES_MAX and (not tried or tried[-1]["others_share"] > SHARE_MAX):
        watch = Watch()
        timing = await time_slice(index, path, threads)
        line = await Line.load(index, path, stages, threads)
        try:
            found = await measure(line, PROMPT, STEPS)
        finally:
            await line.close()
        expected = predicted(index, timing, stages)
        tried.append(
            {
                "threads": threads,
                "stages": stages,
                "predicted_tokens_per_s": round(expected, 2),
                "measured_tokens_per_s": round(found.decode, 2),
                "error": round(found.decode / expected - 1, 3),
                "others_share": round(watch.share, 3),
            }
        )
    return min(tried, key=lambda row: row["others_share"])


async def one_round(index: ModelIndex, path: Path, threads: int) -> list[dict[str, Any]]:
    return [await one_case(index, path, threads, stages) for stages in STAGES]


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
    # What engines choose on a machine that is otherwise free; a load left by other work must not decide it.
    os.environ["GOMP_SPINCOUNT"] = "30000"
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
            "environment": {"GOMP_SPINCOUNT": "30000"},
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, load {load}",
            "within_20_percent": f"{within} of {len(rows)}",
            "rows": rows,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
