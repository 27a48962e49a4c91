"""Ten thousand random bodies that schemathesis makes up from our OpenAPI document, against a node with its engine, and
as many requests of every kind against the API alone: never a 500, always what the document says (a 4xx is the
error envelope), and the node lives.

Run by `make fuzz-api`, which installs schemathesis beside us: about six minutes on two quiet cores.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from tests.interop.peers import INSTALLED
from tests.kit.api_server import serving
from tests.kit.fake_node import FakeNode
from tests.kit.mesh import NodeProcess

pytestmark = pytest.mark.interop
PROGRAM = INSTALLED / "schemathesis" / "bin" / "schemathesis"
RUN_S_MAX = 1500
REQUESTS_MIN = 10_000
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
SERVER_ERRORS_MEANT = {"503"}
"""A model that loads, an engine that restarts, too much at once: said with Retry-After, and in the document."""


def only_its_own_trouble(said: str) -> bool:
    """Whether all that went wrong is a fault of Python's that the program meets while it makes up a deep body."""
    summary = said.rpartition("= SUMMARY =")[2]
    kinds = re.findall(r"🚫 ([A-Z][\w ]+): (\d+)", summary)
    own = said.count("SystemError: AST constructor recursion depth mismatch")
    return "Failures:" not in summary and kinds == [("Runtime Error", str(own))]


class Sent:
    """What one server was sent, and what it said, over all runs against it."""

    def __init__(self, name: str, url: str) -> None:
        self.name, self.url = name, url
        self.made = 0
        self._begun_s = time.monotonic()

    def fuzz(self, *arguments: str) -> None:
        command = [
            str(PROGRAM), "run", f"{self.url}/openapi.json", "--checks", CHECKS, "--phases", "coverage,fuzzing",
            "--mode", "all", "--seed", "20261127", "--continue-on-failure", "--request-timeout", "60",
            "--warnings", "off", "--exclude-path", "/api/live", "--suppress-health-check", "all", "--no-color",
            *arguments,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S_MAX, check=False)
        words = done.stdout[-8000:] + done.stderr[-2000:]
        assert done.returncode == 0 or only_its_own_trouble(done.stdout), words
        made = re.search(r"([\d,]+) generated, ([\d,]+) passed", done.stdout)
        assert made is not None, words
        assert made[1] == made[2], words
        self.made += int(made[1].replace(",", ""))

    def report(self) -> None:
        """Every request was answered, none with an error of ours, and there were enough."""
        answers = self._answers()
        print(
            f"\n{self.name}: {self.made} requests in {time.monotonic() - self._begun_s:.0f} s, "
            f"answers by status: {json.dumps(dict(sorted(answers.items())))}"
        )
        assert {status for status in answers if status >= "500"} <= SERVER_ERRORS_MEANT
        assert self.made >= REQUESTS_MIN
        with urllib.request.urlopen(f"{self.url}/health") as response:
            assert json.load(response)["status"] == "ok"

    def _answers(self) -> Counter[str]:
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            text = response.read().decode()
        counts: Counter[str] = Counter()
        for status, count in re.findall(r'p2pnode_http_requests_total\{[^}]*status="(\d+)"\} (\S+)', text):
            counts[status] += int(float(count))
        return counts


def test_every_kind_of_request() -> None:
    """All methods and addresses, commands and settings too, with a node behind them that answers at once."""
    node = FakeNode()
    with serving(node) as url:
        sent = Sent("the API alone", url)
        sent.fuzz("--max-examples", "130")
        sent.report()
        assert node.running == 0


def test_ten_thousand_bodies_to_a_node(tmp_path: Path) -> None:
    """Only requests with a body, to what really plans, loads, tokenises and writes."""
    node = NodeProcess(tmp_path, "alpha")
    try:
        sent = Sent("a node with its engine", node.api.url)
        # Settings and commands change the node for the requests after them: those are the fake node's part.
        others = "^/(command|settings|tensor/rpc|shell)"
        sent.fuzz("--include-method", "POST", "--exclude-path-regex", others, "--max-examples", "250")
        sent.report()
        assert node.infer("p2pnode-demo", "Tell me a story.")["text"]
        assert node.process.poll() is None
    finally:
        node.stop()
