"""Every way to compute, side by side in one run: the raw llama.cpp loop (the limit), our engine alone, lines of
engines, a tensor group, llama.cpp's own RPC. Engines on one machine, no network between nodes.

    python bench/compute.py MODEL.gguf [--threads 2] [--prompt 512] [--count 64] [--rounds 3] [--streams 4]

`of raw` compares median steps, `best` the fastest tenth of the steps of each (for machines with other work).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from parts import CONTEXT, Line, Measured, Ranks, measure, raw, table

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.gguf import ModelIndex, open_model
from p2pnode.compute.rpc import RpcServer


@asynccontextmanager
async def rpc_line(path: Path, split: str, threads: int) -> AsyncIterator[Line]:
    servers = [await RpcServer.start(threads=threads) for _ in range(2)]
    engine = await EngineClient.start()
    spec = UnitSpec(
        model_path=str(path), rpc_endpoints=tuple(server.endpoint for server in servers), gpu_layers=999,
        split_mode=split, threads=1, **CONTEXT,
    )  # type: ignore[arg-type]  # fmt: skip
    yield Line([engine], [(await engine.load(spec)).unit_id])
    await engine.close()
    for server in servers:
        await server.close()


@asynccontextmanager
async def lines_of(index: ModelIndex, path: Path, kind: str, threads: int) -> AsyncIterator[Line]:
    if kind == "tensor 2":
        ranks = await Ranks.shards(index, path)
        await ranks.link("lane")
        yield ranks
        await ranks.close()
    elif kind.startswith("rpc"):
        async with rpc_line(path, kind.split()[1], max(1, threads // 2)) as line:
            yield line
    else:
        line = await Line.load(index, path, int(kind.split()[-1]) if kind != "local" else 1, threads)
        yield line
        await line.close()


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument(
        "--kinds", default="local,pipeline 2,pipeline 3,tensor 2,rpc layer,rpc tensor", help="comma-separated"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    index, _ = open_model(args.model)
    limit = f"raw loop, {args.threads} threads"
    found: dict[str, list[Measured]] = {limit: []}
    for _ in range(args.rounds):
        for kind in args.kinds.split(","):
            found[limit].append(await raw(args.model, args.threads, args.prompt, args.count))
            async with lines_of(index, args.model, kind, args.threads) as line:
                found.setdefault(kind, []).append(await measure(line, args.prompt, args.count))
                if args.streams > 1 and kind in ("local", "pipeline 2"):
                    several = await measure(line, 16, args.count // 2, args.streams)
                    found.setdefault(f"{kind}, {args.streams} streams", []).append(several)
    print("\n".join(table(found, limit)))
    if args.json:
        results = {name: [entry.row() for entry in entries] for name, entries in found.items()}
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "model": args.model.name,
        }
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
