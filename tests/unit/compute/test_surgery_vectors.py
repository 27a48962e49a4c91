"""specs/vectors/surgery.json is what this implementation answers, and more of it is refused than accepted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kit.surgery_vectors import PATH, answer, part_of, vectors

VECTORS: list[dict[str, Any]] = json.loads(PATH.read_text())


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_vectors(vector: dict[str, Any]) -> None:
    given = vector["input"]
    expect, output = answer(bytes.fromhex(given["header"]), given["file_size"], part_of(given["part"]))
    assert (expect, output) == (vector["expect"], vector["output"])


def test_the_file_is_what_its_maker_makes() -> None:
    assert vectors() == VECTORS
    refused = sum(vector["expect"] != "ok" for vector in VECTORS)
    assert refused > len(VECTORS) - refused
