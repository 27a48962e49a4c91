"""Every way to compute, side by side in one run: the raw llama.cpp loop (the limit), one node, pipelines and
tensor groups of real nodes over QUIC on loopback, and llama.cpp's own RPC.

    python bench/compute.py [--all] [--rounds 2] [--pairs 3] [--only NAME] [--model MODEL.gguf] [--json FILE]

A raw loop that stays loaded runs right before every measurement of every other way, in pairs, several to a way and
round; ratios are taken within a pair, since other work on the machine hits both, and medians over all pairs. Nodes
are asked over HTTP and timed where the answer arrives. The run takes priority over other work as far as the system
lets it, and its results say under which conditions they came about.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from compute_report import Found, Row, Way, table, targets, write_between
from conditions import conditions, run_with_priority
from nodes import ROOT, Answer, Mesh, Node, ask, ask_side_by_side, machine, mesh_of, random_model
from parts import CONTEXT, Line, Measured, Ranks, measure

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_process import streaming_environment
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.gguf import open_model
from p2pnode.compute.rpc import RpcServer
from p2pnode.limits import UNIT_BATCH_ROWS

NAMES = ("alpha", "beta", "gamma", "delta")
PROMPT, COUNT = 512, 64
STREAM_PROMPT, STREAM_COUNT = 16, 40
STREAMED_PROMPT, STREAMED_COUNT, STREAMED_SLACK_BYTES = 32, 8, 200_000_000
BREAKDOWN_ROUNDS = 3
WATCH_EVERY_S = 0.005


WAYS = (
    Way("local", "local", streams=(4, 8)),
    Way("pipeline of 2", "pipeline", devices=2),
    Way("pipeline of 2, head first", "pipeline", devices=2, in_default=False, head_first=True),
    Way("pipeline of 3", "pipeline", devices=3, in_default=False),
    Way("pipeline of 4", "pipeline", devices=4, in_default=False),
    Way("pipeline of 2, half the threads each", "pipeline", 2, 2, streams=(1, 4, 8)),
    Way("tensor of 2, half the threads each", "tensor", 2, 2),
    Way("hybrid 2 × 2, half the threads each", "hybrid", 2, 4, in_default=False),
    Way("llama.cpp RPC LAYER, 2 workers", "rpc layer", 1, 2),
    Way("llama.cpp RPC TENSOR, 2 workers, half the threads each", "rpc tensor", 2, 2),
)


def rates(answer: Answer) -> Row:
    """What one stream had; `best` at the fastest tenth of its steps."""
    steps = sorted(answer.steps_s)
    return {
        "prefill": PROMPT / answer.end["prefill_s"],
        "decode": 1 / median(steps),
        "best": 1 / steps[len(steps) // 10],
    }


def joint_rate(answers: Sequence[Answer]) -> float:
    """Tokens a second of all streams, while all of them were decoding."""
    first, last = max(a.at_s[0] for a in answers), min(a.at_s[-1] for a in answers)
    inside = sum(first < at <= last for a in answers for at in a.at_s)
    return inside / (last - first) if last > first else 0.0


_begun = itertools.count()


def tokens(count: int) -> list[int]:
    """A prompt no node has seen: what was kept of an earlier one would make it look fast."""
    first = 300 + next(_begun)
    return [first, *(300 + n % 500 for n in range(1, count))]


# --- nodes -----------------------------------------------------------------------------------------
@contextmanager
def planned(mesh: Mesh, way: Way, model: str, layers: int) -> Iterator[Node]:
    """A plan of this shape, until the way was measured."""
    if way.kind == "local":
        yield mesh.head
        return
    names = list(NAMES[: way.devices])
    wish: dict[str, Any] = {"model": model, "mode": way.kind, "devices": names}
    if way.kind == "pipeline":
        names = names if way.head_first else [*names[1:], names[0]]
        edges = [layers * n // way.devices for n in range(way.devices + 1)]
        wish = {"model": model, "blocks": list(zip(names, edges, edges[1:], strict=False))}
    plan = mesh.head.apply(**wish)
    try:
        yield mesh.head
    finally:
        mesh.head.release(plan["plan_id"])


def measure_node(head: Node, way: Way, model: str) -> Row:
    """A prompt and an answer of one stream."""
    wish = wish_of(way, model)
    return rates(ask(head, {**wish, "prompt": tokens(PROMPT), "max_tokens": COUNT}))


def measure_streams(head: Node, way: Way, model: str) -> Row:
    """Several answers at once; the first tells how fast one alone is in the same minute."""
    wish, row = wish_of(way, model), {}
    for streams in way.streams:
        wishes = [
            {**wish, "prompt": tokens(STREAM_PROMPT), "max_tokens": STREAM_COUNT} for _ in range(streams)
        ]
        row[f"streams_{streams}"] = joint_rate(ask_side_by_side(head, wishes))
    return row


def wish_of(way: Way, model: str) -> dict[str, Any]:
    return {"model": model, "mode": way.kind, "logit_bias": {"2": -100.0}}


# --- llama.cpp by itself ---------------------------------------------------------------------------
class Raw:
    """The plain binding's loop, loaded in a process of its own that sleeps between measurements."""

    def __init__(self, model: Path, threads: int, *, prompt: int = PROMPT, huge: bool = False) -> None:
        command = [sys.executable, str(Path(__file__).with_name("raw_loop.py")), str(model)]
        command += map(str, (threads, prompt, COUNT, 0))
        self._process = subprocess.Popen(
            command + ["huge"] * huge, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def measure(self) -> Row:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        values = json.loads(self._process.stdout.readline())
        steps = sorted(values["steps_s"])
        return {
            "prefill": values["prefill"],
            "decode": 1 / median(steps),
            "best": 1 / steps[len(steps) // 10],
        }

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


async def rpc(model: Path, split: str, threads: int, limit: Raw, pairs: int) -> list[tuple[Row, Row]]:
    """Two of llama.cpp's own workers on loopback, our engine as their coordinator."""
    servers = [await RpcServer.start(threads=threads) for _ in range(2)]
    engine = await EngineClient.start()
    try:
        spec = UnitSpec(
            model_path=str(model), rpc_endpoints=tuple(server.endpoint for server in servers), gpu_layers=999,
            split_mode=split, threads=1, **CONTEXT,
        )  # type: ignore[arg-type]  # fmt: skip  # a dict of numbers
        line = Line([engine], [(await engine.load(spec)).unit_id])
        await measure(line, 64, 4)
        found = []
        for _ in range(pairs):
            base = limit.measure()
            got = await measure(line, PROMPT, COUNT)
            found.append(({"prefill": got.prefill, "decode": got.decode, "best": got.decode_best}, base))
        return found
    finally:
        await engine.close()
        for server in servers:
            await server.close()


# --- streamed --------------------------------------------------------------------------------------
class Watched:
    """The most a process had resident while it was watched."""

    def __init__(self, pid: int) -> None:
        self._process, self._stop = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.bytes_max = 0

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_EVERY_S):
            self.bytes_max = max(self.bytes_max, int(self._process.memory_info().rss))

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


async def streamed(model: Path, model_bytes: int, threads: int) -> dict[str, Any]:
    """An engine that may keep a quarter of the weights beside one that has all: tokens and memory."""
    limit = model_bytes // 4
    # Weights in a file cannot be repacked for this processor, and repacked ones round otherwise: neither has them.
    whole = UnitSpec(
        model_path=str(model), threads=threads, load_mode="mmap", repack=False, batch_rows=UNIT_BATCH_ROWS, **CONTEXT
    )  # type: ignore[arg-type]  # fmt: skip  # a dict of numbers
    answers, measured, loading, serving = [], Measured(), 0, 0
    for spec in (whole, replace(whole, resident_bytes_max=limit)):
        engine = await EngineClient.start(
            environment=streaming_environment() if spec.resident_bytes_max else None
        )
        try:
            with Watched(engine.pid) as load:
                line = Line([engine], [(await engine.load(spec)).unit_id])
            with Watched(engine.pid) as serve:
                measured = await measure(line, STREAMED_PROMPT, STREAMED_COUNT)
            loading, serving = load.bytes_max, serve.bytes_max
            answers.append(measured.tokens)
        finally:
            await engine.close()
    bound, is_same = limit + STREAMED_SLACK_BYTES, answers[0] == answers[1]
    return {
        "limit_bytes": limit,
        "resident_bytes_max": bound,
        "loading_resident_peak_bytes": loading,
        "serving_resident_peak_bytes": serving,
        "tokens_are_those_of_all_weights": is_same,
        "decode": round(measured.decode, 3),
        "held": max(loading, serving) < bound and is_same,
    }


async def breakdown(model: Path, threads: int, found: Sequence[Found]) -> dict[str, Row]:
    """The same engines without nodes say what a step is made of; what nodes add is the difference."""
    index, _ = open_model(model)
    parts: dict[str, Row] = {}
    for one in found:
        way = one.way
        each = max(1, threads // way.share)
        if way.kind == "tensor":
            ranks = await Ranks.shards(index, model, way.devices)
            await ranks.link("lane")
            line: Line = ranks
        elif way.kind in ("local", "pipeline") and not way.head_first:
            line = await Line.load(index, model, way.devices, each)
        else:
            continue
        try:
            await measure(line, 64, 4)
            measured = middle_of([await measure(line, PROMPT, COUNT) for _ in range(BREAKDOWN_ROUNDS)])
        finally:
            await line.close()
        row, count = measured.row(), len(measured.steps_s)
        compute_ms = row["compute_ms"]
        step_ms = 1e3 / measured.decode
        spent = {"compute": compute_ms, "tap": row["tap_ms"], "sample": measured.sample_ns / count / 1e6}
        spent["hand_over"] = step_ms - sum(spent.values())
        parts[way.name] = {name: round(value, 3) for name, value in spent.items()}
        parts[way.name]["nodes_and_wire"] = round(1e3 / one.middle()["decode"] - step_ms, 3)
    return parts


def pair_text(row: Row, base: Row) -> str:
    of_raw = {key: f"{row[key]:6.1f} of {base[key]:6.1f} = {row[key] / base[key]:.3f}" for key in row}
    return f"prefill {of_raw['prefill']}   decode {of_raw['decode']}"


def middle_of(found: Sequence[Measured]) -> Measured:
    return sorted(found, key=lambda one: one.decode)[len(found) // 2]


# --- the run ---------------------------------------------------------------------------------------
def run(
    ways: Sequence[Way], model: Path, rounds: int, pairs: int, threads: int, say: Callable[[str], None]
) -> tuple[list[Found], dict[str, Any]]:
    """All ways in turn, round after round; and the streamed one, once."""
    index, _ = open_model(model)
    found = [Found(way) for way in ways]
    with ExitStack() as stack:
        limit = Raw(model, threads)
        stack.callback(limit.close)
        meshes: dict[int, Mesh] = {}
        for share in sorted({way.share for way in ways if not way.kind.startswith("rpc")} | {1}):
            counts = [way.devices for way in ways if way.share == share and not way.kind.startswith("rpc")]
            each = max(1, threads // share)
            names = NAMES[: max(counts, default=1)]
            meshes[share] = stack.enter_context(mesh_of(names, threads=each, model=model))
        for number in range(rounds):
            for one in found:
                way, before = one.way, len(one.rows)
                if way.kind.startswith("rpc"):
                    each = max(1, threads // way.share)
                    got = asyncio.run(rpc(model, way.kind.split()[1], each, limit, pairs))
                    one.rows += [row for row, _ in got]
                    one.limits += [base for _, base in got]
                else:
                    with planned(meshes[way.share], way, model.stem, index.layer_count) as head:
                        ask(head, {**wish_of(way, model.stem), "prompt": tokens(64), "max_tokens": 4})
                        meshes[way.share].rest()
                        for _ in range(pairs):
                            one.limits.append(limit.measure())
                            one.rows.append(measure_node(head, way, model.stem))
                        for _ in range(pairs if way.streams else 0):
                            one.streams.append(measure_streams(head, way, model.stem))
                for row, base in zip(one.rows[before:], one.limits[before:], strict=True):
                    say(f"{number + 1}/{rounds} {way.name:54} {pair_text(row, base)}")
        return found, asyncio.run(streamed(model, model.stat().st_size, threads))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="GGUF file [default: random weights of TinyLlama's shape]")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3, help="of raw loop and way, each round")
    parser.add_argument(
        "--all", action="store_true", help="also pipelines of 3 and 4, head first, and the hybrid"
    )
    parser.add_argument("--only", default="", help="ways whose kind or name contains this")
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "compute.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "performance.md")
    args = parser.parse_args()
    ended = run_with_priority(sys.argv)
    if ended is not None:
        sys.exit(ended)
    had = conditions()
    ways = [way for way in WAYS if (way.in_default or args.all) and args.only in f"{way.kind} {way.name}"]
    model = args.model or random_model()
    about, started = machine(), time.perf_counter()
    found, slow = run(
        ways, model, args.rounds, args.pairs, args.threads, lambda line: print(line, flush=True)
    )
    raws = [limit for one in found for limit in one.limits]
    report: dict[str, Any] = {
        "command": " ".join(["python", "bench/compute.py", *sys.argv[1:]]),
        "machine": about,
        "conditions": had,
        "model": model.name,
        "threads": args.threads,
        "rounds": args.rounds,
        "pairs": args.pairs,
        "seconds": round(time.perf_counter() - started, 1),
        "raw": {key: round(median(row[key] for row in raws), 2) for key in raws[0]},
        "targets": targets(found),
        "breakdown_ms": asyncio.run(breakdown(model, args.threads, found)),
        "streamed": slow,
        "ways": {one.way.name: one.as_json() for one in found},
    }
    lines = table(found, report)
    print("\n".join(lines))
    if not args.only:
        args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_between(args.docs, lines)


if __name__ == "__main__":
    main()
