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


def test_what_a_specification_names_as_its_implementation_is_there() -> None:
    """Paths below the repository or the package; a bare name stands beside the one before it."""
    package = SPECS.parent / "p2pnode"
    for spec in SPECS.glob("*.md"):
        said = re.search(r"\*?Implements\*?: (.*?)(?:\*?Vectors\*?:|\n\n)", spec.read_text(), re.DOTALL)
        folder = package
        for name in re.findall(r"`([\w./*]+(?:\.py|/))`", said[1]) if said else ():
            found = next((at for at in (SPECS.parent, package, folder) if list(at.glob(name))), None)
            assert found is not None, f"{spec.name}: {name}"
            folder = found / name if name.endswith("/") else (found / name).parent
