"""Random meshes: is what was chosen as fast as the best single device, and did its prediction hold?

    python -m bench.meshes [--count 10] [--first 1] [--seed 1] [--seconds 480] [--out bench/results/meshes.json]

Each mesh is made by its seed: two or three real nodes with different numbers of threads, perhaps with little memory,
a model of one of some shapes with random weights, and a delaying UDP relay before every node, so that all of them
are equally far apart. Nodes measure themselves one after the other, as devices of their own would. Then the head is
asked without any plan or wish, and may answer alone, with others, or have another device answer whole
(`serve.elsewhere` is `faster`). The best single device is the fastest of those that hold the model alone, each asked
at its own door, without any mesh or relay between; a device that was chosen alone has the figure it had for the head,
since what head, relays and client take from its cores here they would not take from a device of its own. What it has
at its own door stands beside that, and predictions are held against it: they are of the device.

All nodes share the cores of this machine, which devices of their own would not. One answer keeps one engine busy at
a time, so what is shared is what nodes and relays need for themselves; threads of an engine that waits spin shortly
(GOMP_SPINCOUNT as below). A mesh whose engines compute side by side would be measured too slow here, never too fast.
Answers during which other programs had more than a tenth of a core are asked again, some times, while there is time for
that. A mesh that cannot be made or asked in a slow minute is made once more, and stands in the result with its reason
if that fails too. The result is written after every mesh.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from nodes import MODELS, ROOT, Answer, BenchError, Mesh, Node, ask, machine, model_of
from others import TRIES_MAX, undisturbed

from p2pnode.errors import P2PNodeError

PROMPT_TOKENS, TOKENS, ANSWERS = 32, 64, 3
RATIO_MIN, ERROR_MAX = 0.9, 0.2
WAIT_S_MAX = 60.0
RUN_S_MAX = 480.0
"""A whole run, unless it is told otherwise: what is measured by then is stored, and says how many meshes that were."""
SHAPES = (("smollm-135m", "q8_0"), ("smollm-135m", "f16"), ("tinyllama", "q4_k_m"))
SPINS = "30000"
"""What engines choose on a machine that is otherwise free; a load left by other work must not decide it."""


@dataclass
class Case:
    """What one seed says."""

    number: int
    shape: str
    weights: str
    rtt_ms: float
    threads: list[int]
    memory_share: list[float | None]
    """Of the model's size, what each device may use; None for all it has."""


@dataclass
class Result:
    case: Case
    mode: str = ""
    stages: list[list[Any]] = field(default_factory=list)
    predicted_tokens_per_s: float = 0.0
    measured_tokens_per_s: float = 0.0
    error: float = 0.0
    """Measured (at its own door, where one device alone was chosen) over predicted, less one."""
    singles_tokens_per_s: dict[str, float] = field(default_factory=dict)
    """Each device alone; those that cannot hold the model are missing."""
    door_tokens_per_s: float | None = None
    """Of the device that was chosen alone, where it is not the head: asked at its own door."""
    ratio: float | None = None
    """Of what was chosen to the best single device; None where none holds the model."""
    refused: str = ""
    """Why nothing was chosen."""
    failed: str = ""
    """Why it could not be measured, twice."""
    seconds: float = 0.0
    others_share_max: float = 0.0
    """Of a core, what other programs had during the answer they disturbed most."""


def case_of(number: int, seed: int) -> Case:
    rng = random.Random(f"{seed}:{number}")
    shape, weights = rng.choice(SHAPES)
    count = rng.choice((2, 2, 3))
    shares = [rng.choice((None, None, 0.75)) for _ in range(count)]
    rtt_ms = rng.choice((0.0, 1.0, 4.0, 10.0, 20.0))
    return Case(number, shape, weights, rtt_ms, [rng.choice((1, 2)) for _ in range(count)], shares)


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def relay_to(port: int, rtt_ms: float) -> Iterator[int]:
    """A relay before a node's port; the port to announce."""
    listen = free_udp_port()
    command = [sys.executable, str(ROOT / "tools" / "udp_relay.py"), "--to", f"127.0.0.1:{port}",
               "--listen", f"127.0.0.1:{listen}", "--latency-ms", str(rtt_ms / 2)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield listen
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def made(case: Case, model: Path) -> Iterator[Mesh]:
    folder = Path(tempfile.mkdtemp(prefix="p2pnode-bench-"))
    mesh = Mesh(folder)
    with contextlib.ExitStack() as ending:
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        ending.callback(mesh.close)
        for number, (threads, share) in enumerate(zip(case.threads, case.memory_share, strict=True)):
            port = free_udp_port()
            outside = ending.enter_context(relay_to(port, case.rtt_ms))
            arguments = ["--model", str(model), "--announce", f"/ip4/127.0.0.1/udp/{outside}/quic-v1"]
            if share is not None:
                arguments += ["--memory-max", str(int(model.stat().st_size * share))]
            listen = f"/ip4/127.0.0.1/udp/{port}/quic-v1"
            node = mesh.add(f"device{number}", *arguments, threads=threads, listen=listen)
            until_measured(node)  # before the next one starts: they share this machine's cores
            node.api.post("/settings", {"key": "device.timing", "value": "once"})
        for node in mesh.nodes:
            node.online(len(mesh.nodes))
        until_linked(mesh.head, len(mesh.nodes) - 1)
        yield mesh


def until_measured(node: Node) -> None:
    manifests = {m["manifest"] for m in node.api.get("/models")["models"]}
    wait_for(f"{node.name} to measure itself", lambda: manifests <= set(
        node.api.get("/status")["capability"].get("rates", {})))  # fmt: skip


def until_linked(head: Node, count: int) -> None:
    wait_for(
        "the links to be timed", lambda: sum("link" in p for p in head.api.get("/peers")["peers"]) == count
    )


def wait_for(what: str, holds: Any) -> None:
    deadline_s = time.monotonic() + WAIT_S_MAX
    while not holds():
        if time.monotonic() > deadline_s:
            raise BenchError(f"waited {WAIT_S_MAX:.0f} s for {what}")
        time.sleep(0.1)


def speed(
    node: Node, wish: dict[str, Any], result: Result, tries: int = TRIES_MAX
) -> tuple[list[float], Answer]:
    """Tokens a second from the first to the last of some answers; one before them warms up. And the last answer."""
    ask(node, {**wish, "max_tokens": 8})
    found = [undisturbed(lambda: ask(node, wish), tries) for _ in range(ANSWERS)]
    result.others_share_max = max(result.others_share_max, *(round(share, 3) for _, share in found))
    return [_speed(answer) for answer, _ in found], found[-1][0]


def _speed(answer: Answer) -> float:
    if len(answer.at_s) < TOKENS // 2:
        raise BenchError(f"an answer of {TOKENS} tokens came in {len(answer.at_s)} pieces")
    # A piece may hold several tokens (of one character), and a random model may end early.
    tokens = round(answer.end["tokens_per_s"] * answer.end["decode_s"])
    return (tokens - 1) / (answer.at_s[-1] - answer.at_s[0])


def fits(node: Node, model: str) -> bool:
    """Whether a device would compute the model alone."""
    try:
        node.api.post("/plan", {"model": model, "mode": "local"})
    except P2PNodeError:
        return False
    return True


def expected(head: Node, model: str) -> dict[str, float]:
    """Tokens a second the head expects: by stages for its own plan, by name for devices that would answer whole."""
    found = {}
    try:
        plan = head.api.post("/plan", {"model": model, "why": True})
        found[str(where(plan))] = float(plan["prediction"]["tokens_per_s"])
        rejections = plan["rejections"]
    except P2PNodeError as error:
        rejections = error.details.get("rejections", [])
    for rejection in rejections:
        name = rejection["candidate"].removeprefix("whole by ")
        if name != rejection["candidate"] and "tokens_per_s" in rejection["numbers"]:
            found[name] = float(rejection["numbers"]["tokens_per_s"])
    return found


def run(case: Case, model: Path, tries: int = TRIES_MAX) -> Result:
    result = Result(case)
    name = model.stem
    wish = {"model": name, "prompt": list(range(300, 300 + PROMPT_TOKENS)), "max_tokens": TOKENS}
    with made(case, model) as mesh:
        mesh.head.api.post("/command/set", {"key": "serve.elsewhere", "value": "faster"})
        predictions = expected(mesh.head, name)
        try:
            measured, answer = speed(mesh.head, wish, result, tries)
        except P2PNodeError as error:
            result.refused = str(error)
            return result
        result.mode = answer.end["mode"]
        result.stages = [[stage["name"], *stage["layers"]] for stage in answer.end["stages"]]
        for node in mesh.nodes:
            if fits(node, name):
                alone, _ = speed(node, {**wish, "mode": "local"}, result, tries)
                if node is mesh.head and result.mode == "local" and result.stages[0][0] == node.name:
                    measured += alone  # one plan, one figure
                else:
                    result.singles_tokens_per_s[node.name] = round(statistics.median(alone), 2)
        # Once more after the others: the machine may have become quicker or slower meanwhile.
        measured += speed(mesh.head, wish, result, tries)[0]
    found = statistics.median(measured)
    chosen = str(result.stages[0][0]) if result.mode == "local" else ""
    if chosen:
        result.door_tokens_per_s = result.singles_tokens_per_s.get(chosen)
        result.singles_tokens_per_s[chosen] = round(found, 2)
    # A tensor group is one stage in a plan and one for each rank in an answer; what is no device alone is the plan.
    # A ring whose one stage is another device looks like that device alone, and is not.
    asked_whole = chosen if chosen != mesh.head.name else ""
    predicted = (
        predictions.get(asked_whole)
        or predictions.get(str(result.stages))
        or next(iter(predictions.values()))
    )
    result.predicted_tokens_per_s = round(predicted, 2)
    result.measured_tokens_per_s = round(found, 2)
    result.error = round((result.door_tokens_per_s or found) / predicted - 1, 3)
    if result.singles_tokens_per_s:
        result.ratio = round(found / max(result.singles_tokens_per_s.values()), 3)
    return result


def run_or_say(case: Case, model: Path, left_s: float) -> Result:
    """Once more when it could not be made or asked; never an end of the whole run."""
    started_s, failed = time.perf_counter(), ""
    tries = (
        TRIES_MAX if left_s > 0.5 * RUN_S_MAX else 2
    )  # a loud hour must not eat the time of the last meshes
    for _ in range(2):
        try:
            found = run(case, model, tries)
        except (BenchError, P2PNodeError, OSError, subprocess.SubprocessError) as error:
            failed = f"{type(error).__name__}: {error}"
            if time.perf_counter() - started_s > left_s:
                break
            continue
        found.seconds = round(time.perf_counter() - started_s, 1)
        return found
    return Result(case, failed=failed, seconds=round(time.perf_counter() - started_s, 1))


def where(plan: dict[str, Any]) -> list[list[Any]]:
    """Devices and layers of each stage."""
    return [[*stage["devices"], *stage["layers"]] for stage in plan["stages"]]


def summary(results: list[Result]) -> dict[str, Any]:
    planned = [r for r in results if r.mode]
    rated = [r.ratio for r in planned if r.ratio is not None]
    return {
        "meshes": len(results),
        "refused": sum(bool(r.refused) for r in results),
        "failed": sum(bool(r.failed) for r in results),
        "with_a_single_device_that_fits": len(rated),
        "not_slower_than_0.9_of_it": sum(ratio >= RATIO_MIN for ratio in rated),
        "within_20_percent": sum(abs(r.error) <= ERROR_MAX for r in planned),
        "error_median": round(statistics.median(r.error for r in planned), 3) if planned else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=RUN_S_MAX)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "meshes.json")
    args = parser.parse_args()
    os.environ["GOMP_SPINCOUNT"] = SPINS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # its nodes end with it
    MODELS.mkdir(parents=True, exist_ok=True)
    numbers = range(args.first, args.first + args.count)
    cases = [case_of(number, args.seed) for number in numbers]
    for case in cases:  # made once, before the time of the run begins
        model_of(case.shape, case.weights)
    about, started_s, results = machine(), time.perf_counter(), []
    for case in cases:
        left_s = args.seconds - (time.perf_counter() - started_s)
        longest_s = max((result.seconds for result in results), default=0.0)
        if results and left_s < longest_s:
            print(f"{len(cases) - len(results)} meshes were not begun: {left_s:.0f} s are left", flush=True)
            break
        result = run_or_say(case, model_of(case.shape, case.weights), left_s)
        results.append(result)
        print(line(result), flush=True)
        store(args.out, about, results, time.perf_counter() - started_s)
    found = summary(results)
    print(json.dumps(found, indent=1))
    is_good = found["not_slower_than_0.9_of_it"] == found["with_a_single_device_that_fits"]
    is_whole = len(results) == len(cases) and not found["failed"]
    return 0 if is_good and is_whole and found["within_20_percent"] >= 0.8 * len(results) else 1


def line(result: Result) -> str:
    case = result.case
    what = f"{case.number:3} {case.shape} {case.weights}, {case.rtt_ms:g} ms, threads {case.threads}, memory "
    what += f"{case.memory_share}: "
    if result.failed or result.refused:
        return f"{what}{result.failed or result.refused}"
    return (
        f"{what}{result.mode} {result.stages}, {result.measured_tokens_per_s} of "
        f"{result.predicted_tokens_per_s} tokens/s expected ({result.error:+.0%}), at its door "
        f"{result.door_tokens_per_s}, alone {result.singles_tokens_per_s}, ratio {result.ratio}, {result.seconds} s"
    )


def store(out: Path, about: dict[str, Any], results: list[Result], seconds: float) -> None:
    """After every mesh: what is measured stays, whatever comes next."""
    document = {
        "command": " ".join(["python -m bench.meshes", *sys.argv[1:]]),
        "environment": {"GOMP_SPINCOUNT": SPINS},
        "machine": about,
        "seconds": round(seconds, 1),
        "summary": summary(results),
        "meshes": [asdict(result) for result in results],
    }
    part = out.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(out)


if __name__ == "__main__":
    sys.exit(main())
