"""What a token of a local stream costs beside llama.cpp: processor time of head and client, page faults of the engine.

    python bench/token_cost.py [--model MODEL.gguf] [--tokens 300] [--answers 4]

Processor time is counted by the system, so other work on the machine disturbs it less than a clock; least and median
are of windows of 20 tokens. Faults of the first answer are cells that were never written before.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from pathlib import Path
from statistics import median

import psutil
from nodes import Node, mesh_of, random_model

WINDOW = 20


def spent_ns(pid: int) -> int:
    """Processor time of all threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def faults(pid: int) -> int:
    """Pages that were not mapped when they were touched, read from disk or not."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[7]) + int(fields[9])


def huge_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("AnonHugePages:"))


def engine_of(node: Node) -> int:
    """The process that computes: it has the most in memory."""
    children = psutil.Process(node.process.pid).children(recursive=True)
    return int(max(children, key=lambda child: child.memory_info().rss).pid)


def answer(node: Node, engine: int, model: str, first: int, count: int) -> list[tuple[float, float, float]]:
    """Of every window: µs a token of head and of client, faults a token of the engine."""
    body = {
        "model": model, "mode": "local", "stream": True, "temperature": 0, "max_tokens": count,
        "prompt": [300 + first, *range(300, 320)], "logit_bias": dict.fromkeys("012", -100.0),
    }  # fmt: skip
    seen: list[tuple[int, int, int]] = []
    texts = 0
    for event in node.api.stream("/v1/completions", body):
        if any(choice["text"] for choice in event.get("choices", ())):
            if texts % WINDOW == 0:
                seen.append((spent_ns(node.process.pid), time.thread_time_ns(), faults(engine)))
            texts += 1
    return [
        ((b[0] - a[0]) / WINDOW / 1e3, (b[1] - a[1]) / WINDOW / 1e3, (b[2] - a[2]) / WINDOW)
        for a, b in itertools.pairwise(seen)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="GGUF file [default: random weights of TinyLlama's shape]")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--answers", type=int, default=4)
    args = parser.parse_args()
    model = args.model or random_model()
    with mesh_of(["alpha"], threads=os.cpu_count() or 1, model=model) as mesh:
        answer(mesh.head, mesh.head.process.pid, model.stem, 0, 8)
        mesh.rest()
        engine = engine_of(mesh.head)
        print(f"{huge_bytes(engine) / 1e6:.0f} MB of the engine in huge pages")
        for number in range(1, args.answers + 1):
            windows = answer(mesh.head, engine, model.stem, number, args.tokens)
            head, client, missed = zip(*windows, strict=True)
            print(
                f"answer {number}: head {min(head):.0f} µs a token at least, {median(head):.0f} in the median; "
                f"client {min(client):.0f}, {median(client):.0f}; faults of the engine {median(missed):.2f} a token",
                flush=True,
            )


if __name__ == "__main__":
    main()
