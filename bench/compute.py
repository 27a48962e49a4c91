"""Every way to compute, side by side in one run: the raw llama.cpp loop (the limit), one node, pipelines and
tensor groups of real nodes over QUIC on loopback, and llama.cpp's own RPC.

    python bench/compute.py [--all] [--rounds 3] [--only NAME] [--model MODEL.gguf] [--json FILE] [--docs FILE]

A raw loop runs right before every other way, and ratios are taken between these two: other work on the machine
hits both. Reported are medians over the rounds. Nodes are asked over HTTP and timed where the answer arrives.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from nodes import ROOT, Answer, Mesh, Node, ask, ask_side_by_side, machine, mesh_of, random_model
from parts import CONTEXT, Line, Ranks, measure

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.gguf import open_model
from p2pnode.compute.rpc import RpcServer

NAMES = ("alpha", "beta", "gamma", "delta")
PROMPT, COUNT = 512, 64
STREAM_PROMPT, STREAM_COUNT = 16, 40
BEGIN, END = "<!-- compute:begin -->", "<!-- compute:end -->"
Row = dict[str, float]


@dataclass(frozen=True)
class Way:
    """One way to compute; `threads` of each process as a share of the raw loop's."""

    name: str
    kind: str
    share: int = 1
    devices: int = 1
    in_default: bool = True
    streams: tuple[int, ...] = ()


WAYS = (
    Way("local", "local", streams=(4, 8)),
    Way("pipeline of 2", "pipeline", devices=2),
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


def tokens(count: int, shift: int = 0) -> list[int]:
    return [300 + (n + 7 * shift) % 500 for n in range(count)]


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
        names = [*names[1:], names[0]]
        edges = [layers * n // way.devices for n in range(way.devices + 1)]
        wish = {"model": model, "blocks": list(zip(names, edges, edges[1:], strict=False))}
    plan = mesh.head.apply(**wish)
    try:
        yield mesh.head
    finally:
        mesh.head.release(plan["plan_id"])


def measure_node(head: Node, way: Way, model: str) -> Row:
    wish = {"model": model, "mode": way.kind, "logit_bias": {"2": -100.0}}
    ask(head, {**wish, "prompt": tokens(64), "max_tokens": 4})
    row = rates(ask(head, {**wish, "prompt": tokens(PROMPT), "max_tokens": COUNT}))
    for streams in way.streams:
        wishes = [
            {**wish, "prompt": tokens(STREAM_PROMPT, n), "max_tokens": STREAM_COUNT} for n in range(streams)
        ]
        row[f"streams_{streams}"] = joint_rate(ask_side_by_side(head, wishes))
    return row


# --- llama.cpp by itself ---------------------------------------------------------------------------
def raw(model: Path, threads: int) -> Row:
    """The plain binding's loop, in a process of its own."""
    import subprocess

    command = [sys.executable, str(Path(__file__).with_name("raw_loop.py")), str(model)]
    numbers = (threads, PROMPT, COUNT, 1)
    found = subprocess.run([*command, *map(str, numbers)], capture_output=True, text=True, check=True)
    values = json.loads(found.stdout)
    steps = sorted(values["steps_s"])
    return {"prefill": values["prefill"], "decode": 1 / median(steps), "best": 1 / steps[len(steps) // 10]}


async def rpc(model: Path, split: str, threads: int) -> Row:
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
        found = await measure(line, PROMPT, COUNT)
    finally:
        await engine.close()
        for server in servers:
            await server.close()
    return {"prefill": found.prefill, "decode": found.decode, "best": found.decode_best}


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
        elif way.kind in ("local", "pipeline"):
            line = await Line.load(index, model, way.devices, each)
        else:
            continue
        try:
            await measure(line, 64, 4)
            measured = await measure(line, PROMPT, COUNT)
        finally:
            await line.close()
        row, count = measured.row(), len(measured.steps_s)
        compute_ms = row["compute_ms"]
        step_ms = 1e3 / measured.decode
        spent = {"compute": compute_ms, "tap": row["tap_ms"], "sample": measured.sample_ns / count / 1e6}
        spent["hand_over"] = max(0.0, sum(measured.steps_s) / count * 1e3 - sum(spent.values()))
        scale = step_ms / max(1e-9, sum(spent.values()))
        parts[way.name] = {name: round(value * scale, 3) for name, value in spent.items()}
        parts[way.name]["nodes_and_wire"] = round(1e3 / one.middle()["decode"] - step_ms, 3)
    return parts


# --- the run ---------------------------------------------------------------------------------------
@dataclass
class Found:
    """Rows of one way and of the raw loops right before it."""

    way: Way
    rows: list[Row] = field(default_factory=list)
    limits: list[Row] = field(default_factory=list)

    def middle(self) -> Row:
        return {key: median(row[key] for row in self.rows) for key in self.rows[0]}

    def ratio(self, key: str) -> float:
        return median(row[key] / limit[key] for row, limit in zip(self.rows, self.limits, strict=True))

    def as_json(self) -> dict[str, Any]:
        ratios = {key: round(self.ratio(key), 3) for key in ("prefill", "decode", "best")}
        rows: list[Row] = [{key: round(value, 3) for key, value in row.items()} for row in self.rows]
        limits: list[Row] = [{key: round(value, 3) for key, value in row.items()} for row in self.limits]
        return {"of_raw": ratios, "rounds": rows, "raw_before_each": limits}


def run(
    ways: Sequence[Way], model: Path, rounds: int, threads: int, say: Callable[[str], None]
) -> list[Found]:
    index, _ = open_model(model)
    found = [Found(way) for way in ways]
    with ExitStack() as stack:
        meshes: dict[int, Mesh] = {}
        for share in sorted({way.share for way in ways if not way.kind.startswith("rpc")}):
            count = max(way.devices for way in ways if way.share == share and not way.kind.startswith("rpc"))
            each = max(1, threads // share)
            meshes[share] = stack.enter_context(mesh_of(NAMES[:count], threads=each, model=model))
        for number in range(rounds):
            for one in found:
                way = one.way
                one.limits.append(raw(model, threads))
                if way.kind.startswith("rpc"):
                    one.rows.append(
                        asyncio.run(rpc(model, way.kind.split()[1], max(1, threads // way.share)))
                    )
                else:
                    with planned(meshes[way.share], way, model.stem, index.layer_count) as head:
                        one.rows.append(measure_node(head, way, model.stem))
                row, limit = one.rows[-1], one.limits[-1]
                say(
                    f"{number + 1}/{rounds} {way.name:54} prefill {row['prefill']:6.1f} of {limit['prefill']:6.1f}"
                    f"   decode {row['decode']:6.2f} of {limit['decode']:6.2f}"
                )
    return found


def targets(found: Sequence[Found]) -> list[dict[str, Any]]:
    """What was promised, and what this run had."""
    by_kind = {(one.way.kind, one.way.devices, one.way.share): one for one in found}
    promised: list[tuple[str, float, float | None]] = []

    def decode(key: tuple[str, int, int]) -> float | None:
        return by_kind[key].ratio("decode") if key in by_kind else None

    local, two = ("local", 1, 1), ("pipeline", 2, 1)
    halves, group, theirs = ("pipeline", 2, 2), ("tensor", 2, 2), ("rpc tensor", 2, 2)
    promised.append(("local, decode, of raw", 0.98, decode(local)))
    promised.append(("pipeline of 2, decode, of raw", 0.93, decode(two)))
    promised.append(("tensor of 2, decode, of raw", 0.65, decode(group)))
    if group in by_kind and theirs in by_kind:
        gain = by_kind[group].ratio("decode") / by_kind[theirs].ratio("decode")
        promised.append(("tensor of 2, decode, of llama.cpp RPC TENSOR", 2.0, gain))
    if halves in by_kind:
        one = by_kind[halves]
        promised.append(("512 tokens of prompt over 2 nodes, of raw", 0.85, one.ratio("prefill")))
        gain = median(row["streams_4"] / row["streams_1"] for row in one.rows)
        promised.append(("4 streams over 2 stages, of one stream", 2.0, gain))
    return [
        {"what": what, "at_least": least, "found": round(value, 3), "held": value >= least}
        for what, least, value in promised
        if value is not None
    ]


# --- what is written -------------------------------------------------------------------------------
def table(found: Sequence[Found], report: dict[str, Any]) -> list[str]:
    about = report["machine"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, {about['system']}, llama-cpp-python {about['llama_cpp_python']}, "
        f"commit {about['commit']}; `{report['command']}`, {report['rounds']} rounds, load average "
        f"{about['load_average']} at the start. The raw loop had {report['raw']['prefill']:.0f} and "
        f"{report['raw']['decode']:.1f} tokens/s (medians) with {report['threads']} threads.",
        "",
        "| way | prefill 512, tokens/s | of raw | decode, tokens/s | of raw | of raw, fastest tenth |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        row = one.middle()
        lines.append(
            f"| {one.way.name} | {row['prefill']:.0f} | {one.ratio('prefill'):.2f} | {row['decode']:.1f} "
            f"| **{one.ratio('decode'):.2f}** | {one.ratio('best'):.2f} |"
        )
    streamed = [one for one in found if one.way.streams]
    if streamed:
        lines += ["", "| tokens/s of all streams together | 1 | 4 | 8 |", "|---|---:|---:|---:|"]
        for one in streamed:
            row = one.middle()
            cells = [f"{row[f'streams_{n}']:.1f}" if f"streams_{n}" in row else "–" for n in (1, 4, 8)]
            lines.append(f"| {one.way.name} | {' | '.join(cells)} |")
    lines += _breakdown(report["breakdown_ms"])
    lines += ["", "| promised | at least | found | |", "|---|---:|---:|---|"]
    for goal in report["targets"]:
        word = "held" if goal["held"] else "**missed**"
        lines.append(f"| {goal['what']} | {goal['at_least']} | {goal['found']:.2f} | {word} |")
    return lines


def _breakdown(parts: dict[str, Row]) -> list[str]:
    """Where a decoded token's time went."""
    if not parts:
        return []
    names = ("compute", "tap", "sample", "hand_over", "nodes_and_wire")
    head = " | ".join(name.replace("_", " ") for name in names)
    lines = ["", f"| ms of a decoded token | {head} |", "|---|" + "---:|" * len(names)]
    for way, row in parts.items():
        lines.append(f"| {way} | {' | '.join(f'{row[name]:.2f}' for name in names)} |")
    return lines


def write_between(path: Path, lines: Sequence[str]) -> None:
    """Replace what is between the markers; the words around it are people's."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="GGUF file [default: random weights of TinyLlama's shape]")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--all", action="store_true", help="also pipelines of 3 and 4 and the hybrid")
    parser.add_argument("--only", default="", help="ways whose kind or name contains this")
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "compute.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "performance.md")
    args = parser.parse_args()
    ways = [way for way in WAYS if (way.in_default or args.all) and args.only in f"{way.kind} {way.name}"]
    model = args.model or random_model()
    about, started = machine(), time.perf_counter()
    found = run(ways, model, args.rounds, args.threads, lambda line: print(line, flush=True))
    raws = [limit for one in found for limit in one.limits]
    report: dict[str, Any] = {
        "command": " ".join(["python", "bench/compute.py", *sys.argv[1:]]),
        "machine": about,
        "model": model.name,
        "threads": args.threads,
        "rounds": args.rounds,
        "seconds": round(time.perf_counter() - started, 1),
        "raw": {key: round(median(row[key] for row in raws), 2) for key in raws[0]},
        "targets": targets(found),
        "breakdown_ms": asyncio.run(breakdown(model, args.threads, found)),
        "ways": {one.way.name: one.as_json() for one in found},
    }
    lines = table(found, report)
    print("\n".join(lines))
    if not args.only:
        args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_between(args.docs, lines)


if __name__ == "__main__":
    main()
