"""Adapters cut like the model change every part as they change the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from p2pnode.compute.gguf import ModelIndex
from p2pnode.compute.lora import cut_adapter
from p2pnode.compute.part import Part, Shard, whole
from p2pnode.compute.surgery import cut
from p2pnode.errors import ArchitectureUnsupported, BadModelFile, PlanError
from tests.kit.llama_runner import Engine, engine_for, index_of, materialise
from tests.kit.pipelines import PROMPT, Group
from tests.kit.toy_adapters import adapter_bytes
from tests.kit.toy_models import TOYS, model_bytes

ATTENTION = ("attn_q.weight", "attn_k.weight", "attn_v.weight")
ALL = (*ATTENTION, "attn_output.weight", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")
POSITIONS = range(len(PROMPT))


def adapted(index: ModelIndex, part: Part, data: bytes, adapter: bytes) -> Engine:
    engine = engine_for(cut(index, part), data)
    made = cut_adapter(index_of(adapter), index, part)
    if made is not None:
        engine.adapt(materialise(made, adapter))
    return engine


@pytest.mark.parametrize(
    ("name", "suffixes"),
    [
        ("llama", ALL),
        ("qwen2", ALL),
        ("gemma2", ALL),
        ("mixtral", ("attn_q.weight", "ffn_up_exps.weight", "ffn_down_exps.weight", "ffn_gate_exps.weight")),
        ("phi3", ("attn_qkv.weight", "ffn_up.weight")),
    ],
)
def test_slices_with_their_adapters_equal_the_whole_with_its(name: str, suffixes: tuple[str, ...]) -> None:
    data = model_bytes(TOYS[name])
    index = index_of(data)
    adapter = adapter_bytes(index, suffixes)
    layers = TOYS[name].layers
    full, plain = adapted(index, whole(index), data, adapter), Engine(data)
    expected = full.decode(POSITIONS, tokens=PROMPT)
    assert np.abs(expected - plain.decode(POSITIONS, tokens=PROMPT)).max() > 0.01 * np.abs(expected).max()
    head = adapted(index, Part(0, 2, embedding=True), data, adapter)
    middle = adapted(index, Part(2, 3), data, adapter)
    tail = adapted(index, Part(3, layers, output=True), data, adapter)
    rows = middle.decode(POSITIONS, rows=head.decode(POSITIONS, tokens=PROMPT))
    got = tail.decode(POSITIONS, rows=rows)
    tolerance = 1e-3 if name == "gemma2" else 0.0
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()
    for each in (full, plain, head, middle, tail):
        each.close()


@pytest.mark.parametrize(
    ("name", "suffixes"),
    [
        ("llama", (*ATTENTION, "ffn_gate.weight", "ffn_up.weight")),
        ("qwen2", ATTENTION),
        ("mixtral", ("attn_q.weight", "ffn_gate_inp.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")),
    ],
)
def test_shards_with_their_adapters_choose_the_same_tokens(name: str, suffixes: tuple[str, ...]) -> None:
    data = model_bytes(TOYS[name])
    index = index_of(data)
    adapter = adapter_bytes(index, suffixes)
    full = adapted(index, whole(index), data, adapter)
    group = Group(index, data, (2, 1), whole(index))
    for rank, engine in enumerate(group.engines):
        made = cut_adapter(index_of(adapter), index, replace(whole(index), shard=Shard(rank, (2, 1))))
        assert made is not None
        engine.adapt(materialise(made, adapter))
    expected = full.decode(POSITIONS, tokens=PROMPT)
    got = group.decode(POSITIONS, tokens=PROMPT)
    assert np.abs(got - expected).max() <= 5e-3 * np.abs(expected).max()
    assert (got.argmax(axis=1) == expected.argmax(axis=1)).all()
    group.close()
    full.close()


def test_a_part_without_changes_needs_no_adapter() -> None:
    index = index_of(model_bytes(TOYS["llama"]))
    adapter = index_of(adapter_bytes(index, ("blk.0.attn_q.weight",)))
    assert cut_adapter(adapter, index, Part(1, 3)) is None
    assert cut_adapter(adapter, index, Part(5, 5, output=True)) is None
    made = cut_adapter(adapter, index, Part(0, 1))
    assert made is not None
    assert made.size < 8192


def test_norms_in_adapters_are_passed_over_as_llama_cpp_does() -> None:
    index = index_of(model_bytes(TOYS["llama"]))
    data = adapter_bytes(index, ("attn_q.weight",))
    adapter = index_of(data)
    norm = replace(next(iter(adapter.tensors.values())), name="blk.0.attn_norm.weight")
    made = cut_adapter(replace(adapter, tensors={**adapter.tensors, norm.name: norm}), index, Part(0, 2))
    assert made is not None
    assert len(index_of(materialise(made, data)).tensors) == 4


def test_changes_of_the_ends_are_refused_where_a_cut_cannot_follow() -> None:
    index = index_of(model_bytes(TOYS["llama"]))
    matrix = index_of(adapter_bytes(index, ("output.weight",)))
    with pytest.raises(ArchitectureUnsupported, match="output matrix"):
        cut_adapter(matrix, index, Part(3, 5, output=True))
    assert cut_adapter(matrix, index, Part(1, 3)) is None
    assert cut_adapter(matrix, index, whole(index)) is not None
    table = index_of(adapter_bytes(index, ("token_embd.weight",)))
    tied = index_of(model_bytes(TOYS["llama-tied-q8_0"]))
    for base, part in ((index, Part(0, 2)), (index, Part(0, 2, embedding=True)), (tied, whole(tied))):
        adapter = table if base is index else index_of(adapter_bytes(tied, ("token_embd.weight",)))
        with pytest.raises(ArchitectureUnsupported, match="changes the embedding"):
            cut_adapter(adapter, base, part)


def test_a_change_of_the_embedding_works_whole_where_the_output_is_another_matrix() -> None:
    data = model_bytes(TOYS["llama"])
    index = index_of(data)
    adapter = adapter_bytes(index, ("token_embd.weight", "output.weight"))
    full, plain = adapted(index, whole(index), data, adapter), Engine(data)
    assert not np.allclose(full.decode([0], tokens=[5]), plain.decode([0], tokens=[5]))
    full.close()
    plain.close()


@pytest.mark.parametrize("suffix", ["attn_output.weight", "ffn_down.weight"])
def test_changes_behind_the_sum_are_refused_for_shards(suffix: str) -> None:
    index = index_of(model_bytes(TOYS["llama"]))
    adapter = index_of(adapter_bytes(index, (suffix,)))
    with pytest.raises(ArchitectureUnsupported, match="sum over devices"):
        cut_adapter(adapter, index, Part(0, 2, shard=Shard(0, (1, 1))))


def test_what_is_no_adapter_of_this_model_is_refused() -> None:
    index = index_of(model_bytes(TOYS["llama"]))
    good = index_of(adapter_bytes(index, ("attn_q.weight",)))
    part = Part(0, 2)
    with pytest.raises(BadModelFile, match="not a LoRA adapter"):
        cut_adapter(index, index, part)
    with pytest.raises(BadModelFile, match="not a LoRA adapter"):
        cut_adapter(index_of(adapter_bytes(index, (), adapter_type="control_vector")), index, part)
    with pytest.raises(BadModelFile, match="is for qwen2 models"):
        cut_adapter(index_of(adapter_bytes(index, (), general_architecture="qwen2")), index, part)
    with pytest.raises(PlanError):
        cut_adapter(good, index, Part(3, 9))
    first = next(iter(good.tensors.values()))
    for wrong in (
        {name: tensor for name, tensor in good.tensors.items() if name != first.name},
        {**good.tensors, "blk.0.attn_q.weight.lora_c": replace(first, name="blk.0.attn_q.weight.lora_c")},
        {**good.tensors, first.name: replace(first, shape=(first.shape[0] * 2, first.shape[1]))},
        {**good.tensors, first.name: replace(first, shape=first.shape[:1])},
        {name.replace("attn_q", "attn_x"): tensor for name, tensor in good.tensors.items()},
    ):
        with pytest.raises(BadModelFile):
            cut_adapter(replace(good, tensors=wrong), index, part)
