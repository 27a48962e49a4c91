"""`p2pnode demo` shows everything it promises, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "p2pnode", "demo"]


def nodes_of(root: Path) -> list[int]:
    """Processes whose command line names the demo's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(root) in words and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def test_the_demo_shows_it_all(tmp_path: Path) -> None:
    environment = {**os.environ, "P2PNODE_DEMO_DIR": str(tmp_path / "demo")}
    found = subprocess.run([*COMMAND, "--json"], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    assert result["ok"]
    assert result["identical"]
    assert [stage["layers"][0] for stage in result["stages"][1:]] == [
        s["layers"][1] for s in result["stages"][:-1]
    ]
    assert result["stages"][0]["bytes_fetched"] == 0
    assert all(stage["bytes_fetched"] > 0 for stage in result["stages"][1:])
    assert all(log["verified"] and log["events"] > 5 for log in result["logs"])
    assert nodes_of(tmp_path) == []


def test_interrupting_leaves_no_process(tmp_path: Path) -> None:
    environment = {**os.environ, "P2PNODE_DEMO_DIR": str(tmp_path / "demo")}
    with subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "joined" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
        assert process.wait(60) == 130
    assert "failed" not in rest
    assert nodes_of(tmp_path) == []


def test_a_second_interruption_does_not_keep_the_first_from_ending_everything(tmp_path: Path) -> None:
    environment = {**os.environ, "P2PNODE_DEMO_DIR": str(tmp_path / "demo")}
    with subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "attic   joined" in line:
                process.send_signal(signal.SIGINT)
            if "Interrupted" in line:  # it has begun to stop the devices
                process.send_signal(signal.SIGINT)
                process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    assert nodes_of(tmp_path) == []


def test_a_failing_step_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    environment = {**os.environ, "P2PNODE_DEMO_DIR": str(blocked / "demo")}
    found = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "error" in found.stderr or "failed at" in found.stderr
    assert "Traceback" not in found.stderr
