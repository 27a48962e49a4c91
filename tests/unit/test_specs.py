"""What the specifications name is there."""

from __future__ import annotations

import re
from pathlib import Path

SPECS = Path(__file__).parents[2] / "specs"


def test_every_file_of_vectors_is_there_and_belongs_to_a_specification() -> None:
    texts = [spec.read_text() for spec in SPECS.glob("*.md")]
    named = {name for text in texts for name in re.findall(r"vectors/(\w+)\.json", text)}
    files = {path.stem for path in (SPECS / "vectors").glob("*.json")}
    assert named - files == set()
    assert {stem for stem in files if not any(f"{stem}.json`" in text for text in texts)} == set()


def test_links_between_specifications_lead_somewhere() -> None:
    for spec in SPECS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", spec.read_text()):
            assert (spec.parent / target).exists(), f"{spec.name} -> {target}"
