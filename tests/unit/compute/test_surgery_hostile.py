"""Models whose parameters and tensors contradict each other are refused with a condition, never with a crash."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.compute.embedding import embed_rows
from p2pnode.compute.gguf import Entry, ModelIndex, ValueType, array, parse, scalar
from p2pnode.compute.memory import cut_memory
from p2pnode.compute.part import Part, Shard
from p2pnode.compute.surgery import cut, needed_tensors
from p2pnode.errors import P2PNodeError
from tests.kit.llama_runner import index_of
from tests.kit.toy_models import TOYS, model_bytes

INDEXES = {name: index_of(model_bytes(toy)) for name, toy in TOYS.items() if "q4_k" not in name}
KEYS = (
    "attention.sliding_window_pattern",
    "attention.sliding_window",
    "nextn_predict_layers",
    "attention.recurrent_layers",
    "leading_dense_block_count",
    "embedding_scale",
    "deepstack_mapping",
    "rope.freq_base_swa",
    "rope.freq_base",
    "expert_gating_func",
    "expert_feed_forward_length",
    "attention.key_length_mla",
    "full_attention_interval",
    "block_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "feed_forward_length",
    "embedding_length",
)
VALUES = (
    (ValueType.STRING, "x"),
    (ValueType.INT32, -5),
    (ValueType.UINT64, 2**63 + 1),
    (ValueType.UINT32, 0),
    (ValueType.UINT32, 1),
    (ValueType.UINT32, 4_000_000_000),
    (ValueType.FLOAT32, float("nan")),
    (ValueType.BOOL, True),
)
ARRAYS = (
    (ValueType.STRING, ["a"] * 5),
    (ValueType.UINT32, [0] * 5),
    (ValueType.UINT32, []),
    (ValueType.INT32, [-1, 2**31 - 1, 3, 4, 5, 6]),
    (ValueType.FLOAT32, [1.5] * 6),
    (ValueType.BOOL, [True] * 5),
)
PARTS = (
    Part(0, 2, embedding=True),
    Part(1, 3),
    Part(2, 5, output=True),
    Part(5, 5, output=True),
    Part(0, 5, embedding=True, output=True),
    Part(1, 3, shard=Shard(0, (1, 2))),
    Part(0, 5, embedding=True, output=True, shard=Shard(1, (2, 1))),
)


def strange_entry(draw: st.DrawFn, name: str) -> Entry:
    if draw(st.booleans()):
        return scalar(name, *draw(st.sampled_from(VALUES)))
    return array(name, *draw(st.sampled_from(ARRAYS)))


@st.composite
def strange_models(draw: st.DrawFn) -> ModelIndex:
    index = INDEXES[draw(st.sampled_from(sorted(INDEXES)))]
    metadata, tensors = dict(index.metadata), dict(index.tensors)
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            name = f"{index.architecture}.{draw(st.sampled_from(KEYS))}"
            metadata[name] = strange_entry(draw, name)
            continue
        name = draw(st.sampled_from(sorted(tensors)))
        tensor = tensors.pop(name)
        match draw(st.integers(0, 2)):
            case 0 if tensor.shape[-1] % tensor.type.block_elements == 0:
                tensors[name] = replace(tensor, shape=tensor.shape[::-1])
            case 1:
                tensors[name] = replace(tensor, shape=tensor.shape[:1], size=tensor.row_bytes)
            case _:
                moved = f"blk.{draw(st.integers(0, 10**12))}.{name.rpartition('.')[2]}"
                tensors[moved] = replace(tensor, name=moved)
    return replace(index, metadata=metadata, tensors=tensors)


@settings(max_examples=150)
@given(strange_models(), st.sampled_from(PARTS))
def test_strange_models_are_cut_or_refused(index: ModelIndex, part: Part) -> None:
    try:
        made = cut(index, part)
        assert parse(made.header, made.size).file_size == made.size
        assert cut_memory(made).weights_bytes > 0
        assert needed_tensors(index, part)
        embed_rows(index, lambda file, offset, size: bytes(size), [0, 1])
    except P2PNodeError:
        pass
