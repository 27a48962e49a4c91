"""Devices that compute together: tensor groups, hybrids, RPC, streaming, and prompts that others read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from p2pnode.compute.cost import Mesh
from p2pnode.compute.plan import from_dict
from p2pnode.compute.planner import Wish, plan
from p2pnode.errors import NoPlan, PlanError
from tests.kit.meshes import device, mesh, shape
from tests.kit.planning import ALL, HEAD, cuts, reasons


def test_near_devices_form_a_tensor_group() -> None:
    found = mesh(device("n0", 8), device("n1", 8), rtt_ms=0.05)
    planned = plan(Wish(HEAD, auto_modes=ALL), shape(layer_mib=500), found)
    assert (planned.plan.mode, cuts(planned.plan)) == ("tensor", [("n0+n1", 0, 8)])
    assert planned.plan.stages[0].shares == (2, 2)
    assert planned.plan.output_memory_bytes > 0
    assert (
        planned.plan.prediction.decode_s
        < plan(Wish(HEAD, mode="local"), shape(layer_mib=500), found).plan.prediction.decode_s
    )


def test_no_group_is_given_in_place_of_as_many_stages_as_were_asked_for() -> None:
    """A third device that was admitted a moment ago has not been measured yet: two near ones made a group instead."""
    found = mesh(device("n0", 8), device("n1", 8), rtt_ms=0.05)
    with pytest.raises(NoPlan, match="2 devices are ready, 3 stages were asked for"):
        plan(Wish(HEAD, stages=3, auto_modes=ALL), shape(layer_mib=500), found)
    by_hand = (("n0", 0, 4), ("n1", 4, 8))
    with pytest.raises(NoPlan, match="3 stages were asked for"):
        plan(Wish(HEAD, stages=3, blocks=by_hand), shape(layer_mib=500), found)
    two = plan(Wish(HEAD, stages=2, auto_modes=ALL), shape(layer_mib=500), found).plan
    assert (two.mode, len(two.stages)) == ("pipeline", 2)


def test_a_crowd_of_near_devices_makes_several_groups() -> None:
    """Four heads: groups of four at most, and far ones apart."""
    names = [f"n{i}" for i in range(7)]
    far = {(name, "n6"): 30.0 for name in names[:6]}
    found = mesh(*(device(name, 1) for name in names), rtt_ms=0.05, rtts=far)
    made = plan(Wish(HEAD, mode="hybrid"), shape(24, 150), found).plan
    assert max(len(stage.peers) for stage in made.stages) == 4
    assert "peer-n6" not in {peer for stage in made.stages for peer in stage.peers if len(stage.peers) > 1}


def test_shares_are_heads_in_proportion_to_speed() -> None:
    found = mesh(device("n0", gb_per_s=30), device("n1"), rtt_ms=0.05)
    assert plan(Wish(HEAD, mode="tensor"), shape(), found).plan.stages[0].shares == (3, 1)
    assert plan(Wish(HEAD, mode="tensor", devices=("n0", "n1")), shape(), found).plan.stages[0].shares == (
        3,
        1,
    )


def test_far_or_untimed_devices_are_no_tensor_group() -> None:
    with pytest.raises(NoPlan) as caught:
        plan(Wish(HEAD, mode="tensor"), shape(), mesh(device("n0"), device("n1"), rtt_ms=5))
    assert "5.0 ms round trip" in caught.value.message
    with pytest.raises(NoPlan, match="not been timed"):
        plan(Wish(HEAD, mode="tensor"), shape(), Mesh({d.peer: d for d in (device("n0"), device("n1"))}))
    far = mesh(device("n0"), device("n1"), device("n2"), rtt_ms=0.1, rtts={("n0", "n2"): 9, ("n1", "n2"): 9})
    with pytest.raises(NoPlan, match="2 of the 3 named devices"):
        plan(Wish(HEAD, mode="tensor", devices=("n0", "n1", "n2")), shape(), far)
    with pytest.raises(NoPlan, match="one tensor"):
        plan(Wish(HEAD, mode="tensor"), shape(shard_refusal="its tensors are one tensor"), mesh(device("n0")))


def test_a_hybrid_has_groups_and_hops() -> None:
    names = ["n0", "n1", "n2", "n3"]
    near = {("n0", "n1"): 0.05, ("n2", "n3"): 0.05}
    found = mesh(*(device(name, 1.2) for name in names), rtt_ms=10, rtts=near)
    planned = plan(Wish(HEAD, mode="hybrid"), shape(layer_mib=400), found)
    assert planned.plan.mode == "hybrid"
    assert [c[0] for c in cuts(planned.plan)] == ["n0+n1", "n2+n3"]
    found = mesh(*(device(name, 1.2) for name in names), rtt_ms=10)
    with pytest.raises(NoPlan):
        plan(Wish(HEAD, mode="hybrid"), shape(layer_mib=400), found)
    found = mesh(device("n0", 8), device("n1", 8), rtt_ms=0.05)
    assert plan(Wish(HEAD, mode="hybrid"), shape(), found).plan.mode == "tensor"
    found = mesh(*(device(name, 0.6) for name in names), rtt_ms=10, rtts=near)
    with pytest.raises(NoPlan) as caught:
        plan(Wish(HEAD, mode="hybrid"), shape(layer_mib=400), found)
    assert "parts that fit the groups" in str(caught.value.details["rejections"])


def test_a_group_is_at_most_as_large_as_there_are_heads() -> None:
    found = mesh(*(device(f"n{i}") for i in range(6)), rtt_ms=0.05)
    made = plan(
        Wish(HEAD, mode="tensor"),
        shape(layer_mib=900),
        mesh(*(device(f"n{i}", 8) for i in range(6)), rtt_ms=0.05),
    )
    assert len(made.plan.peers) <= 4
    assert found


def test_near_devices_form_as_many_groups_as_stages_are_asked_for() -> None:
    found = mesh(*(device(f"n{i}", 8) for i in range(4)), rtt_ms=0.05)
    made = plan(Wish(HEAD, mode="hybrid", stages=2), shape(), found).plan
    assert (made.mode, [len(stage.peers) for stage in made.stages]) == ("hybrid", [2, 2])
    three = mesh(*(device(f"n{i}", 8) for i in range(3)), rtt_ms=0.05)
    made = plan(Wish(HEAD, mode="hybrid", stages=2), shape(), three).plan
    assert sorted(len(stage.peers) for stage in made.stages) == [1, 2]
    with pytest.raises(NoPlan):
        plan(Wish(HEAD, mode="hybrid", stages=4), shape(), three)


def test_stages_that_are_asked_for_are_no_devices_of_one_group() -> None:
    """A group of near devices is faster here, and it is one stage; who says tensor means its devices."""
    found = mesh(*(device(f"n{i}", 8) for i in range(3)), rtt_ms=0.02)
    wish = Wish(HEAD, auto_modes=(*ALL, "tensor"))
    model = shape(layer_mib=900)
    assert plan(wish, model, found).plan.mode == "tensor"
    assert len(plan(replace(wish, stages=3), model, found).plan.stages) == 3
    assert plan(replace(wish, stages=2, mode="tensor"), model, found).plan.mode == "tensor"


def test_streaming_is_the_last_resort() -> None:
    planned = plan(Wish(HEAD, auto_modes=ALL), shape(), mesh(device("n0", 0.5)))
    assert planned.plan.mode == "streamed"
    assert planned.plan.prediction.tokens_per_s < 1
    assert plan(Wish(HEAD, mode="streamed"), shape(), mesh(device("n0", 4))).plan.mode == "streamed"
    with pytest.raises(NoPlan):
        plan(Wish(HEAD, mode="streamed"), shape(), mesh(device("n0", 0.1)))


@pytest.mark.parametrize("mode", ["local", "streamed"])
@pytest.mark.parametrize("wish", [{"devices": ("n0", "n1")}, {"stages": 2}, {"pins": {"n1": (0, 2)}}])
def test_what_the_head_computes_alone_takes_no_others(mode: Any, wish: dict[str, Any]) -> None:
    with pytest.raises(NoPlan, match="by the head alone, and other devices"):
        plan(Wish(HEAD, mode=mode, **wish), shape(), mesh(device("n0"), device("n1")))


def test_prompts_go_to_who_reads_them_fastest() -> None:
    """The head decodes, so only the time to the first token decides; moving keys and values is part of it."""
    found = mesh(
        device("n0", 8), device("n1", 8, prefill_bytes_per_s=4e12), device("n2", 8, prefill_bytes_per_s=1e12)
    )
    planned = plan(Wish(HEAD, mode="disaggregated"), shape(), found)
    made = planned.plan
    assert (made.mode, [stage.peer for stage in made.stages]) == ("disaggregated", ["peer-n1"])
    local = plan(Wish(HEAD, mode="local"), shape(), found).plan
    assert made.prediction.network_s == 0
    assert made.prediction.first_token_s < local.prediction.first_token_s
    assert made.memory_of(HEAD) >= local.memory_of(HEAD) * 0.9, "the head has all layers too"
    assert from_dict(json.loads(json.dumps(made.as_dict()))) == made
    ring = plan(Wish(HEAD, mode="disaggregated", devices=("n1", "n2")), shape(), found).plan
    assert [stage.peer for stage in ring.stages] == ["peer-n1", "peer-n2"]
    with pytest.raises(NoPlan, match="no other device"):
        plan(Wish(HEAD, mode="disaggregated"), shape(), mesh(device("n0", 8)))
    with pytest.raises(NoPlan, match="memory"):
        plan(Wish(HEAD, mode="disaggregated"), shape(), mesh(device("n0", 0.2), device("n1", 8)))
    one = plan(Wish(HEAD, mode="disaggregated", stages=1), shape(), found).plan
    assert [stage.peer for stage in one.stages] == ["peer-n1"]
    with pytest.raises(NoPlan, match="memory"):
        plan(Wish(HEAD, mode="disaggregated"), shape(), mesh(device("n0", 8), device("n1", 0.01)))
    with pytest.raises(PlanError, match="other devices compute the prompt"):
        replace(made, stages=local.stages).check()


def test_rpc_needs_equal_builds() -> None:
    able = {"can_rpc": True, "build": "b1"}
    found = mesh(
        device("n0", **able), device("n1", **able), device("n2"), device("n3", can_rpc=True, build="b2")
    )
    planned = plan(Wish(HEAD, mode="tensor_rpc"), shape(), found)
    assert (planned.plan.mode, [c[0] for c in cuts(planned.plan)]) == ("tensor_rpc", ["n0", "n1"])
    assert "without RPC" in reasons(planned)["tensor_rpc with n2"]
    assert "is b2, the head's is b1" in reasons(planned)["tensor_rpc with n3"]
    with pytest.raises(NoPlan):
        plan(Wish(HEAD, mode="tensor_rpc", stages=3), shape(), found)
