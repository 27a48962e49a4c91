"""Estimates against what llama.cpp takes."""

from __future__ import annotations

import re
from dataclasses import replace

import llama_cpp.llama_cpp as llama
import pytest

from p2pnode.compute.architectures import ARCHITECTURES
from p2pnode.compute.memory import cut_memory, layer_bytes, part_memory
from p2pnode.compute.part import Cut, Part, Shard, real_layer_count, whole
from p2pnode.compute.surgery import cut
from p2pnode.errors import PlanError
from tests.kit import llama_runner
from tests.kit.llama_runner import Engine, engine_for, index_of
from tests.kit.toy_models import TOYS, Toy, model_bytes

MIB = 1024 * 1024


def loaded(made: Cut, data: bytes, context: int = 256) -> tuple[Engine, list[str]]:
    """An engine for a cut and what llama.cpp said while it was made."""
    lines: list[str] = []

    @llama.llama_log_callback
    def log(level: int, text: bytes, user: object) -> None:
        lines.append(text.decode())

    llama.llama_log_set(log, None)
    try:
        return engine_for(made, data, context=context), lines
    finally:
        llama.llama_log_set(llama_runner._log, None)


def sizes(lines: list[str], what: str) -> list[float]:
    found = [re.search(rf"{what} buffer size = +([\d.]+) MiB", each) for each in lines]
    return [float(each[1]) for each in found if each]


@pytest.mark.parametrize("name", TOYS)
def test_keys_and_values_are_what_llama_cpp_allocates(name: str) -> None:
    data = model_bytes(TOYS[name])
    first = ARCHITECTURES[TOYS[name].architecture].boundary
    made = cut(index_of(data), Part(first, real_layer_count(index_of(data)), output=True))
    engine, lines = loaded(made, data, context=8192)
    engine.close()
    expected = cut_memory(made).cache_bytes_per_token * 8192 / MIB
    assert sum(sizes(lines, "KV")) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("name", ["lfm2", "qwen3next", "mamba", "granitehybrid"])
def test_states_are_what_llama_cpp_allocates(name: str) -> None:
    """The runner's context has room for four sequences."""
    data = model_bytes(replace(TOYS[name], width=256, head_width=64, layers=12))
    made = cut(index_of(data), Part(1, 12, output=True))
    engine, lines = loaded(made, data)
    engine.close()
    expected = cut_memory(made).state_bytes_per_session * 4 / MIB
    assert sum(sizes(lines, "RS")) == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize(
    "toy",
    [
        Toy("llama", layers=2, width=256, head_width=64, ff=2048, vocabulary=64),
        Toy("llama", layers=2, width=256, head_width=64, ff=512, vocabulary=16000),
        Toy("llama", layers=2, width=256, head_width=64, ff=1024, features=frozenset({"experts"})),
        Toy("qwen3moe", layers=2, width=256, ff=1024, parameters={"expert_feed_forward_length": 1024}),
    ],
    ids=["wide layers", "large vocabulary", "experts", "experts of their own width"],
)
def test_room_to_compute_is_about_what_llama_cpp_reserves(toy: Toy) -> None:
    data = model_bytes(toy)
    made = cut(index_of(data), whole(index_of(data)))
    engine, lines = loaded(made, data)
    engine.close()
    need = cut_memory(made)
    estimate = (need.compute_bytes_per_row + need.mask_bytes_per_row_token * 256) * 64 / MIB
    assert estimate == pytest.approx(sizes(lines, "compute")[-1], rel=0.15, abs=0.3)


def test_parts_add_up() -> None:
    data = model_bytes(TOYS["llama"])
    index = index_of(data)
    assert sum(layer_bytes(index)) == sum(t.size for n, t in index.tensors.items() if n.startswith("blk."))
    assert len(layer_bytes(index)) == 5
    one, two = part_memory(index, Part(1, 2)), part_memory(index, Part(1, 3))
    assert two.cache_bytes_per_token == 2 * one.cache_bytes_per_token == 2 * (32 + 32) * 2
    assert two.weights_bytes - one.weights_bytes == layer_bytes(index)[1]
    sharded = part_memory(index, replace(Part(1, 2), shard=Shard(0, (1, 1))))
    assert sharded.cache_bytes_per_token * 2 == one.cache_bytes_per_token
    small = part_memory(index, Part(1, 2), key_type="q8_0", value_type="q4_0")
    assert small.cache_bytes_per_token == 34 + 18
    total = one.total_bytes(context_tokens=1000, sessions=2, batch_rows=10)
    assert total > one.weights_bytes + 1000 * one.cache_bytes_per_token
    with pytest.raises(PlanError, match="q9_9"):
        part_memory(index, Part(1, 2), key_type="q9_9")
