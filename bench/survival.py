"""Fifty answers whose stages are killed, frozen, cut off, slowed or leave, each at a random token: whole and equal?

    python bench/survival.py [--runs 50] [--seed 1] [--only kill|freeze|leave|cut|slow] [--json FILE]

A pipeline of three real node processes with a spare one, the demo model, greedy or seeded sampling. Every run
asks twice: undisturbed, and with one stage hurt after a random number of pieces. Devices that are cut off or slowed
live on; all ways in those meshes lead through relays, so no lanes are used there, and those runs come last. Every wait
is bounded, every process is ended.
`--seed` and the number of a run say exactly what it did: `--first 17 --runs 1` does run 17 again.
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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.nodes import ROOT, Answer, BenchError, Mesh, Node, ask, machine, mesh_of
from bench.ways import Ways
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
ACTIONS = ("kill", "freeze", "leave", "cut", "slow")
BY_WAYS = ("cut", "slow")
LATE_S = 0.1
"""What each datagram of a slowed device takes longer: a phone at the edge of a wireless network."""


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
        return self.outcome.startswith("equal")


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


@dataclass
class Field:
    """A mesh to run on; with `ways` every device is reached through a relay."""

    mesh: Mesh
    ways: Ways | None = None
    ports: dict[str, int] = field(default_factory=dict)

    def add(self, name: str) -> None:
        if self.ways is None:
            self.mesh.add(name)
            return
        arguments, listen, self.ports[name] = self.ways.to_new_device()
        self.mesh.add(name, *arguments, listen=listen)

    def hurt(self, node: Node, action: str) -> None:
        if self.ways is None:
            hurt(node, action)
        elif action == "cut":
            self.ways.cut(self.ports[node.name])
        else:
            self.ways.slow(self.ports[node.name], LATE_S)


@contextlib.contextmanager
def field_of(*, by_ways: bool) -> Iterator[Field]:
    if not by_ways:
        with mesh_of(NAMES) as mesh:
            yield Field(mesh)
        return
    with contextlib.ExitStack() as ending:
        ways = Ways()
        ending.callback(ways.close)
        made = Field(ending.enter_context(mesh_of(())), ways)
        for name in NAMES:
            made.add(name)
        for node in made.mesh.nodes:
            node.online(len(NAMES))
        yield made


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


def replace(made: Field, victim: Node, name: str) -> None:
    """A fresh device takes the place of the hurt one, which is ended with its engines: frozen ones cannot notice."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for pid in family(victim.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    made.mesh.drop(victim)
    made.add(name)


def recovery_times(head: Node, known: set[int]) -> dict[str, int]:
    """Of the newest recovery in the head's record that was not there before."""
    times: dict[str, int] = {}
    for entry in head.events("StageRecovered"):
        if entry["index"] not in known:
            known.add(entry["index"])
            times = entry["data"]
    return times


def action_of(seed: int, number: int, only: str) -> str:
    """By its number alone, so that runs on one kind of mesh can be made together."""
    return only or random.Random(f"{seed}:{number}:action").choice(ACTIONS)


def one_run(
    made: Field, number: int, action: str, rng: random.Random, known: set[int], *, greedy: bool
) -> Run:
    mesh, head = made.mesh, made.mesh.head
    others = rng.sample(mesh.nodes[1:], 2)
    victim = rng.choice(others)
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
        made.hurt(victim, action)

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
        late = (
            "equal, on the slowed device" if action == "slow" else "equal, finished before the loss was felt"
        )
        run.outcome = "equal" if times else late
    for plan in head.api.get("/plans")["plans"]:
        if plan.get("live"):
            head.release(plan["plan_id"])
    replace(made, victim, f"device-{number}")
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
    numbers = range(args.first, args.first + args.runs)
    actions = {number: action_of(args.seed, number, args.only) for number in numbers}
    for by_ways in (False, True):
        left = [number for number in numbers if (actions[number] in BY_WAYS) == by_ways]
        while left:
            known: set[int] = set()
            with field_of(by_ways=by_ways) as made:
                while left:
                    number = left.pop(0)
                    rng = random.Random(f"{args.seed}:{number}")
                    run = one_run(made, number, actions[number], rng, known, greedy=args.greedy)
                    runs.append(run)
                    resumed = f"{run.resumed_ms} ms" if run.resumed_ms is not None else "–"
                    print(f"{run.number:3} {run.action:7} {run.victim:6} after {run.after_pieces:3} of {run.pieces:3}: "
                          f"{run.outcome}{'' if run.differs_at is None else f' from piece {run.differs_at}'}, "
                          f"resumed {resumed}", flush=True)  # fmt: skip
                    if not run.is_good:
                        break  # whatever state it left behind must not spoil the next runs
    runs.sort(key=lambda run: run.number)
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
