"""What is asked for is obeyed, what is chosen is the fastest that fits."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from p2pnode import limits
from p2pnode.compute.planner import Wish, plan
from p2pnode.errors import NoPlan
from tests.kit.meshes import MIB, device, mesh, shape
from tests.kit.planning import ALL, HEAD, cuts, reasons


def test_one_device_plans_locally() -> None:
    made = plan(Wish(HEAD), shape(), mesh(device("n0"))).plan
    assert (made.mode, cuts(made)) == ("local", [("n0", 0, 8)])
    assert made.output_in_last_stage
    assert made.output_memory_bytes == 0
    assert made.spares == ()


def test_a_far_away_helper_is_left_out_with_numbers() -> None:
    planned = plan(Wish(HEAD), shape(), mesh(device("n0"), device("n1", gb_per_s=20), rtt_ms=200))
    assert planned.plan.mode == "local"
    assert "ms of network" in reasons(planned)["n1"]


def test_a_much_faster_device_gets_it_all_and_the_head_samples() -> None:
    made = plan(Wish(HEAD), shape(), mesh(device("n0"), device("n1", gb_per_s=100))).plan
    assert (made.mode, cuts(made)) == ("pipeline", [("n1", 0, 8)])
    assert not made.output_in_last_stage
    assert made.output_memory_bytes > 50 * MIB


def test_a_slight_gain_is_not_worth_a_second_device() -> None:
    planned = plan(
        Wish(HEAD), shape(layer_mib=1000), mesh(device("n0", 16), device("n1", 16, 10.5), rtt_ms=0.1)
    )
    assert planned.plan.mode == "local"
    assert any("predictions err" in reason for reason in reasons(planned).values())


def test_what_does_not_fit_one_is_cut() -> None:
    planned = plan(Wish(HEAD), shape(), mesh(device("n0", 0.45), device("n1", 0.45), device("n2", 0.45)))
    assert [c[0] for c in cuts(planned.plan)] == ["n0", "n1", "n2"]
    assert "has 460.8 MiB of memory free" in reasons(planned)["local n0 [0, 8)"]


def test_equal_devices_get_equal_stages() -> None:
    """One stream would not care; prompts do."""
    made = plan(
        Wish(HEAD, mode="pipeline", stages=4), shape(), mesh(*(device(f"n{i}") for i in range(4)))
    ).plan
    assert [b - a for _, a, b in cuts(made)] == [2, 2, 2, 2]
    assert cuts(made)[0][0] == "n0"


def test_devices_are_used_in_the_order_given() -> None:
    found = mesh(device("n0"), device("n1"), device("n2"))
    made = plan(Wish(HEAD, mode="pipeline", devices=("n2", "n1")), shape(), found).plan
    assert [c[0] for c in cuts(made)] == ["n2", "n1"]
    made = plan(Wish(HEAD, devices=("n0",)), shape(), found).plan
    assert made.mode == "local"


def test_pins_are_obeyed() -> None:
    found = mesh(device("n0"), device("n1", gb_per_s=1), device("n2", gb_per_s=100))
    made = plan(Wish(HEAD, pins={"n1": (2, 5)}), shape(), found).plan
    first, end = next((a, b) for name, a, b in cuts(made) if name == "n1")
    assert (first, end) == (2, 5)


def test_architectures_are_cut_where_they_may_be() -> None:
    made = plan(
        Wish(HEAD, mode="pipeline", stages=2), shape(boundary=4), mesh(device("n0"), device("n1", gb_per_s=3))
    ).plan
    assert [c[1:] for c in cuts(made)] == [(0, 4), (4, 8)]


def test_an_architecture_with_too_few_places_to_cut_says_so() -> None:
    with pytest.raises(NoPlan, match="pipeline of 2"):
        plan(Wish(HEAD, mode="pipeline", stages=2), shape(3, boundary=4), mesh(device("n0"), device("n1")))


def test_who_asks_for_a_pipeline_gets_one() -> None:
    """And is told that one device would be faster."""
    planned = plan(Wish(HEAD, mode="pipeline"), shape(), mesh(device("n0"), device("n1"), rtt_ms=20))
    assert [c[0] for c in cuts(planned.plan)] == ["n0", "n1"]
    assert "a pipeline was asked for" in reasons(planned)["local n0 [0, 8)"]
    assert plan(Wish(HEAD, mode="pipeline"), shape(), mesh(device("n0"))).plan.mode == "local"


def test_the_memory_strategy_is_the_seeds_rule() -> None:
    """floor(share x layers), the remainder to the largest."""
    found = mesh(device("n0", 2), device("n1", 5), device("n2", 3))
    made = plan(Wish(HEAD, mode="pipeline", strategy="memory", stages=3), shape(11), found).plan
    assert sorted((name, b - a) for name, a, b in cuts(made)) == [("n0", 2), ("n1", 6), ("n2", 3)]
    assert {s.role for s in made.stages} == {"head", "middle", "tail"}
    assert len(plan(Wish(HEAD, strategy="memory"), shape(), found).plan.stages) == 3
    assert plan(Wish(HEAD, strategy="memory"), shape(), mesh(device("n0"))).plan.mode == "local"
    assert plan(Wish(HEAD, mode="local", strategy="memory"), shape(), found).plan.mode == "local"
    with pytest.raises(NoPlan, match="worth a layer"):
        plan(
            Wish(HEAD, mode="pipeline", strategy="memory", stages=2),
            shape(4),
            mesh(device("n0", 9), device("n1", 0.5)),
        )
    with pytest.raises(NoPlan, match="3 devices are ready"):
        plan(Wish(HEAD, mode="pipeline", strategy="memory", stages=4), shape(), found)
    made = plan(Wish(HEAD, mode="pipeline", strategy="memory", devices=("n2", "n0")), shape(), found).plan
    assert [c[0] for c in cuts(made)] == ["n2", "n0"]


def test_sixty_four_devices_are_planned_in_time() -> None:
    """Time of this process alone: the machine is shared."""
    found = mesh(*(device(f"n{i}", 1 + i % 4, 5 + i % 7) for i in range(64)), rtt_ms=2)
    started = time.process_time()
    made = plan(Wish(HEAD, auto_modes=ALL), shape(80, 400), found).plan
    assert time.process_time() - started < 1.0
    assert len(made.peers) > 8


def test_more_devices_than_can_be_planned_are_left_out() -> None:
    found = mesh(*(device(f"n{i}") for i in range(limits.PLAN_DEVICES_MAX + 2)))
    assert "more than 64 devices" in reasons(plan(Wish(HEAD), shape(), found)).values()


def test_a_metered_device_is_made_to_fetch_only_by_name() -> None:
    small = device("n0", gib=0.6)
    dear = replace(device("n1"), is_metered=True)
    with pytest.raises(
        NoPlan, match="n1: its traffic costs money, and it would have to fetch: it lacks 8 of 8"
    ):
        plan(Wish(HEAD), shape(), mesh(small, dear))
    assert cuts(plan(Wish(HEAD, devices=("n0", "n1")), shape(), mesh(small, dear)).plan)
    holder = replace(dear, held_layers=frozenset(range(8)))
    assert "n1" in {name for name, *_ in cuts(plan(Wish(HEAD), shape(), mesh(small, holder)).plan)}


def test_devices_may_be_named_by_the_end_of_their_id() -> None:
    made = plan(Wish(HEAD, devices=("peer-n1",)), shape(), mesh(device("n0"), device("n1"))).plan
    assert cuts(made)[0][0] == "n1"
    long = replace(device("x"), peer="12D3KooWabcdef", name="y")
    made = plan(Wish(HEAD, devices=("abcdef",)), shape(), mesh(device("n0"), long)).plan
    assert made.stages[0].peer == long.peer


def test_devices_that_are_too_small_are_named_for_the_stages_asked_for() -> None:
    """No cut fits, so the one that speeds would give is shown, with what each device lacks."""
    with pytest.raises(NoPlan) as found:
        plan(Wish(HEAD, mode="pipeline", stages=2), shape(), mesh(device("n0", 0.05), device("n1", 0.05)))
    assert "n0" in str(found.value.details["rejections"])
