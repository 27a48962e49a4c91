"""Ten thousand requests that schemathesis makes up from our OpenAPI document: never a 500, and the node lives.

Run by `make fuzz-api`, which installs schemathesis beside us. The first run is against the API with a fake node
behind it, for numbers; the second against a node process with its engine, for depth.
"""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.interop.peers import INSTALLED
from tests.kit.api_server import serving
from tests.kit.fake_node import FakeNode
from tests.kit.mesh import NodeProcess

pytestmark = pytest.mark.interop
PROGRAM = INSTALLED / "schemathesis" / "bin" / "schemathesis"
RUN_S_MAX = 900


def fuzz(url: str, *arguments: str) -> str:
    command = [
        str(PROGRAM), "run", f"{url}/openapi.json", "--checks", "not_a_server_error", "--phases", "coverage,fuzzing",
        "--mode", "all", "--seed", "20261127", "--continue-on-failure", "--request-timeout", "60", "--warnings", "off",
        "--exclude-path", "/api/live", "--suppress-health-check", "all", "--no-color", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S_MAX, check=False)
    assert done.returncode == 0, (done.stdout[-8000:], done.stderr[-2000:])
    return done.stdout


def answers(url: str) -> dict[str, int]:
    """How often each status was answered."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        text = response.read().decode()
    counts: dict[str, int] = {}
    for status, count in re.findall(r'p2pnode_http_requests_total\{[^}]*status="(\d+)"\} (\S+)', text):
        counts[status] = counts.get(status, 0) + int(float(count))
    return counts


def test_ten_thousand_requests() -> None:
    node = FakeNode()
    with serving(node) as url:
        fuzz(url, "--max-examples", "220", "--workers", "4")
        counts = answers(url)
        print("answers by status:", json.dumps(counts))
        assert sum(counts.values()) > 10_000
        assert "500" not in counts
        with urllib.request.urlopen(f"{url}/health") as response:
            assert json.load(response)["status"] == "ok"
        assert node.running == 0


def test_a_node_with_its_engine(tmp_path: Path) -> None:
    """Also what really plans, loads, tokenises and writes."""
    node = NodeProcess(tmp_path, "alpha")
    try:
        url = node.api.url
        # Settings and commands change the node for the requests after them: those are the fake node's part.
        fuzz(url, "--max-examples", "40", "--exclude-path-regex", "^/(command|settings|tensor/rpc|shell)")
        counts = answers(url)
        print("answers by status:", json.dumps(counts))
        assert "500" not in counts
        assert node.infer("p2pnode-demo", "Tell me a story.")["text"]
        assert node.process.poll() is None
    finally:
        node.stop()
