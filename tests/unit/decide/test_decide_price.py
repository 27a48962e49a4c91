"""The price list and the division of a price."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.decide import divide, price_microunits


@pytest.mark.parametrize(
    ("tokens", "units"), [(0, 1), (1, 1), (999, 1), (1000, 1), (1001, 2), (2000, 2), (4096, 5)]
)
def test_a_begun_thousand_of_tokens_costs_a_unit(tokens: int, units: int) -> None:
    assert price_microunits(tokens) == units * 1_000_000


def test_equal_work_is_paid_equally_and_the_odd_microunit_goes_to_the_smaller_name() -> None:
    assert divide(1_000_000, [("c", 5), ("a", 5), ("b", 5)]) == (
        ("a", 333_334),
        ("b", 333_333),
        ("c", 333_333),
    )


def test_parts_of_one_name_are_one_part_and_parts_of_nothing_are_none() -> None:
    assert divide(10, [("a", 1), ("b", 0), ("a", 1)]) == (("a", 10),)
    assert divide(1, [("a", 1), ("b", 1)]) == (("a", 1),)


@pytest.mark.parametrize("weights", [[], [("a", 0)], [("a", 0), ("b", 0)]])
def test_without_work_nobody_is_named(weights: list[tuple[str, int]]) -> None:
    assert divide(5, weights) == ()


@given(
    amount=st.integers(0, 2**61),
    weights=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 2**40)), max_size=12),
    seed=st.randoms(),
)
def test_parts_sum_to_the_whole_in_any_order_and_stay_next_to_their_share(
    amount: int, weights: list[tuple[str, int]], seed: object
) -> None:
    parts = divide(amount, weights)
    total = sum(weight for _, weight in weights)
    assert sum(part for _, part in parts) == (amount if total else 0)
    assert divide(amount, list(reversed(weights))) == parts
    for name, part in parts:
        weight = sum(w for n, w in weights if n == name)
        assert amount * weight // total <= part <= amount * weight // total + 1
