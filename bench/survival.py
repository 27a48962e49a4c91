"""Fifty answers whose stages are killed, frozen or leave, each at a random token: do they come out whole and equal?

    python bench/survival.py [--runs 50] [--seed 1] [--only kill|freeze|leave] [--json FILE]

A pipeline of three real node processes with a spare one, the demo model, greedy or seeded sampling. Every run
asks twice: undisturbed, and with one stage hurt after a random number of pieces. Every wait is bounded, every
process is ended. `--seed` and the number of a run say exactly what it did: `--first 17 --runs 1` does run 17 again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from nodes import ROOT, Answer, BenchError, Mesh, Node, ask, machine, mesh_of

from p2pnode.errors import P2PNodeError

MODEL = "p2pnode-demo"
NAMES = ("alpha", "beta", "gamma", "delta")
PROMPTS = (
    "Once upon a time there was a fox who",
    "Tell me a story about three small computers.",
    "The old lighthouse keeper looked out at the sea and",
    "A recipe for bread begins with",
    "What is a mesh?",
)
TOKENS = 120
ANSWER_S_MAX = 60.0
PIECES_MIN = 12
RESUME_MS_MAX = 3000
ACTIONS = ("kill", "freeze", "leave")


@dataclass
class Run:
    """What one run did and how it ended."""

    number: int
    action: str
    victim: str
    after_pieces: int
    pieces: int
    stages: tuple[str, ...]
    sampling: Mapping[str, float]
    prompt: str
    outcome: str = ""
    resumed_ms: int | None = None
    detected_ms: int | None = None
    differs_at: int | None = None
    """First piece that is not the undisturbed one's."""

    @property
    def is_good(self) -> bool:
        return self.outcome in ("equal", "equal, finished before the loss was felt")


def wish_of(prompt: str, sampling: Mapping[str, float]) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "max_tokens": TOKENS, "mode": "pipeline", **sampling}


def ask_within(head: Node, wish: Mapping[str, Any], trouble: threading.Event, after: int) -> Answer | None:
    """The answer, or None when it did not end in time; `trouble` is set after so many pieces."""
    answer, found = Answer(), []

    def watch() -> None:
        while not trouble.is_set() and not found:
            if len(answer.at_s) >= after:
                trouble.set()
            time.sleep(0.0005)

    def work() -> None:
        try:
            ask(head, wish, answer)
        except (P2PNodeError, BenchError) as error:
            answer.error = error
        found.append(answer)

    threads = [threading.Thread(target=work, daemon=True), threading.Thread(target=watch, daemon=True)]
    for thread in threads:
        thread.start()
    threads[0].join(ANSWER_S_MAX)
    is_done = bool(found)
    found.append(answer)
    return answer if is_done else None


def hurt(node: Node, action: str) -> None:
    number = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "leave": signal.SIGTERM}[action]
    if action == "leave":
        os.kill(node.process.pid, number)
        return
    # A device that loses power or sleeps takes its engines with it; each is a process group of its own.
    for pid in family(node.process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def family(pid: int) -> list[int]:
    """A process and all that come from it, itself first."""
    parent = psutil.Process(pid)
    return [pid, *(child.pid for child in parent.children(recursive=True))]


def replace(mesh: Mesh, victim: Node, name: str) -> None:
    """A fresh device takes the place of the hurt one, which is ended with its engines: frozen ones cannot notice."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for pid in family(victim.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    mesh.drop(victim)
    mesh.add(name)


def recovery_times(head: Node, known: set[int]) -> dict[str, int]:
    """Of the newest recovery in the head's record that was not there before."""
    times: dict[str, int] = {}
    for entry in head.events("StageRecovered"):
        if entry["index"] not in known:
            known.add(entry["index"])
            times = entry["data"]
    return times


def one_run(mesh: Mesh, number: int, rng: random.Random, known: set[int], only: str, *, greedy: bool) -> Run:
    head = mesh.head
    others = rng.sample(mesh.nodes[1:], 2)
    action, victim = rng.choice(ACTIONS), rng.choice(others)
    action = only or action
    sampling: dict[str, float] = rng.choice(
        [{"temperature": 0}, {"temperature": 0.8, "seed": rng.randrange(1, 10_000)}]
    )
    if greedy:
        sampling = {"temperature": 0}
    share = rng.random()
    names = [head.name, *(node.name for node in others)]
    head.apply(model=MODEL, mode="pipeline", stages=3, devices=names)
    for prompt in rng.sample(PROMPTS, len(PROMPTS)):
        wish = wish_of(prompt, sampling)
        whole = ask_within(head, wish, threading.Event(), TOKENS + 1)
        if whole is None or whole.error is not None:
            raise BenchError(f"the undisturbed answer did not end: {whole and whole.error}")
        if len(whole.text) >= PIECES_MIN:
            break  # long enough to be hurt in the middle
    pieces = len(whole.text)
    after = max(1, int(share * (pieces - 2)))
    run = Run(number, action, victim.name, after, pieces, tuple(names), sampling, prompt)
    trouble = threading.Event()

    def make_trouble() -> None:
        trouble.wait(ANSWER_S_MAX)
        hurt(victim, action)

    maker = threading.Thread(target=make_trouble, daemon=True)
    maker.start()
    answer = ask_within(head, wish, trouble, after)
    trouble.set()
    maker.join()
    times = recovery_times(head, known)
    run.resumed_ms, run.detected_ms = times.get("resumed_ms"), times.get("detected_ms")
    if answer is None:
        run.outcome = f"did not end within {ANSWER_S_MAX:.0f} s"
    elif answer.error is not None:
        run.outcome = f"error: {answer.error}"
    elif "".join(answer.text) != "".join(whole.text):
        pairs = enumerate(zip(answer.text, whole.text, strict=False))
        run.differs_at = next((n for n, (mine, theirs) in pairs if mine != theirs), len(answer.text))
        run.outcome = "another text"
    else:
        run.outcome = "equal" if times else "equal, finished before the loss was felt"
    for plan in head.api.get("/plans")["plans"]:
        if plan.get("live"):
            head.release(plan["plan_id"])
    replace(mesh, victim, f"device-{number}")
    for node in mesh.nodes:
        node.online(len(NAMES))
    return run


def summary(runs: list[Run]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for action in ACTIONS:
        mine = [run for run in runs if run.action == action]
        times = sorted(run.resumed_ms for run in mine if run.resumed_ms is not None)
        if mine:
            found[action] = {
                "runs": len(mine),
                "good": sum(run.is_good for run in mine),
                "resumed_ms_median": median(times) if times else None,
                "resumed_ms_max": times[-1] if times else None,
            }
    times = sorted(run.resumed_ms for run in runs if run.resumed_ms is not None)
    found["all"] = {
        "runs": len(runs),
        "good": sum(run.is_good for run in runs),
        "resumed_ms_median": median(times) if times else None,
        "resumed_ms_max": times[-1] if times else None,
    }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--first", type=int, default=1, help="number of the first run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=ACTIONS, default="")
    parser.add_argument("--greedy", action="store_true", help="never sample")
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "survival.json")
    args = parser.parse_args()
    about, started = machine(), time.perf_counter()
    runs: list[Run] = []
    number = args.first
    while len(runs) < args.runs:
        known: set[int] = set()
        with mesh_of(NAMES) as mesh:
            while len(runs) < args.runs:
                run = one_run(
                    mesh, number, random.Random(f"{args.seed}:{number}"), known, args.only, greedy=args.greedy
                )
                runs.append(run)
                number += 1
                resumed = f"{run.resumed_ms} ms" if run.resumed_ms is not None else "–"
                print(f"{run.number:3} {run.action:7} {run.victim:6} after {run.after_pieces:3} of {run.pieces:3}: "
                      f"{run.outcome}{'' if run.differs_at is None else f' from piece {run.differs_at}'}, "
                      f"resumed {resumed}", flush=True)  # fmt: skip
                if not run.is_good:
                    break  # whatever state it left behind must not spoil the next runs
    report = {
        "command": " ".join(["python", "bench/survival.py", *sys.argv[1:]]),
        "machine": about,
        "seconds": round(time.perf_counter() - started, 1),
        "summary": summary(runs),
        "runs": [asdict(run) for run in runs],
    }
    print(json.dumps(report["summary"], indent=1))
    args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    total = summary(runs)["all"]
    resumed = total["resumed_ms_median"]
    return 0 if total["good"] == total["runs"] and (resumed is None or resumed <= RESUME_MS_MAX) else 1


if __name__ == "__main__":
    sys.exit(main())
