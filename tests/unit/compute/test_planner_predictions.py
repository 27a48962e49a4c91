"""What a plan is predicted to take, what it is made of, and whose memory counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.compute import layout
from p2pnode.compute.planner import Wish, plan
from p2pnode.compute.wish import size_text
from p2pnode.errors import NoPlan
from tests.kit.meshes import GIB, MIB, device, mesh, shape
from tests.kit.planning import HEAD


def test_time_follows_the_law() -> None:
    model, found = shape(), mesh(device("n0"), device("n1"), rtt_ms=4)
    made = plan(Wish(HEAD, mode="pipeline", stages=2), model, found).plan
    weights_s = (8 * 100 + 50) * MIB / 10e9
    assert made.prediction.compute_s == pytest.approx(weights_s + 3 * limits.STEP_OVERHEAD_S)
    hops_s = 2 * (0.002 + 4096 / 1e9 + limits.HOP_PROCESSING_S)
    assert made.prediction.network_s == pytest.approx(hops_s)
    assert made.prediction.tokens_per_s == pytest.approx(1 / (made.prediction.compute_s + hops_s))


def test_long_prompts_keep_all_stages_busy() -> None:
    found = mesh(device("n0"), device("n1"))
    long = plan(Wish(HEAD, mode="pipeline", stages=2, prompt_tokens=4096), shape(), found).plan.prediction
    alone = plan(Wish(HEAD, mode="local", prompt_tokens=4096), shape(), found).plan.prediction
    assert long.first_token_s < 0.7 * alone.first_token_s


def test_fetching_takes_the_best_link() -> None:
    found = mesh(device("n0", held_layers=frozenset(range(8)), holds_ends=True), device("n1"), rate=50e6)
    made = plan(Wish(HEAD, mode="pipeline", devices=("n0", "n1")), shape(), found).plan
    assert made.prediction.fetch_bytes == 400 * MIB
    assert made.prediction.fetch_s == pytest.approx(400 * MIB / 50e6)
    alone = plan(Wish(HEAD), shape(), mesh(device("n0"))).plan
    assert alone.prediction.fetch_s == pytest.approx(900 * MIB / limits.LINK_ASSUMED_BYTES_PER_S)


def test_experts_count_only_when_used() -> None:
    dense, sparse = shape(), shape(active_bytes=(25 * MIB,) * 8)
    found = mesh(device("n0"))
    assert (
        plan(Wish(HEAD), sparse, found).plan.prediction.decode_s
        < plan(Wish(HEAD), dense, found).plan.prediction.decode_s / 2
    )
    assert plan(Wish(HEAD), sparse, found).plan.memory_of(HEAD) == plan(
        Wish(HEAD), dense, found
    ).plan.memory_of(HEAD)


@pytest.mark.parametrize(
    ("size", "text"),
    [(5, "5 B"), (2048, "2 KiB"), (3 * MIB, "3.0 MiB"), (5 * GIB, "5.0 GiB"), (2048 * GIB, "2.0 TiB")],
)
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert size_text(size) == text


@given(st.integers(1, 100), st.lists(st.floats(0.1, 100), min_size=1, max_size=8))
def test_splits_give_every_layer_once(layers: int, weights: list[float]) -> None:
    assert sum(layout.floor_split(layers, weights)) == layers
    if layers >= len(weights):
        counts = layout.proportional_split(layers, weights)
        assert sum(counts) == layers
        assert min(counts) >= 1


def test_aligned_cuts() -> None:
    assert layout.aligned([3, 3, 2], 1) == [3, 3, 2]
    assert layout.aligned([3, 3, 2], 4) == [0, 4, 4]
    assert [g.peers for g in layout.to_groups([0, 4, 4], ["a", "b", "c"])] == [("b",), ("c",)]


def test_layers_follow_the_memory_of_gpus_whose_owners_use_them() -> None:
    """A model of 900 MiB: what counts is the memory that computes."""
    model = shape()
    poor = device("n0", 0.5)
    assert plan(Wish(HEAD), model, mesh(replace(poor, memory_free_bytes=4 * GIB))).plan.mode == "local"
    rich = replace(poor, gpu_memory_free_bytes=4 * GIB, gpu_layers=100_000)
    assert plan(Wish(HEAD), model, mesh(rich)).plan.mode == "local"
    some = replace(poor, gpu_memory_free_bytes=4 * GIB, gpu_layers=6)
    assert plan(Wish(HEAD), model, mesh(some)).plan.mode == "local", "six layers there, two here"
    for without in (
        replace(rich, gpu_layers=0),
        replace(some, gpu_layers=1),
        replace(rich, gpu_memory_free_bytes=0),
    ):
        with pytest.raises(NoPlan, match="memory free"):
            plan(Wish(HEAD, mode="local"), model, mesh(without))


def test_a_small_gpu_that_is_to_have_all_layers_gets_few() -> None:
    big, small = (
        device("n0", 8),
        replace(device("n1", 8), gpu_memory_free_bytes=300 * MIB, gpu_layers=100_000),
    )
    made = plan(Wish(HEAD, mode="pipeline", devices=("n0", "n1")), shape(), mesh(big, small)).plan
    assert made.memory_of("peer-n1") <= 300 * MIB
    equal = plan(
        Wish(HEAD, mode="pipeline", devices=("n0", "n1")), shape(), mesh(big, replace(small, gpu_layers=0))
    ).plan
    layers = [sum(s.layer_count for s in one.stages_of("peer-n1")) for one in (made, equal)]
    assert layers[0] < layers[1]


def test_a_cap_is_a_cap_on_the_memory_of_a_gpu_too() -> None:
    rich = replace(device("n0", 0.5), gpu_memory_free_bytes=4 * GIB, gpu_layers=100_000)
    with pytest.raises(NoPlan):
        plan(Wish(HEAD, mode="local", memory_max_bytes={"n0": GIB // 2}), shape(), mesh(rich))
