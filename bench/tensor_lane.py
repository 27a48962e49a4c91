"""Tensor mode of two engine processes with one thread each, over a stream and over the lane, beside the raw
loop with two threads; in turn.

    python bench/tensor_lane.py MODEL.gguf [--prompt 128] [--count 32] [--rounds 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

from parts import Measured, Ranks, measure, raw, table

from p2pnode.compute.gguf import open_model

WAYS = (("stream", 0, False), ("lane", 1452, False), ("lane", 8400, False), ("lane", 1452, True))
LIMIT = "raw loop, 2 threads"


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    index, _ = open_model(args.model)
    ranks = await Ranks.shards(index, args.model)
    found: dict[str, list[Measured]] = {}
    for _ in range(args.rounds):
        found.setdefault(LIMIT, []).append(await raw(args.model, 2, args.prompt, args.count))
        for kind, datagram_bytes, half in WAYS:
            await ranks.link(kind, datagram_bytes, half=half)
            name = f"{kind} {datagram_bytes or ''} {'f16' if half else 'f32'}"
            found.setdefault(name, []).append(await measure(ranks, args.prompt, args.count))
    await ranks.close()
    print("\n".join(table(found, LIMIT)))
    if args.json:
        args.json.write_text(
            json.dumps({name: [e.row() for e in rows] for name, rows in found.items()}, indent=1)
        )


if __name__ == "__main__":
    asyncio.run(main())
