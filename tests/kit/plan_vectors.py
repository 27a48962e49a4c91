"""Writes specs/vectors/plans.json: `python -m tests.kit.plan_vectors`. The tests read the file, not this."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from p2pnode.compute.cost import Mesh, ModelShape
from p2pnode.compute.planner import Wish, plan
from p2pnode.errors import PlanError
from tests.kit.meshes import device, mesh, shape

TARGET = Path("specs/vectors/plans.json")
HEAD = "peer-n0"


def given(wish: dict[str, Any], model: ModelShape, found: Mesh) -> dict[str, Any]:
    """Plain form of a question."""
    devices = [
        {k: asdict(d)[k] for k in ("peer", "name", "memory_free_bytes", "decode_bytes_per_s")}
        for d in found.devices.values()
    ]
    links = [[a, b, link.rtt_s, link.bytes_per_s] for (a, b), link in found.links.items()]
    sizes = {
        "layers": model.layer_count,
        "layer_bytes": model.layer_bytes[0],
        "ends_bytes": model.embedding_bytes,
        "width": model.width,
        "boundary": model.boundary,
    }
    return {"kind": "question", "wish": wish, "model": sizes, "devices": devices, "links": links}


def answer(wish: dict[str, Any], model: ModelShape, found: Mesh) -> tuple[str, Any]:
    """Expectation and short form of the plan."""
    try:
        made = plan(Wish(HEAD, **wish), model, found).plan
    except PlanError as error:
        return error.code, None
    return "ok", {
        "mode": made.mode,
        "stages": [[list(s.peers), s.layer_first, s.layer_end] for s in made.stages],
        "decode_s": round(made.prediction.decode_s, 9),
    }


def _case(name: str, comment: str, expect: str, question: Any, output: Any = None) -> dict[str, Any]:
    return {"name": name, "comment": comment, "expect": expect, "input": question, "output": output}


def _questions() -> list[dict[str, Any]]:
    pair = mesh(device("n0"), device("n1"), rtt_ms=4)
    fast = mesh(device("n0"), device("n1", gb_per_s=100))
    small = mesh(device("n0", 0.45), device("n1", 0.45), device("n2", 0.45))
    lonely = mesh(device("n0", 0.1))
    near = mesh(device("n0"), device("n1"), rtt_ms=0.05)
    asked: list[tuple[str, dict[str, Any], ModelShape, Mesh]] = [
        ("two stages", {"mode": "pipeline", "stages": 2}, shape(), pair),
        ("left to the planner", {}, shape(), pair),
        ("a faster device", {}, shape(), fast),
        ("only together", {}, shape(), small),
        ("by memory", {"mode": "pipeline", "strategy": "memory", "stages": 2}, shape(11), fast),
        ("tensor group", {"mode": "tensor"}, shape(layer_mib=400), near),
        ("cut at multiples of four", {"mode": "pipeline", "stages": 2}, shape(boundary=4), pair),
        ("too large", {}, shape(), lonely),
        ("too far for a tensor group", {"mode": "tensor"}, shape(), pair),
        ("three stages on two devices", {"mode": "pipeline", "stages": 3}, shape(), pair),
        ("context too long", {"n_ctx": 9000}, shape(), pair),
        ("no stages", {"stages": 0}, shape(), pair),
        ("unknown device", {"devices": ["nobody"]}, shape(), pair),
        ("device twice", {"devices": ["n0", "n0"]}, shape(), pair),
        ("pin outside", {"pins": {"n0": [4, 9]}}, shape(), pair),
        ("map with a gap", {"blocks": [["n0", 0, 3], ["n1", 4, 8]]}, shape(), pair),
        ("map off the boundary", {"blocks": [["n0", 0, 3], ["n1", 3, 8]]}, shape(boundary=4), pair),
    ]
    cases = []
    for name, wish, model, found in asked:
        expect, output = answer(wish, model, found)
        cases.append(
            {
                "name": name,
                "comment": "a question",
                "expect": expect,
                "input": given(wish, model, found),
                "output": output,
            }
        )
    return cases


def _values() -> list[dict[str, Any]]:
    made = plan(
        Wish(HEAD, mode="pipeline", stages=2), shape(), mesh(device("n0"), device("n1"))
    ).plan.as_dict()
    cases = [
        {
            "name": "a plan",
            "comment": "reads back",
            "expect": "ok",
            "input": {"kind": "plan", "plan": made},
            "output": made,
        }
    ]
    changes: list[tuple[str, str, list[Any], Any]] = [
        ("unknown mode", "plan", ["mode"], "magic"),
        ("negative context", "plan", ["n_ctx"], -1),
        ("text for a count", "plan", ["layer_count"], "8"),
        ("no stages", "plan", ["stages"], []),
        ("no ranks", "plan", ["stages", 0, "ranks"], []),
        ("share of nothing", "plan", ["stages", 0, "ranks", 0, "share"], 0),
        ("negative time", "plan", ["prediction", "decode_s"], -0.5),
        ("long name", "plan", ["model"], "x" * 1001),
        ("gap", "layer_gap", ["stages", 1, "layer_first"], 5),
        ("overlap", "layer_gap", ["stages", 1, "layer_first"], 3),
        ("end missing", "layer_gap", ["stages", 1, "layer_end"], 7),
        ("too many layers", "layer_gap", ["stages", 1, "layer_end"], 9),
    ]
    for name, expect, path, value in changes:
        data: Any = copy.deepcopy(made)
        at = data
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        given_ = {"kind": "plan", "plan": data}
        cases.append(
            {"name": f"plan: {name}", "comment": "refused", "expect": expect, "input": given_, "output": None}
        )
    return cases


def main() -> None:
    TARGET.write_text(json.dumps(_questions() + _values(), indent=1) + "\n")


if __name__ == "__main__":
    main()
