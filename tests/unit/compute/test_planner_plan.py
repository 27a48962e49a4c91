"""Plan values: read back exactly, refuse everything else, and name what they mean."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from p2pnode import limits
from p2pnode.compute.cost import Group
from p2pnode.compute.plan import Plan, Rank, StagePlan, from_dict, role_of
from p2pnode.compute.planner import Wish, plan
from p2pnode.compute.search import Search, Unit
from p2pnode.errors import LayerGap, PlanError
from tests.kit.meshes import device, mesh, shape

HEAD = "peer-n0"
MESH = mesh(device("n0"), device("n1"), device("n2"))
PIPELINE = plan(Wish(HEAD, mode="pipeline", stages=2), shape(), MESH).plan


def test_roles_follow_from_layers() -> None:
    assert [role_of(a, b, 8) for a, b in ((0, 8), (0, 3), (3, 5), (5, 8))] == [
        "whole",
        "head",
        "middle",
        "tail",
    ]


def test_other_engine_options_make_another_plan_of_the_same_devices() -> None:
    other = PIPELINE.with_engine("kv=q8_0")
    assert PIPELINE.with_engine(PIPELINE.engine) is PIPELINE
    assert (other.engine, other.stages) == ("kv=q8_0", PIPELINE.stages)
    assert other.plan_id != PIPELINE.plan_id


def test_a_plan_says_who_does_what() -> None:
    assert PIPELINE.peers[0] == HEAD
    assert [s.layer_count for s in PIPELINE.stages_of(HEAD)] == [4]
    assert PIPELINE.memory_of("nobody") == 0
    assert PIPELINE.output_in_last_stage is False
    assert PIPELINE.content_id == shape().content_id


def test_the_id_is_made_of_the_content() -> None:
    again = plan(Wish(HEAD, mode="pipeline", stages=2), shape(), MESH).plan
    assert again.plan_id == PIPELINE.plan_id
    slower = replace(PIPELINE.prediction, decode_s=9.0)
    assert replace(PIPELINE, prediction=slower).with_id().plan_id == PIPELINE.plan_id
    assert replace(PIPELINE, n_ctx=99).with_id().plan_id != PIPELINE.plan_id
    assert PIPELINE.prediction.tokens_per_s == pytest.approx(1 / PIPELINE.prediction.decode_s)
    assert replace(PIPELINE.prediction, decode_s=0.0).tokens_per_s == 0


def _with(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(PIPELINE.as_dict())
    at: Any = data
    *keys, last = path.split(".")
    for key in keys:
        at = at[int(key)] if key.isdigit() else at[key]
    at[int(last) if last.isdigit() else last] = value
    return data


BAD = {
    "mode": _with("mode", "magic"),
    "mode number": _with("mode", 3),
    "role": _with("stages.0.role", "boss"),
    "no stages": _with("stages", []),
    "stages number": _with("stages", 5),
    "stage text": _with("stages.0", "x"),
    "no ranks": _with("stages.0.ranks", []),
    "rank text": _with("stages.0.ranks.0", "x"),
    "share of nothing": _with("stages.0.ranks.0.share", 0),
    "same device twice": _with(
        "stages.0.ranks", [{"peer": "a", "share": 1, "memory_bytes": 0, "fetch_bytes": 0}] * 2
    ),
    "count text": _with("layer_count", "8"),
    "count true": _with("n_ctx", True),
    "count negative": _with("parallel", -1),
    "count huge": _with("output_memory_bytes", 2**70),
    "name number": _with("model", 7),
    "name long": _with("model", "x" * 1001),
    "seconds text": _with("prediction.decode_s", "1"),
    "seconds negative": _with("prediction.decode_s", -1.0),
    "seconds infinite": _with("prediction.first_token_s", float("inf")),
    "seconds no number": _with("prediction.network_s", float("nan")),
    "seconds true": _with("prediction.fetch_s", True),
    "prediction missing": {k: v for k, v in PIPELINE.as_dict().items() if k != "prediction"},
    "spare text": _with("spares", ["x"]),
    "reasons number": _with("reasons", [1]),
    "local on two": _with("mode", "local"),
    "too many stages": _with("stages", PIPELINE.as_dict()["stages"] * 40),
    "not a map": {},
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_plan_is_refused(name: str) -> None:
    with pytest.raises(PlanError):
        from_dict(BAD[name])


@pytest.mark.parametrize("value", [1, 3, 9])
def test_gaps_are_refused(value: int) -> None:
    with pytest.raises(LayerGap):
        from_dict(_with("stages.1.layer_first", value))


def test_too_many_devices_are_refused() -> None:
    ranks = tuple(Rank(f"p{i}") for i in range(limits.PLAN_DEVICES_MAX))
    stages = tuple(StagePlan(i, i + 1, (rank, Rank(f"q{i}")), "middle") for i, rank in enumerate(ranks))
    with pytest.raises(PlanError, match="at most 64"):
        replace(PIPELINE, stages=stages, layer_count=len(stages)).check()


def test_a_long_list_of_reasons_is_cut() -> None:
    read = from_dict(_with("reasons", ["because"] * 500))
    assert isinstance(read, Plan)
    assert len(read.reasons) == limits.PLAN_REASONS_MAX


# --- search over many devices ------------------------------------------------------------------------
def _far_pairs(count: int) -> dict[tuple[str, str], float]:
    """A line in a shuffled order: neighbours near, all others far."""
    line = [0, 5, 2, 7, 1, 4, 3, 6]
    near = {frozenset((line[i], line[i + 1])) for i in range(count - 1)}
    return {
        (f"n{a}", f"n{b}"): 0.2 if frozenset((a, b)) in near else 30.0
        for a in range(count)
        for b in range(a + 1, count)
    }


def test_the_order_follows_the_links() -> None:
    """Eight devices, all needed, wired as a line: the plan walks along it."""
    found = mesh(*(device(f"n{i}", 0.21) for i in range(8)), rtts=_far_pairs(8))
    made = plan(Wish(HEAD), shape(8, 100, ends_mib=5), found).plan
    assert [p.removeprefix("peer-") for p in made.peers] == ["n0", "n5", "n2", "n7", "n1", "n4", "n3", "n6"]


def test_orders_are_improved_where_the_nearest_is_a_trap() -> None:
    """The nearest first leads to the far corner last; a move of one device mends it."""
    rtts = {(f"n{a}", f"n{b}"): 50.0 if b == 5 else 10.0 for a in range(6) for b in range(a + 1, 6)}
    rtts |= {
        ("n0", "n1"): 1,
        ("n1", "n2"): 1,
        ("n2", "n3"): 1,
        ("n3", "n4"): 1,
        ("n0", "n5"): 2,
        ("n1", "n5"): 2,
    }
    found = mesh(*(device(f"n{i}", 0.31) for i in range(6)), rtts=rtts)
    search = Search(Wish(HEAD), shape(12, 100, ends_mib=5), found, [Unit((p,)) for p in found.devices])
    chain = search.best_of(search._nearest_chain())
    best = search.best()
    assert chain is not None
    assert best is not None
    assert best.seconds < chain.seconds


@pytest.mark.parametrize("tries", [0, 1, 3])
def test_tries_have_an_end(monkeypatch: pytest.MonkeyPatch, tries: int) -> None:
    monkeypatch.setattr(limits, "PLAN_ORDER_TRIES_MAX", tries)
    found = mesh(*(device(f"n{i}", 0.31) for i in range(6)), rtts=_far_pairs(6))
    assert plan(Wish(HEAD), shape(12, 100, ends_mib=5), found).plan.stages


def test_nothing_found_over_many_devices() -> None:
    found = mesh(*(device(f"n{i}", 0.1) for i in range(7)))
    search = Search(Wish(HEAD), shape(), found, [Unit((p,)) for p in found.devices])
    assert search.best() is None
    assert search.best(stages=3) is None


def test_balancing_keeps_groups() -> None:
    found = mesh(device("n0", 8), device("n1", 8), device("n2", 8), rtt_ms=0.1)
    search = Search(Wish(HEAD), shape(), found, [Unit((HEAD, "peer-n1"), (2, 2)), Unit(("peer-n2",))])
    best = search.best(stages=2)
    assert best is not None
    assert {len(group.peers) for group in best.groups} == {1, 2}
    assert isinstance(best.groups[0], Group)
