"""What the compute benchmarks share: parts of a model as engine units, and small drivers that time every step."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import LaneToRank, StreamToRank, UnitSpec
from p2pnode.compute.gguf import ModelIndex
from p2pnode.compute.part import Inline, Part, Shard, Source, Zeros
from p2pnode.compute.surgery import cut
from p2pnode.compute.virtual_file import FilePiece, InlinePiece, Piece
from p2pnode.facade import SamplingParams
from p2pnode.frame import DType, Frame, Kind, pack_tokens
from p2pnode.limits import LANE_DATAGRAM_BYTES_LOOPBACK

GREEDY = SamplingParams(temperature=0.0)
HEADS = (
    ("of raw", 7), ("best", 6), ("prefill", 9), ("tok/s", 8), ("best", 8),
    ("compute", 9), ("tap", 7), ("sample", 8), ("hand", 7),
)  # fmt: skip
CONTEXT = {"context_tokens": 2048, "sessions_max": 8}


@dataclass
class Measured:
    """Seconds of every decode step, and what they were spent on (nanoseconds, summed)."""

    prefill: float = 0.0
    steps_s: list[float] = field(default_factory=list)
    compute_ns: int = 0
    tap_ns: int = 0
    sample_ns: int = 0
    streams: int = 1
    tokens: list[int] = field(default_factory=list)
    """Of the first stream."""

    @property
    def decode(self) -> float:
        """Tokens a second at the median step."""
        ordered = sorted(self.steps_s)
        return self.streams / ordered[len(ordered) // 2]

    @property
    def decode_best(self) -> float:
        """At the fastest tenth of the steps: what is left when other work on the machine is not in the way."""
        ordered = sorted(self.steps_s)
        return self.streams / ordered[len(ordered) // 10]

    def row(self) -> dict[str, float]:
        count = max(1, len(self.steps_s))
        total_ms = sum(self.steps_s) / count * 1e3
        compute_ms = (self.compute_ns - self.tap_ns) / count / 1e6
        tap_ms, sample_ms = self.tap_ns / count / 1e6, self.sample_ns / count / 1e6
        return {
            "prefill": self.prefill,
            "decode": self.decode,
            "decode_best": self.decode_best,
            "compute_ms": compute_ms,
            "tap_ms": tap_ms,
            "sample_ms": sample_ms,
            "hand_over_ms": total_ms - compute_ms - tap_ms - sample_ms if self.compute_ns else 0.0,
        }


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
    values = {"output": "sample" if facts.output == "logits" else "rows", **CONTEXT, **options}
    return UnitSpec(pieces=tuple(pieces), input=facts.input, tap=facts.tap, reduce=facts.reduce, **values)


def tokens_frame(ids: Sequence[int], position: int, session: int = 1) -> Frame:
    return Frame(
        Kind.TOKENS, DType.I32, len(ids), 1, session, pack_tokens(list(ids)),
        position_first=position, wanted_first=len(ids) - 1,
    )  # fmt: skip


class Line:
    """Engine units one after the other; the last one samples. One unit is local mode, more are a ring whose head
    has the last layers: a prompt goes by calls, decoded tokens around by lanes."""

    def __init__(self, engines: Sequence[EngineClient], units: Sequence[int]) -> None:
        self.engines, self.units = list(engines), list(units)

    @classmethod
    async def load(cls, index: ModelIndex, path: Path, stages: int, threads: int) -> Line:
        edges = [index.layer_count * n // stages for n in range(stages + 1)]
        line = cls([], [])
        for first, end in pairwise(edges):
            part = Part(first, end, embedding=first == 0, output=end == index.layer_count)
            line.engines.append(await EngineClient.start())
            spec = spec_of(index, path, part, threads=threads)
            if stages == 1:
                spec = UnitSpec(model_path=str(path), threads=threads, load_mode="copy", **CONTEXT)  # type: ignore[arg-type]  # a dict of numbers
            line.units.append((await line.engines[-1].load(spec)).unit_id)
        if stages > 1:
            await line._close_ring()
        return line

    async def _close_ring(self) -> None:
        """One lane from each engine to the next, and from the last to the first."""
        ports = [await engine.open_lanes("127.0.0.1", 2) for engine in self.engines]
        secrets, count = [os.urandom(32) for _ in self.engines], len(self.engines)

        def lane(at: int, out: int) -> LaneToRank:
            other, secret = ((at + 1) % count, at) if out else ((at - 1) % count, (at - 1) % count)
            return LaneToRank(
                0,
                ports[at][out],
                "127.0.0.1",
                ports[other][1 - out],
                secrets[secret],
                LANE_DATAGRAM_BYTES_LOOPBACK,
            )

        last = count - 1
        await asyncio.gather(
            self.engines[last].open_ring(self.units[last], None, lane(last, 1), lane(last, 0)),
            *(self.engines[n].open_relay(self.units[n], lane(n, 0), lane(n, 1)) for n in range(last)),
        )

    async def open(self, session: int) -> None:
        await self.engines[-1].open_session(self.units[-1], session, GREEDY)

    async def step(self, frame: Frame) -> int:
        head, unit = self.engines[-1], self.units[-1]
        if frame.rows == 1 and len(self.units) > 1:
            return (await head.ring_step(unit, frame, ahead=True)).token
        for engine, stage in list(zip(self.engines, self.units, strict=True))[:-1]:
            frame = await engine.step(stage, frame)
        return (await head.step_sample(unit, frame, ahead=len(self.units) == 1)).token

    async def counters(self) -> list[dict[str, int]]:
        """Of every engine that stands in a token's way."""
        return [(await engine.stats())["units"][unit] for engine, unit in self._in_turn()]

    def _in_turn(self) -> list[tuple[EngineClient, int]]:
        return list(zip(self.engines, self.units, strict=True))

    async def close(self) -> None:
        await asyncio.gather(*(engine.close() for engine in self.engines))


class Ranks(Line):
    """Shards of a whole model, one process each."""

    @classmethod
    async def shards(cls, index: ModelIndex, path: Path, ranks: int = 2) -> Ranks:
        line = cls([], [])
        for rank in range(ranks):
            part = Part(0, index.layer_count, embedding=True, output=True, shard=Shard(rank, (1,) * ranks))
            options = {"output": "none"} if rank else {}
            line.engines.append(await EngineClient.start())
            spec = spec_of(index, path, part, rank=rank, ranks=ranks, threads=1, **options)
            line.units.append((await line.engines[-1].load(spec)).unit_id)
        return line

    async def link(self, kind: str, datagram_bytes: int = 1452, *, half: bool = False) -> None:
        """Two ranks over a stream socket or a lane."""
        ways: list[Any]
        ends: list[socket.socket] = []
        if kind == "stream":
            ends = list(socket.socketpair())
            ways = [StreamToRank(1, ends[0]), StreamToRank(0, ends[1])]
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
        for end in ends:
            end.close()

    async def open(self, session: int) -> None:
        await self.engines[0].open_session(self.units[0], session, GREEDY)

    async def step(self, frame: Frame) -> int:
        others = [
            asyncio.create_task(engine.step(unit, frame))
            for engine, unit in list(zip(self.engines, self.units, strict=True))[1:]
        ]
        sampled = await self.engines[0].step_sample(self.units[0], frame)
        await asyncio.gather(*others)
        return sampled.token

    def _in_turn(self) -> list[tuple[EngineClient, int]]:
        return super()._in_turn()[:1]  # ranks compute side by side


async def measure(line: Line, prompt: int, count: int, streams: int = 1) -> Measured:
    """Prefill one prompt, then decode `streams` sessions side by side, step by step."""
    measured, ids = Measured(streams=streams), [300 + n % 500 for n in range(prompt)]
    tokens = []
    for session in range(1, streams + 1):
        await line.open(session)
        started = time.perf_counter()
        tokens.append(await line.step(tokens_frame(ids, 0, session)))
        measured.prefill = prompt / (time.perf_counter() - started)
    before = await line.counters()
    for n in range(count):
        started = time.perf_counter()
        frames = [tokens_frame([token], prompt + n, number + 1) for number, token in enumerate(tokens)]
        tokens = list(await asyncio.gather(*(line.step(frame) for frame in frames)))
        measured.steps_s.append(time.perf_counter() - started)
        measured.tokens.append(tokens[0])
    for was, now in zip(before, await line.counters(), strict=True):
        # Some engines have gone one token further than was asked for.
        share = count / max(1, now["decodes"] - was["decodes"])
        measured.compute_ns += int((now["compute_ns"] - was["compute_ns"]) * share)
        measured.tap_ns += int((now["tap_ns"] - was["tap_ns"]) * share)
        measured.sample_ns += now["sample_ns"] - was["sample_ns"]
    return measured


async def raw(path: Path, threads: int, prompt: int, count: int) -> Measured:
    """The plain binding's loop in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("raw_loop.py")), str(path),
        *map(str, (threads, prompt, count, 1)), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    values = json.loads(out)
    return Measured(prefill=values["prefill"], steps_s=values["steps_s"])


def table(found: dict[str, list[Measured]], limit: str) -> list[str]:
    """Medians over rounds, each beside the limit."""
    base = _middle([entry.row() for entry in found[limit]])
    heads = "".join(f"{head:>{width}}" for head, width in HEADS)
    lines = [f"{'':26}{heads} ms"]
    for name, entries in found.items():
        row = _middle([entry.row() for entry in entries])
        lines.append(
            f"{name:26}{row['decode'] / base['decode']:7.2f}{row['decode_best'] / base['decode_best']:6.2f}"
            f"{row['prefill']:9.1f}{row['decode']:8.2f}{row['decode_best']:8.2f}{row['compute_ms']:9.2f}"
            f"{row['tap_ms']:7.2f}{row['sample_ms']:8.2f}{row['hand_over_ms']:7.2f}"
        )
    return lines


def _middle(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: sorted(row[key] for row in rows)[len(rows) // 2] for key in rows[0]}
