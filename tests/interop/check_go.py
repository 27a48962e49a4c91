"""Go's x/mod/sumdb opens a thousand of our checkpoints and checks our proofs; corrupted twins it refuses."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.interop.go_sumdb.check import CHECKPOINTS, HERE
from tests.interop.peers import INSTALLED

pytestmark = pytest.mark.interop


def test_go_verifies_checkpoints_and_proofs() -> None:
    """Signature, text, inclusion and consistency: as many as there are checkpoints, each with its twin."""
    command = [sys.executable, str(HERE / "check.py"), "--go", str(INSTALLED / "go" / "bin" / "go")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    found = re.fullmatch(
        r"ok: (\d+) checkpoints, (\d+) inclusion and (\d+) consistency proofs\n", done.stdout
    )
    assert found is not None, done.stdout + done.stderr
    assert done.returncode == 0
    assert [int(count) for count in found.groups()] == [
        CHECKPOINTS, 2 * (CHECKPOINTS - 1), 2 * (CHECKPOINTS - 1)
    ]  # fmt: skip
