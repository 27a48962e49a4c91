"""The pages about the record say what the code does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from p2pnode.events.merkle import leaf_hash

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("tool", ["generate_events_doc.py", "make_log_vectors.py"])
def test_generated_files_are_up_to_date(tool: str) -> None:
    """Otherwise run the tool without --check."""
    done = subprocess.run(
        [sys.executable, f"tools/{tool}", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_worked_example_is_the_vector() -> None:
    """Bytes and leaf hash in specs/08-log.md."""
    page = (ROOT / "specs" / "08-log.md").read_text(encoding="utf-8")
    block = page.split("Worked example")[1].split("```")[1]
    raw_text, leaf = block.split("leaf ")
    vectors = json.loads((ROOT / "specs" / "vectors" / "encoding.json").read_text(encoding="utf-8"))
    good = next(vector["input"] for vector in vectors if vector["name"] == "good")
    assert "".join(raw_text.split()) == good
    assert leaf.strip() == leaf_hash(bytes.fromhex(good)).hex()
