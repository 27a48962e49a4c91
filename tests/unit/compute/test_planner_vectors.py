"""The vectors of specs/10-plans.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from p2pnode.compute.cost import Device, Link, Mesh
from p2pnode.compute.plan import from_dict
from p2pnode.compute.planner import Wish, plan
from p2pnode.errors import PlanError
from tests.kit.meshes import shape

CASES = json.loads((Path(__file__).parents[3] / "specs/vectors/plans.json").read_text())


def _question(given: dict[str, Any]) -> dict[str, Any]:
    sizes = given["model"]
    model = shape(
        sizes["layers"],
        layer_bytes=(sizes["layer_bytes"],) * sizes["layers"],
        active_bytes=(sizes["layer_bytes"],) * sizes["layers"],
        embedding_bytes=sizes["ends_bytes"],
        output_bytes=sizes["ends_bytes"],
        width=sizes["width"],
        boundary=sizes["boundary"],
    )
    devices = {d["peer"]: Device(**d, memory_total_bytes=d["memory_free_bytes"]) for d in given["devices"]}
    links = {(a, b): Link(rtt_s, rate) for a, b, rtt_s, rate in given["links"]}
    wish = {key: tuple(value) if isinstance(value, list) else value for key, value in given["wish"].items()}
    made = plan(Wish("peer-n0", **wish), model, Mesh(devices, links)).plan
    return {
        "mode": made.mode,
        "stages": [[list(s.peers), s.layer_first, s.layer_end] for s in made.stages],
        "decode_s": pytest.approx(made.prediction.decode_s, abs=1e-8),
    }


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_vector(case: dict[str, Any]) -> None:
    given = case["input"]
    if case["expect"] == "ok":
        found = _question(given) if given["kind"] == "question" else from_dict(given["plan"]).as_dict()
        if given["kind"] == "plan":
            found = json.loads(json.dumps(found))
        assert found == case["output"]
        return
    with pytest.raises(PlanError) as caught:
        _ = _question(given) if given["kind"] == "question" else from_dict(given["plan"])
    assert caught.value.code == case["expect"]


def test_more_are_invalid_than_valid() -> None:
    assert sum(case["expect"] != "ok" for case in CASES) > len(CASES) / 2
