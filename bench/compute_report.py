"""What bench/compute.py found: ratios within pairs, promises, and the tables of docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

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
    head_first: bool = False
    """The head has the first layers, not the last ones beside the output."""


@dataclass
class Found:
    """Rows of one way and of the raw loops right before it."""

    way: Way
    rows: list[Row] = field(default_factory=list)
    limits: list[Row] = field(default_factory=list)
    streams: list[Row] = field(default_factory=list)

    def middle(self) -> Row:
        found = {key: median(row[key] for row in self.rows) for key in self.rows[0]}
        return {**found, **self.joint()}

    def joint(self) -> Row:
        if not self.streams:
            return {}
        return {key: median(row[key] for row in self.streams) for key in self.streams[0]}

    def spread(self, key: str) -> tuple[float, float]:
        """Lower and upper quartile of the pairs' ratios."""
        ordered = sorted(row[key] / limit[key] for row, limit in zip(self.rows, self.limits, strict=True))
        return ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]

    def ratio(self, key: str) -> float:
        return median(row[key] / limit[key] for row, limit in zip(self.rows, self.limits, strict=True))

    def as_json(self) -> dict[str, Any]:
        ratios = {key: round(self.ratio(key), 3) for key in ("prefill", "decode", "best")}
        rows: list[Row] = [{key: round(value, 3) for key, value in row.items()} for row in self.rows]
        limits: list[Row] = [{key: round(value, 3) for key, value in row.items()} for row in self.limits]
        joint = [{key: round(value, 3) for key, value in row.items()} for row in self.streams]
        return {"of_raw": ratios, "pairs": rows, "raw_before_each": limits, "streams": joint}


def targets(found: Sequence[Found]) -> list[dict[str, Any]]:
    """What was promised, and what this run had."""
    by_kind = {(one.way.kind, one.way.devices, one.way.share): one for one in found if not one.way.head_first}
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
        gain = median(row["streams_4"] / row["streams_1"] for row in one.streams)
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
        f"commit {about['commit']}; `{report['command']}`, {len(found[0].rows)} pairs each, load average "
        f"{about['load_average']} at the start; {conditions_text(report['conditions'])}. The raw loop had "
        f"{report['raw']['prefill']:.0f} and {report['raw']['decode']:.1f} tokens/s (medians) with {report['threads']} "
        f"threads. Quartiles are of the pairs' ratios.",
        "",
        "| way | prefill 512, tokens/s | of raw | decode, tokens/s | of raw | quartiles | of raw, fastest tenth |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        row = one.middle()
        lines.append(
            f"| {one.way.name} | {row['prefill']:.0f} | {one.ratio('prefill'):.2f} | {row['decode']:.1f} "
            f"| **{one.ratio('decode'):.2f}** | {' – '.join(f'{at:.2f}' for at in one.spread('decode'))} "
            f"| {one.ratio('best'):.2f} |"
        )
    streamed = [one for one in found if one.way.streams]
    if streamed:
        lines += ["", "| tokens/s of all streams together | 1 | 4 | 8 |", "|---|---:|---:|---:|"]
        for one in streamed:
            row = one.middle()
            cells = [f"{row[f'streams_{n}']:.1f}" if f"streams_{n}" in row else "–" for n in (1, 4, 8)]
            lines.append(f"| {one.way.name} | {' | '.join(cells)} |")
    lines += _breakdown(report["breakdown_ms"])
    slow = report["streamed"]
    mb = {
        name: round(value / 1e6)
        for name, value in slow.items()
        if name.endswith(("_bytes", "_peak_bytes", "_max"))
    }
    word = "were" if slow["tokens_are_those_of_all_weights"] else "**were not**"
    lines += [
        "",
        f"`streamed` with a limit of {mb['limit_bytes']} MB, a quarter of the model: the engine had at most "
        f"{mb['serving_resident_peak_bytes']} MB resident (allowed {mb['resident_bytes_max']}; "
        f"{mb['loading_resident_peak_bytes']} while loading), {slow['decode']:.2f} tokens/s; its tokens "
        f"{word} those of all weights in memory.",
    ]
    lines += ["", "| promised | at least | found | |", "|---|---:|---:|---|"]
    for goal in report["targets"]:
        word = "held" if goal["held"] else "**missed**"
        lines.append(f"| {goal['what']} | {goal['at_least']} | {goal['found']:.2f} | {word} |")
    return lines


def conditions_text(had: dict[str, Any]) -> str:
    ahead = f"autogroup {had['autogroup_nice']}, nice {had['nice']}"
    return f"priority: {ahead}; every process with `GOMP_SPINCOUNT={had['GOMP_SPINCOUNT']}`"


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
