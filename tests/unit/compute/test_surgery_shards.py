"""Tensor shards: uneven shares give the same greedy tokens, and what cannot be cut by heads says why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.compute.architectures import ARCHITECTURES
from p2pnode.compute.gguf import ValueType, array, parse, scalar
from p2pnode.compute.part import Part, Shard, real_layer_count, whole
from p2pnode.compute.shard import apportion, head_ranges, rank_limit
from p2pnode.compute.surgery import cut, needed_tensors
from p2pnode.errors import ArchitectureUnsupported, BadModelFile, PlanError
from tests.kit.llama_runner import engine_for, index_of, materialise
from tests.kit.pipelines import PROMPT, Group, Whole
from tests.kit.toy_models import TOYS, model_bytes

SHARDABLE = sorted(name for name, toy in TOYS.items() if ARCHITECTURES[toy.architecture].shardable)
QUANTISED = {"llama-q4_k", "qwen2-q4_k", "qwen3-q4_k", "llama-tied-q8_0", "qwen2-q8_0", "qwen3-q8_0"}
STEPS = 6


def greedy_equals_whole(name: str, shares: tuple[int, ...]) -> None:
    """Logits may differ by the order of additions; the chosen tokens may not."""
    data = model_bytes(TOYS[name])
    full = Whole(data)
    group = Group(index_of(data), data, shares, whole(index_of(data)))
    try:
        tokens, positions = list(PROMPT), list(range(len(PROMPT)))
        for _ in range(STEPS):
            expected = full.decode(positions, tokens)
            got = group.decode(positions, tokens=tokens)
            tolerance = 0.06 if name in QUANTISED else 2e-3
            assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()
            assert (got[-1].argmax()) == expected[-1].argmax()
            tokens, positions = [int(expected[-1].argmax())], [positions[-1] + 1]
        assert group.sums == 2 * TOYS[name].layers * STEPS
    finally:
        group.close()
        full.close()


@pytest.mark.parametrize("name", SHARDABLE)
def test_two_uneven_shards_choose_the_same_tokens(name: str) -> None:
    greedy_equals_whole(name, (3, 1))


@pytest.mark.parametrize("shares", [(2, 1, 1), (4, 1, 2, 1)])
@pytest.mark.parametrize(
    "name", ["llama", "llama-biases", "qwen2", "qwen3", "mixtral", "qwen3moe", "gpt-oss"]
)
def test_three_and_four_uneven_shards_choose_the_same_tokens(name: str, shares: tuple[int, ...]) -> None:
    """The toys have two key-value heads: several ranks read the same one."""
    greedy_equals_whole(name, shares)


def test_shards_of_a_slice_feed_the_next_stage() -> None:
    """Hybrid mode: two groups of two ranks, one behind the other."""
    data = model_bytes(TOYS["qwen2"])
    index = index_of(data)
    full = Whole(data)
    groups = [Group(index, data, (1, 2), Part(0, 2, embedding=True)), Group(index, data, (1, 1), Part(2, 5))]
    tail = engine_for(cut(index, Part(5, 5, output=True)), data)
    rows = groups[0].decode(range(len(PROMPT)), tokens=PROMPT)
    rows = groups[1].decode(range(len(PROMPT)), rows=rows)
    expected = full.decode(range(len(PROMPT)), PROMPT)
    assert (
        np.abs(tail.decode(range(len(PROMPT)), rows=rows) - expected).max() <= 2e-3 * np.abs(expected).max()
    )
    for each in (*groups, tail, full):
        each.close()


@pytest.mark.parametrize("name", sorted(set(TOYS) - set(SHARDABLE)))
def test_architectures_that_cannot_be_sharded_say_why(name: str) -> None:
    toy = TOYS[name]
    index = index_of(model_bytes(toy))
    with pytest.raises(ArchitectureUnsupported) as caught:
        cut(index, Part(0, real_layer_count(index), shard=Shard(0, (1, 1))))
    assert ARCHITECTURES[toy.architecture].shard_refusal in caught.value.message


def test_ranks_hold_the_model_once() -> None:
    """Matrices of the layers are divided without overlap; norms and embeddings are on every rank."""
    data = model_bytes(replace(TOYS["llama"], features=frozenset({"biases"})))
    index = index_of(data)
    part = Part(1, 4)
    alone = parse(materialise(cut(index, part), data))
    ranks = [
        parse(materialise(cut(index, replace(part, shard=Shard(rank, (2, 1)))), data)) for rank in range(2)
    ]
    for name, tensor in alone.tensors.items():
        sizes = [each.tensors[name].size for each in ranks]
        divided = name.startswith("blk.") and name.endswith("weight") and "norm" not in name
        assert sum(sizes) == tensor.size if divided else sizes == [tensor.size] * 2, name
    assert ranks[0].metadata["llama.attention.key_length"].value() == 16


def test_the_head_of_a_group_may_hold_the_output_alone() -> None:
    data = model_bytes(TOYS["llama"])
    index = index_of(data)
    assert cut(index, Part(5, 5, output=True, shard=Shard(1, (1, 1)))).facts.reduce == ()
    names = cut(index, Part(3, 5, shard=Shard(1, (1, 1)))).facts.reduce
    assert names == (
        "blk.0.attn_output.weight",
        "blk.0.ffn_down.weight",
        "blk.1.attn_output.weight",
        "blk.1.ffn_down.weight",
    )
    experts = index_of(model_bytes(TOYS["mixtral"]))
    assert "ffn_moe_out-0" in cut(experts, Part(3, 5, shard=Shard(1, (1, 1)))).facts.reduce


def test_blocks_that_cannot_be_divided_are_refused() -> None:
    index = index_of(model_bytes(TOYS["qwen3-q4_k"]))
    with pytest.raises(PlanError, match="blocks of this quantisation"):
        needed_tensors(index, Part(0, 2, shard=Shard(0, (1, 1, 1))))
    few = index_of(model_bytes(replace(TOYS["llama"], ff=32)))
    many = tuple([1] * 4)
    assert cut(few, Part(0, 2, shard=Shard(3, many))).facts.reduce
    with pytest.raises(PlanError, match="units"):
        cut(
            index_of(model_bytes(replace(TOYS["llama"], type="Q8_0", head_width=64, ff=64))),
            Part(0, 2, shard=Shard(0, (1, 1, 1))),
        )


def test_a_bias_of_the_output_keeps_qwen2_whole() -> None:
    data = model_bytes(TOYS["qwen2"])
    index = index_of(data)
    biased = replace(
        index,
        tensors={
            **index.tensors,
            "output.bias": replace(index.tensors["output_norm.weight"], name="output.bias"),
        },
    )
    with pytest.raises(ArchitectureUnsupported, match="output has a bias"):
        cut(biased, Part(0, 2, shard=Shard(0, (1, 1))))


def test_unknown_tensors_and_odd_layers_are_refused() -> None:
    data = model_bytes(TOYS["llama"])
    index = index_of(data)
    extra = replace(index.tensors["blk.0.attn_q.weight"], name="blk.0.mystery.weight")
    with pytest.raises(ArchitectureUnsupported, match=r"mystery\.weight"):
        cut(replace(index, tensors={**index.tensors, extra.name: extra}), Part(0, 2, shard=Shard(0, (1, 1))))
    odd = replace(TOYS["llama"], parameters={"attention.head_count_kv": [2, 0, 2, 2, 2]})
    with pytest.raises(ArchitectureUnsupported, match="no plain attention heads"):
        cut(index_of(model_bytes(odd)), Part(0, 2, shard=Shard(0, (1, 1))))
    wide = replace(index.tensors["blk.0.ffn_down.weight"], shape=(64, 96))
    with pytest.raises(ArchitectureUnsupported, match="several widths"):
        cut(replace(index, tensors={**index.tensors, wide.name: wide}), Part(0, 2, shard=Shard(0, (1, 1))))


@given(st.integers(1, 300), st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_apportion_gives_all_and_at_least_one(total: int, shares: list[int]) -> None:
    if total < len(shares):
        with pytest.raises(PlanError):
            apportion(total, shares)
        return
    counts = apportion(total, shares)
    assert sum(counts) == total
    assert min(counts) >= 1
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - total * share / sum(shares)) <= len(shares) + 1


@given(
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 8),
    st.sampled_from([1, 2, 4]),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_head_ranges_cover_every_query_head_once(group: int, kv: int, unit: int, shares: list[int]) -> None:
    try:
        ranges = head_ranges(group * kv, kv, unit, shares)
    except PlanError:
        return
    assert len(ranges) == len(shares)
    assert [each.query_first for each in ranges] == [0, *(each.query_end for each in ranges[:-1])]
    assert ranges[-1].query_end == group * kv
    for each in ranges:
        assert each.query_first % unit == 0 or each.query_first % (group * kv) == 0
        local, local_kv = each.query_end - each.query_first, each.kv_end - each.kv_first
        assert local % local_kv == 0
        for head in (each.query_first, each.query_end - 1):
            assert each.kv_first <= head // group < each.kv_end


def test_layers_of_different_heads_keep_their_own_counts() -> None:
    toy = replace(
        TOYS["llama"], parameters={"attention.head_count": [4] * 5, "attention.head_count_kv": [2] * 5}
    )
    index = index_of(model_bytes(toy))
    arrays = {
        key: array(f"llama.{key}", ValueType.UINT32, values)
        for key, values in {
            "attention.head_count": [4, 8, 4, 4, 4],
            "attention.head_count_kv": [2, 4, 2, 2, 2],
        }.items()
    }
    wide = {}
    for name, tensor in index.tensors.items():
        scale = 2 if name.startswith(("blk.1.attn_q", "blk.1.attn_k.", "blk.1.attn_v")) else 1
        shape = (tensor.shape[0], tensor.shape[1] * scale) if scale == 2 else tensor.shape
        if name == "blk.1.attn_output.weight":
            shape, scale = (128, 64), 2
        wide[name] = replace(tensor, shape=shape, size=tensor.size * scale)
    odd = replace(
        index, tensors=wide, metadata={**index.metadata, **{entry.key: entry for entry in arrays.values()}}
    )
    made = parse(cut(odd, Part(0, 3, shard=Shard(0, (1, 1)))).header, 10**9)
    assert made.metadata["llama.attention.head_count"].value() == [2, 4, 2]


def test_sizes_that_contradict_the_heads_are_refused() -> None:
    index = index_of(model_bytes(TOYS["llama"]))
    short = replace(index.tensors["blk.0.attn_q.weight"], shape=(64, 32))
    with pytest.raises(BadModelFile, match="cannot be cut"):
        cut(replace(index, tensors={**index.tensors, short.name: short}), Part(0, 2, shard=Shard(1, (1, 1))))


@pytest.mark.parametrize("name", sorted(TOYS))
def test_the_limit_of_ranks_is_the_most_that_can_be_cut(name: str) -> None:
    index = index_of(model_bytes(TOYS[name]))
    limit = rank_limit(index)
    assert (limit > 1) == (name in SHARDABLE)
    part = Part(0, real_layer_count(index))
    if limit > 1:
        cut(index, replace(part, shard=Shard(limit - 1, (1,) * limit)))
    with pytest.raises((PlanError, ArchitectureUnsupported)):
        cut(index, replace(part, shard=Shard(0, (1,) * (limit + 1))))


def test_only_known_architectures_and_real_layers_count() -> None:
    index = index_of(model_bytes(TOYS["llama"]))
    stray = replace(index.tensors["blk.0.ffn_down.weight"], name="blk.99.ffn_down.weight", shape=(1, 64))
    assert rank_limit(replace(index, tensors={**index.tensors, stray.name: stray})) == rank_limit(index)
    unknown = {
        **index.metadata,
        "general.architecture": scalar("general.architecture", ValueType.STRING, "x"),
    }
    assert rank_limit(replace(index, metadata=unknown)) == 1
