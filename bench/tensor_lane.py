"""Tensor mode of two engine processes with one thread each, over the lane and over a stream, beside the raw
loop with two threads; paired, in turn.

    python bench/tensor_lane.py MODEL.gguf [--prompt 128] [--count 32] [--rounds 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import LaneToRank, StreamToRank, UnitSpec
from p2pnode.compute.gguf import ModelIndex, open_model
from p2pnode.compute.part import Inline, Part, Shard, Source, Zeros
from p2pnode.compute.surgery import cut
from p2pnode.compute.virtual_file import FilePiece, InlinePiece, Piece
from p2pnode.facade import SamplingParams
from p2pnode.frame import DType, Frame, Kind, pack_tokens

GREEDY = SamplingParams(temperature=0.0)


def spec_of(index: ModelIndex, path: Path, part: Part, **options: Any) -> UnitSpec:
    """A part of a model file as an engine takes it."""
    made = cut(index, part)
    pieces: list[Piece] = []
    for piece in made.all_pieces():
        match piece:
            case Inline(data):
                pieces.append(InlinePiece(data))
            case Zeros(total):
                pieces.append(InlinePiece(bytes(total)))
            case Source():
                pieces.append(FilePiece(str(path), piece.offset, piece.size, piece.count, piece.stride))
    facts = made.facts
    values = {
        "output": "sample" if facts.output == "logits" else "rows",
        "context_tokens": 1024,
        "sessions_max": 2,
        "threads": 1,
        **options,
    }
    return UnitSpec(pieces=tuple(pieces), input=facts.input, tap=facts.tap, reduce=facts.reduce, **values)


def tokens_frame(ids: Sequence[int], position: int, *, wanted: bool = True) -> Frame:
    return Frame(
        Kind.TOKENS, DType.I32, len(ids), 1, 1, pack_tokens(list(ids)),
        position_first=position, wanted_first=len(ids) - 1 if wanted else len(ids),
    )  # fmt: skip


class Ranks:
    """Two shards in two processes."""

    def __init__(self, engines: Sequence[EngineClient], units: Sequence[int]) -> None:
        self.engines, self.units = engines, units

    @classmethod
    async def load(cls, index: ModelIndex, path: Path) -> Ranks:
        engines, units = [], []
        for rank in range(2):
            part = Part(0, index.layer_count, embedding=True, output=True, shard=Shard(rank, (1, 1)))
            options = {"output": "none"} if rank else {}
            engine = await EngineClient.start()
            engines.append(engine)
            units.append(
                (await engine.load(spec_of(index, path, part, rank=rank, ranks=2, **options))).unit_id
            )
        return cls(engines, units)

    async def link(self, kind: str, datagram_bytes: int, *, half: bool) -> None:
        if kind == "stream":
            a, b = socket.socketpair()
            ways: list[Any] = [StreamToRank(1, a), StreamToRank(0, b)]
        else:
            (a_port,), (b_port,) = [await engine.open_lanes("127.0.0.1", 1) for engine in self.engines]
            secret = os.urandom(32)
            ways = [
                LaneToRank(1, a_port, "127.0.0.1", b_port, secret, datagram_bytes),
                LaneToRank(0, b_port, "127.0.0.1", a_port, secret, datagram_bytes),
            ]
        await asyncio.gather(
            *(e.link(u, [w], half=half) for e, u, w in zip(self.engines, self.units, ways, strict=True))
        )

    async def sample(self, frame: Frame) -> tuple[int, int, int]:
        """Token, compute and all-reduce nanoseconds."""
        other = asyncio.create_task(self.engines[1].step(self.units[1], frame))
        sampled = await self.engines[0].step_sample(self.units[0], frame)
        await other
        return sampled.token, sampled.timings.compute_ns, sampled.timings.tap_ns

    async def measure(self, prompt: int, count: int) -> dict[str, float]:
        await self.engines[0].open_session(self.units[0], 1, GREEDY)
        started = time.perf_counter()
        token, _, _ = await self.sample(tokens_frame([300 + n % 500 for n in range(prompt)], 0))
        prefill = prompt / (time.perf_counter() - started)
        compute = tap = 0
        started = time.perf_counter()
        for n in range(count):
            token, compute_ns, tap_ns = await self.sample(tokens_frame([token], prompt + n))
            compute += compute_ns
            tap += tap_ns
        spent = time.perf_counter() - started
        return {
            "prefill": prefill,
            "decode": count / spent,
            "reduce_ms": tap / count / 1e6,
            "compute_ms": (compute - tap) / count / 1e6,
            "hand_over_ms": (spent - compute / 1e9) / count * 1e3,
        }

    async def close(self) -> None:
        await asyncio.gather(*(engine.close() for engine in self.engines))


async def raw(path: Path, threads: int, prompt: int, count: int) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("raw_loop.py")), str(path),
        *map(str, (threads, prompt, count, 1)), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    return dict(json.loads(out))


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
    ranks = await Ranks.load(index, args.model)
    ways = [("stream", 0, False), ("lane", 1452, False), ("lane", 8400, False), ("lane", 1452, True)]
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        found.setdefault("raw loop, 2 threads", []).append(await raw(args.model, 2, args.prompt, args.count))
        for kind, datagram_bytes, half in ways:
            await ranks.link(kind, datagram_bytes, half=half)
            name = f"{kind} {datagram_bytes or ''} {'f16' if half else 'f32'}"
            found.setdefault(name, []).append(await ranks.measure(args.prompt, args.count))
    await ranks.close()
    limit = statistics.median(entry["decode"] for entry in found["raw loop, 2 threads"])
    for name, entries in found.items():
        middle = {key: statistics.median(e[key] for e in entries) for key in entries[0] if key != "rounds"}
        rest = "  ".join(f"{key} {value:6.2f}" for key, value in middle.items())
        print(f"{name:24} {middle['decode'] / limit:5.2f} of raw   {rest}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
