"""Real node processes for benchmarks: started by the command line, asked over HTTP, always ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from p2pnode.endpoint import Endpoint, find_node

START_S_MAX = 90.0
STOP_S_MAX = 20.0
REST_S_MAX, REST_EVERY_S, REST_SHARE, REST_WINDOWS = 60.0, 0.5, 0.2, 5
"""A device looks every two seconds whether it has something to time."""
ROOT = Path(__file__).resolve().parents[1]
MODELS = Path(tempfile.gettempdir()) / "p2pnode-bench"


class BenchError(Exception):
    """What could not be started or measured, and why."""


class Node:
    """One `p2pnode join`, in a process group of its own."""

    def __init__(
        self,
        root: Path,
        name: str,
        *arguments: str,
        threads: int = 1,
        listen: str = "/ip4/127.0.0.1/udp/0/quic-v1",
    ) -> None:
        self.name, self.data, self.log = name, root / name, root / f"{name}.log"
        command = [
            sys.executable, "-m", "p2pnode", "join", *arguments, "--data", str(self.data), "--name", name, "--json",
            "--listen", listen, "--api", "127.0.0.1:0", "--threads", str(threads), "--no-mdns",
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, process_group=0, cwd=ROOT
            )
        try:
            self.api = self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self) -> Endpoint:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_S_MAX)
        hello = json.loads((self.process.stdout.readline() if ready else b"") or b"{}")
        if "peer_id" not in hello:
            raise BenchError(f"{self.name} did not start: {hello} {self.last_words()}")
        return find_node(self.data)

    def last_words(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-4:])

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def online(self, count: int) -> None:
        """Wait until this device sees `count` devices, itself included."""
        deadline_s = time.monotonic() + START_S_MAX
        while sum(peer["state"] == "online" for peer in self.api.get("/peers")["peers"]) < count:
            if time.monotonic() > deadline_s:
                raise BenchError(f"{self.name} does not see {count} devices")
            time.sleep(0.1)

    def apply(self, **wish: Any) -> dict[str, Any]:
        """Plan and carry out; the plan as it stands."""
        plan: dict[str, Any] = self.api.post("/plan", {**wish, "apply": True})
        return plan

    def release(self, plan_id: str) -> None:
        self.api.post("/command/release_plan", {"plan_id": plan_id})

    def events(self, *types: str) -> list[dict[str, Any]]:
        """The newest entries of these types in this device's record."""
        entries = self.api.get("/log/entries", {"limit": 1000})["entries"]
        return [entry for entry in entries if entry["type"] in types]

    def stop(self) -> None:
        """Politely, and if that takes too long, not."""
        if self.is_running:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S_MAX)
        self.kill()

    def kill(self) -> None:
        """Without a word; its engines die with it."""
        if self.is_running:
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Mesh:
    """Devices that joined by invites of the first one; `close` ends all of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.nodes: list[Node] = []
        self._made = 0

    @property
    def head(self) -> Node:
        return self.nodes[0]

    def add(self, name: str, *arguments: str, threads: int = 1, **options: str) -> Node:
        ticket = []
        if self.nodes:
            ticket = [str(self.head.api.post("/invites", {"uses": 1, "expires_s": 3600})["ticket"])]
        node = Node(self.root, name, *ticket, *arguments, threads=threads, **options)
        self.nodes.append(node)
        return node

    def drop(self, node: Node) -> None:
        """A device that was hurt on purpose: end it and forget it."""
        node.kill()
        self.nodes.remove(node)
        shutil.rmtree(node.data, ignore_errors=True)

    def rest(self) -> None:
        """Wait until nothing is computed: devices time layers they just got, once, beside what they are asked for."""
        deadline_s = time.monotonic() + REST_S_MAX
        before, quiet = self._processor_s(), 0
        while time.monotonic() < deadline_s and quiet < REST_WINDOWS:
            time.sleep(REST_EVERY_S)
            now = self._processor_s()
            quiet = quiet + 1 if now - before < REST_SHARE * REST_EVERY_S else 0
            before = now

    def settle(self) -> None:
        """Wait until layers are timed, and let nobody time them again beside what is measured."""
        self.rest()
        for node in self.nodes:
            node.api.post("/settings", {"key": "device.timing", "value": "once"})

    def _processor_s(self) -> float:
        """Of all nodes and their engines so far."""
        total = 0.0
        for node in self.nodes:
            own = psutil.Process(node.process.pid)
            for process in (own, *own.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    spent = process.cpu_times()
                    total += spent.user + spent.system
        return total

    def close(self) -> None:
        for node in reversed(self.nodes):
            node.stop()


@contextlib.contextmanager
def mesh_of(
    names: Sequence[str],
    *,
    threads: int = 1,
    model: Path | None = None,
    root: Path | None = None,
) -> Iterator[Mesh]:
    """Devices that all see each other; their folders go in the end."""
    folder = Path(tempfile.mkdtemp(prefix="p2pnode-bench-", dir=root))
    mesh = Mesh(folder)
    try:
        for name in names:
            arguments = ["--model", str(model)] if model is not None and not mesh.nodes else []
            mesh.add(name, *arguments, threads=threads).online(len(mesh.nodes))
            mesh.settle()  # one after the other: timed beside each other they would all seem slow
        for node in mesh.nodes:
            node.online(len(names))
        yield mesh
    finally:
        mesh.close()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Answer:
    """One streamed answer: when each piece came, and what the node said in the end."""

    started_s: float = 0.0
    at_s: list[float] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    end: Mapping[str, Any] = field(default_factory=dict)
    error: BaseException | None = None

    @property
    def steps_s(self) -> list[float]:
        return [b - a for a, b in zip(self.at_s, self.at_s[1:], strict=False)]


def ask(node: Node, wish: Mapping[str, Any], answer: Answer | None = None) -> Answer:
    """`POST /v1/completions`, streamed; the prompt may be token ids. `answer` grows while it comes."""
    answer = answer or Answer()
    answer.started_s = time.perf_counter()
    for event in node.api.stream("/v1/completions", {"stream": True, "temperature": 0, **wish}):
        for choice in event.get("choices", ()):
            if choice["text"]:
                answer.at_s.append(time.perf_counter())
                answer.text.append(choice["text"])
        answer.end = event.get("p2pnode") or answer.end
    if not answer.end:
        raise BenchError("the answer did not end")
    return answer


def ask_side_by_side(node: Node, wishes: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """All at once, one thread each."""
    answers: list[Answer] = [Answer() for _ in wishes]

    def run(number: int) -> None:
        try:
            answers[number] = ask(node, wishes[number])
        except Exception as error:  # carried to the thread that asked
            answers[number] = Answer(error=error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(wishes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in answers:
        if answer.error is not None:
            raise answer.error
    return answers


def random_model() -> Path:
    """A model of TinyLlama's shape with random weights, made once."""
    return model_of("tinyllama", "q4_k_m")


def model_of(shape: str, weights: str) -> Path:
    """A model with random weights, made once."""
    path = MODELS / f"{shape}-{weights}.gguf"
    if not path.is_file():
        MODELS.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(".part")
        command = [sys.executable, str(ROOT / "tools" / "random_model.py"), str(made), "--shape", shape,
                   "--type", weights]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        made.rename(path)
    return path


def machine() -> dict[str, Any]:
    """What figures depend on."""
    import platform
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "llama_cpp_python": version("llama-cpp-python"),
        "aioquic": version("aioquic"),
        "commit": commit.stdout.strip(),
        "load_average": round(os.getloadavg()[0], 2),
    }
