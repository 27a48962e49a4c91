"""Real node processes for integration tests: started by the command line, asked over HTTP, stopped by signals."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from p2pnode.endpoint import Endpoint, find_node

START_S_MAX = 60.0


class NodeProcess:
    """One `p2pnode join`; `hello` is the document it prints once it is ready."""

    def __init__(self, root: Path, name: str, *arguments: str, is_awaited: bool = True) -> None:
        self.name = name
        self.data = root / name
        self._stderr_path = root / f"{name}.err"
        command = [
            sys.executable, "-m", "p2pnode", "join", *arguments, "--data", str(self.data), "--name", name, "--json",
            "--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--api", "127.0.0.1:0", "--threads", "1", "--no-mdns",
        ]  # fmt: skip
        with self._stderr_path.open("ab") as stderr:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, process_group=0)
        self.hello: dict[str, Any] = {}
        self._is_asked = False
        if is_awaited:
            self.started()

    def started(self) -> None:
        """Return once it is ready, for who started it with others."""
        self.hello = self._read_hello()
        self.api: Endpoint = find_node(self.data)

    def _read_hello(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_S_MAX)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            self.kill()
            raise AssertionError(f"{self.name} did not start: {self.errors()}")
        document: dict[str, Any] = json.loads(line)
        if "peer_id" not in document:
            self.process.wait(START_S_MAX)
            self._close()
            raise AssertionError(f"{self.name} did not start: {document} {self.errors()}")
        return document

    def errors(self) -> str:
        return self._stderr_path.read_text(errors="replace")[-4000:]

    @property
    def peer_id(self) -> str:
        return str(self.hello["peer_id"])

    def cli(self, *arguments: str) -> Any:
        """A command about this node, as a person gives it: the one JSON document on stdout."""
        command = [sys.executable, "-m", "p2pnode", *arguments, "--data", str(self.data), "--json"]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    def invite(self, **wish: Any) -> str:
        return str(self.api.post("/invites", {"uses": 1, "expires_s": 600, **wish})["ticket"])

    def infer(self, model: str, prompt: str, *, raw: bool = False, **wish: Any) -> dict[str, Any]:
        """One greedy answer; `raw` gives the prompt as it is, else it is a person's message in the chat template."""
        asked = {"prompt": prompt} if raw else {"messages": [{"role": "user", "content": prompt}]}
        answer: dict[str, Any] = self.api.post(
            "/infer", {"model": model, "temperature": 0, "max_tokens": 48, **asked, **wish}
        )
        assert raw or answer["usage"]["completion_tokens"] > 5, answer
        return answer

    def until(self, what: str, path: str, holds: Any, *, within_s: float = 30.0) -> Any:
        """Ask until it holds: the answer, or a failure that shows the last one."""
        deadline_s = time.monotonic() + within_s
        while True:
            answer = self.api.get(path)
            if holds(answer):
                return answer
            assert time.monotonic() < deadline_s, f"{what} did not come about: {answer}"
            select.select([], [], [], 0.05)

    def online(self, count: int) -> None:
        self.until(
            f"{count} devices online",
            "/peers",
            lambda v: sum(p["state"] == "online" for p in v["peers"]) == count,
        )

    def events(self, *types: str) -> list[dict[str, Any]]:
        entries = self.api.get("/log/entries", {"limit": 1000})["entries"]
        return [entry for entry in entries if not types or entry["type"] in types]

    def ask_to_stop(self) -> None:
        """Once: a second signal, when it is nearly over, ends a process as one that nobody handles."""
        if not self._is_asked and self.process.poll() is None:
            self._is_asked = True
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.ask_to_stop()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"{self.name} did not stop: {self.errors()}") from None
        self._close()
        return self.process.returncode

    def kill(self) -> None:
        """kill -9, as a power cut would."""
        self.process.kill()
        self.process.wait(30)
        self._close()

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()


class MeshOfProcesses:
    """Devices that joined by invites of the first one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.nodes: list[NodeProcess] = []

    def first(self, name: str = "alpha", *arguments: str) -> NodeProcess:
        self.nodes.append(NodeProcess(self.root, name, *arguments))
        return self.nodes[0]

    def join(self, name: str, *arguments: str) -> NodeProcess:
        node = NodeProcess(self.root, name, self.nodes[0].invite(), *arguments)
        self.nodes.append(node)
        return node

    def join_together(self, *names: str) -> None:
        """Several at once, as when a house has its power back."""
        tickets = [self.nodes[0].invite() for _ in names]
        joining = [
            NodeProcess(self.root, name, ticket, is_awaited=False)
            for name, ticket in zip(names, tickets, strict=True)
        ]
        self.nodes += joining
        for node in joining:
            node.started()

    def measured(self) -> None:
        """Every machine is, and the first device knows which llama.cpp each of the others has."""
        for node in self.nodes:
            node.until("a measured machine", "/status", lambda s: s["capability"].get("can_rpc"))
        self.nodes[0].until(
            "the others' builds",
            "/peers",
            lambda v: all(p["self"] or p["capability"].get("build") for p in v["peers"]),
        )

    def timed(self) -> None:
        """Every device has timed its models' layers, and the first one knows: plans made now share work out alike."""
        first = self.nodes[0]
        first.until("its layers timed", "/status", lambda v: v["capability"].get("rates"))
        first.until(
            "those of the others",
            "/peers",
            lambda v: all(p["self"] or p["capability"].get("rates") for p in v["peers"]),
        )


@contextmanager
def mesh_of(root: Path, *names: str, first_arguments: tuple[str, ...] = ()) -> Iterator[MeshOfProcesses]:
    """Start, connect, and in the end stop every device cleanly."""
    mesh = MeshOfProcesses(root)
    try:
        mesh.first(names[0], *first_arguments)
        mesh.join_together(*names[1:])
        for node in mesh.nodes:
            node.online(len(names))
        yield mesh
    finally:
        for node in mesh.nodes:
            node.ask_to_stop()
        codes = {node.name: node.stop() for node in mesh.nodes}
    assert not {name: code for name, code in codes.items() if code not in (0, -9)}, codes


def children_of(pid: int) -> list[int]:
    """Child processes, engines first of all."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def proc_of_children(pid: int, what: str) -> list[str]:
    """A file of each child in /proc; an engine that only timed layers may go meanwhile."""
    found = []
    for child in children_of(pid):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{child}/{what}").read_text())
    return found


def kill_now(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
