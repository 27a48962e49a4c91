"""Every cut the table allows computes what the whole model computes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.compute.architectures import ARCHITECTURES, Architecture
from tests.kit.pipelines import Whole, chain, conversation
from tests.kit.toy_models import TOYS, model_bytes


@cache
def toy_bytes(name: str) -> bytes:
    return model_bytes(TOYS[name])


def row_of(name: str) -> Architecture:
    return ARCHITECTURES[TOYS[name].architecture]


@cache
def reference(name: str) -> list[np.ndarray]:
    whole = Whole(toy_bytes(name))
    try:
        return conversation(whole, rollback=not row_of(name).recurrent)
    finally:
        whole.close()


def assert_equal(name: str, cuts: list[int], *, embedding: bool, output_alone: bool) -> None:
    row = row_of(name)
    exact = row.scale != "width"
    cuts = [each // row.boundary * row.boundary for each in cuts if each < TOYS[name].layers]
    output_alone = output_alone and (row.boundary == 1 or row.layers_min == 1)
    with chain(toy_bytes(name), cuts, embedding=embedding, output_alone=output_alone) as stages:
        got = conversation(stages, rollback=not row.recurrent)
    for step, (mine, whole) in enumerate(zip(got, reference(name), strict=True)):
        assert np.isfinite(whole).all()
        difference = np.abs(mine - whole).max()
        assert difference <= (0.0 if exact else 1e-3 * np.abs(whole).max()), f"step {step}: {difference}"


def test_every_row_of_the_table_has_a_toy() -> None:
    assert set(ARCHITECTURES) == {toy.architecture for toy in TOYS.values()}


@pytest.mark.parametrize("name", TOYS)
def test_three_slices_equal_the_whole(name: str) -> None:
    layers = TOYS[name].layers
    assert_equal(name, [1, layers // 2 + 1], embedding=True, output_alone=False)


@pytest.mark.parametrize("name", TOYS)
def test_rows_in_and_the_output_alone_equal_the_whole(name: str) -> None:
    """The head looks embeddings up and applies the output matrix; others hold all layers."""
    assert_equal(name, [2, 4], embedding=False, output_alone=True)


@pytest.mark.parametrize(
    ("name", "dense"),
    [("gemma2", 1), ("gemma3", 5), ("olmo2-sliding", 3), ("gpt-oss", 3), ("cohere2", 3), ("gemma4", 2)],
)
def test_a_part_of_dense_layers_only_equals_the_whole(name: str, dense: int) -> None:
    """llama.cpp insists on a sliding layer in these families."""
    assert_equal(name, [dense, dense + 1], embedding=True, output_alone=False)


@settings(max_examples=25)
@given(st.data())
def test_random_cuts_equal_the_whole(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(TOYS)))
    cuts = data.draw(st.lists(st.integers(1, TOYS[name].layers - 1), max_size=3))
    assert_equal(name, cuts, embedding=data.draw(st.booleans()), output_alone=data.draw(st.booleans()))
