"""`p2pnode demo`: three devices on this machine, one model, three sealed records, shown in one terminal.

The devices are separate processes with folders, keys and ports of their own; the demo does only what a
person would do with the command line and the HTTP API, and stops at the first thing that goes wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from p2pnode.endpoint import Endpoint, find_node
from p2pnode.errors import P2PNodeError

MODEL = "p2pnode-demo"
QUESTION = "Tell me a story about three small computers."
NAMES = ("kitchen", "study", "attic")
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
START_S_MAX = 60.0
STOP_S_MAX = 20.0


class DemoError(Exception):
    """Which step failed and why."""

    def __init__(self, step: str, why: str) -> None:
        super().__init__(f"{step}: {why}")


class Device:
    """One node process."""

    def __init__(self, name: str, root: Path, extra: list[str]) -> None:
        self.name = name
        self.data = root / name
        self.log = root / f"{name}.log"
        command = [
            sys.executable, "-m", "p2pnode", "join", *extra, "--data", str(self.data), "--name", name,
            "--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--api", "127.0.0.1:0", "--threads", "1", "--no-mdns",
        ]  # fmt: skip
        with self.log.open("wb") as log:
            # A group of its own: Ctrl-C reaches the demo alone, which then stops the devices in order.
            self.process = subprocess.Popen(command, stdout=log, stderr=log, process_group=0)
        self.endpoint: Endpoint | None = None

    def wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline_s:
            if self.process.poll() is not None:
                raise DemoError(f"starting {self.name}", self.last_words())
            with contextlib.suppress(P2PNodeError):
                endpoint = find_node(self.data)
                if endpoint.get("/health")["ready"]:
                    self.endpoint = endpoint
                    return
            time.sleep(0.1)
        raise DemoError(f"starting {self.name}", f"not ready after {START_S_MAX:.0f} s. {self.last_words()}")

    @property
    def api(self) -> Endpoint:
        assert self.endpoint is not None
        return self.endpoint

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-4:]) or "it said nothing"

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise DemoError(
                    f"stopping {self.name}", f"still running {STOP_S_MAX:.0f} s after SIGTERM"
                ) from None
        return self.process.returncode


class Demo:
    def __init__(self, root: Path, *, quiet: bool) -> None:
        self.root = root
        self.quiet = quiet
        self.devices: list[Device] = []
        self.result: dict[str, Any] = {}

    def say(self, text: str = "", end: str = "\n") -> None:
        if not self.quiet:
            print(text, end=end, flush=True)

    def run(self) -> None:
        self.say("p2pnode demo: three devices on this machine become one\n")
        self._start_devices()
        self._plan()
        together = self._ask("pipeline", "Asked with the model spread over all three:")
        alone = self._ask("local", f"The same question, {NAMES[0]} alone:", show=False)
        self._compare(together, alone)
        self._seal_and_verify()

    def _start_devices(self) -> None:
        self.devices.append(Device(NAMES[0], self.root, []))
        self.devices[0].wait_until_ready()
        self.say(f"  ✓ {NAMES[0]} made a mesh             {self.devices[0].api.get('/health')['peer_id']}")
        for name in NAMES[1:]:
            ticket = self.devices[0].api.post("/invites", {"uses": 1, "expires_s": 600})["ticket"]
            device = Device(name, self.root, [ticket])
            self.devices.append(device)
            device.wait_until_ready()
            self.say(f"  ✓ {name:<7} joined with an invite   {device.api.get('/health')['peer_id']}")
        deadline_s = time.monotonic() + START_S_MAX
        while sum(p["state"] == "online" for p in self.devices[0].api.get("/peers")["peers"]) < len(NAMES):
            if time.monotonic() > deadline_s:
                raise DemoError("meeting", "the devices do not all see each other")
            time.sleep(0.1)

    def _plan(self) -> None:
        # Three devices on one machine have equal memory, so the rule of memory shares gives equal stages.
        wish = {
            "model": MODEL,
            "mode": "pipeline",
            "stages": 3,
            "devices": list(NAMES),
            "strategy": "memory",
            "apply": True,
        }
        answer = self.devices[0].api.post("/plan", wish)
        statuses = [device.api.get("/status") for device in self.devices]
        rtts = {p["name"]: p.get("rtt_ms") for p in self.devices[0].api.get("/peers")["peers"]}
        self.say(f"\n  A pipeline of three stages for {MODEL} (plan {answer['plan_id']}, first token through it in "
                 f"{answer['probe_ms']:.0f} ms):\n")  # fmt: skip
        self.say(
            f"    {'device':<9} {'layers':<8} {'bytes fetched':>14} {'memory':>9} {'at most':>9} {'round trip':>11}"
        )
        rows = []
        for stage, status in zip(answer["stages"], statuses, strict=True):
            used, allowed = status["memory"]["node_and_engines_bytes"], status["memory"]["allowed_bytes"]
            rtt = rtts.get(stage["name"]) if stage["name"] != NAMES[0] else None
            fetched = int(stage.get("bytes_fetched", 0))
            first, end = stage["layers"]
            self.say(f"    {stage['name']:<9} {f'{first}–{end - 1}':<8} {fetched:>14,} {used / 1e6:>6.0f} MB "
                     f"{allowed / 1e6:>6.0f} MB {f'{rtt:.1f} ms' if rtt else '–':>11}")  # fmt: skip
            rows.append({"name": stage["name"], "layers": stage["layers"], "bytes_fetched": fetched,
                         "memory_bytes": used, "memory_allowed_bytes": allowed, "rtt_ms": rtt})  # fmt: skip
        self.result["stages"] = rows
        names = [stage["name"] for stage in answer["stages"]]
        if names != list(NAMES):
            raise DemoError("planning", f"the stages are on {names}")

    def _ask(self, mode: str, title: str, *, show: bool = True) -> dict[str, Any]:
        messages = [{"role": "user", "content": QUESTION}]
        document = {"model": MODEL, "messages": messages, "mode": mode, "temperature": 0, "max_tokens": 400}
        self.say(f"\n  {title}" + (f" “{QUESTION}”\n" if show else ""))
        text: list[str] = []
        end: dict[str, Any] = {}
        column = 4
        if show:
            self.say("    ", end="")
        for event in self.devices[0].api.stream("/infer/stream", document):
            if event.get("type") == "text":
                text.append(event["text"])
                if show:
                    column = self._flow(event["text"], column)
            elif event.get("type") == "finished":
                end = event
        if not end or not text:
            raise DemoError(f"asking in {mode} mode", "the answer did not end")
        if show:
            self.say()
        return {"text": "".join(text), **end}

    def _flow(self, piece: str, column: int) -> int:
        """Stream words, indented and wrapped."""
        for part in piece.replace("\n\n", "\n").splitlines(keepends=True):
            if column > 96 and part.startswith(" "):
                self.say("\n    ", end="")
                column, part = 4, part.lstrip()
            self.say(part.rstrip("\n"), end="")
            column += len(part)
            if part.endswith("\n"):
                self.say("\n    ", end="")
                column = 4
        return column

    def _compare(self, together: dict[str, Any], alone: dict[str, Any]) -> None:
        fast, slow = alone.get("tokens_per_s") or 0.0, together.get("tokens_per_s") or 0.0
        tokens = together["usage"]["completion_tokens"]
        self.say(
            f"\n    pipeline  {slow:>8.1f} tokens/s   {tokens} tokens over {len(together['stages'])} devices"
        )
        self.say(
            f"    local     {fast:>8.1f} tokens/s   (tiny model: the network's round trips are most of the time)"
        )
        same = together["text"] == alone["text"]
        if not same:
            raise DemoError("comparing", "the pipeline's text differs from the local one")
        self.say("    the two texts are identical ✓")
        self.result.update(text=together["text"], identical=same, pipeline_tokens_per_s=slow, local_tokens_per_s=fast,
                           completion_tokens=tokens)  # fmt: skip

    def _seal_and_verify(self) -> None:
        self.say("\n  What each device recorded:\n")
        logs = []
        for device in self.devices:
            device.api.post("/command/seal", {})
            found = subprocess.run(
                [sys.executable, "-m", "p2pnode", "log", "verify", "--data", str(device.data), "--json"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if found.returncode != 0:
                raise DemoError(
                    f"verifying {device.name}'s log", found.stdout.strip() or found.stderr.strip()
                )
            report = json.loads(found.stdout)
            blocks = device.api.get("/log/size")["blocks"]
            self.say(
                f"    {device.name:<9} {report['size']:>4} events in {blocks} sealed blocks, log verifies ✓"
            )
            logs.append({"name": device.name, "events": report["size"], "blocks": blocks, "verified": True})
        self.result["logs"] = logs

    def stop(self) -> None:
        """Workers first, so that nobody loses a stage it still uses."""
        failures = []
        for device in reversed(self.devices):
            try:
                code = device.stop()
                if code not in (0, -signal.SIGTERM):  # the latter: asked to stop before it could listen
                    failures.append(f"{device.name} ended with {code}: {device.last_words()}")
            except DemoError as failure:
                failures.append(str(failure))
        if failures:
            raise DemoError("stopping", "; ".join(failures))


def demo_folder(parent: Path) -> Path:
    """A fresh folder for this demo; those of ended demos are cleared away, a running one keeps its own."""
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob("run-*"):
        if not Path(f"/proc/{old.name.removeprefix('run-')}").exists():
            shutil.rmtree(old, ignore_errors=True)
    root = parent / f"run-{os.getpid()}"
    root.mkdir()
    return root


def _interrupt_once(_number: int, _frame: object) -> None:
    """A second Ctrl-C would leave devices behind that the first one is stopping; that takes a bounded time."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run_demo(*, keep: bool, as_json: bool) -> int:
    """0 when everything was shown; else says which step failed and why."""
    try:
        root = demo_folder(Path(os.environ.get("P2PNODE_DEMO_DIR", ".demo")).resolve())
    except OSError as error:
        print(f"demo failed at making its folder: {error}", file=sys.stderr)
        return 1
    for number in _ENDING:
        signal.signal(number, _interrupt_once)
    demo = Demo(root, quiet=as_json)
    code = _show(demo, keep=keep)
    if code == 0:
        demo.say("\n  All three stopped cleanly.")
    if as_json:
        print(json.dumps({"ok": code == 0, **demo.result}))
    return code


def _show(demo: Demo, *, keep: bool) -> int:
    """Run it to its end, however it ends, and stop every device."""
    code = 0
    try:
        demo.run()
        if keep:
            demo.say(f"\n  Panel: {demo.devices[0].api.url}    (Ctrl-C stops the three devices)")
            while True:
                signal.pause()
    except DemoError as failure:
        print(f"\ndemo failed at {failure}", file=sys.stderr)
        code = 1
    except P2PNodeError as error:
        print(f"\ndemo failed: {error.message}  ({error.hint})", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 0 if keep else 130
        if not keep:
            demo.say("\n\n  Interrupted: stopping the devices.")
    finally:
        try:
            demo.stop()
        except DemoError as failure:
            print(f"\ndemo failed at {failure}", file=sys.stderr)
            code = code or 1
    return code
