"""Cuts as bytes and facts: what is chosen, what is refused and why, and that the virtual file is one file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.compute.architectures import ARCHITECTURES, REFUSED
from p2pnode.compute.embedding import embed_rows
from p2pnode.compute.ggml_types import TENSOR_TYPES
from p2pnode.compute.gguf import ModelIndex, ValueType, align_up, array, header_bytes, join, parse, scalar
from p2pnode.compute.part import Part, Shard, Source, real_layer_count, whole
from p2pnode.compute.surgery import cut, needed_tensors
from p2pnode.errors import ArchitectureUnsupported, BadModelFile, PlanError, ShapeMismatch
from tests.kit.llama_runner import index_of, materialise, reader_of
from tests.kit.toy_models import TOYS, Toy, model_bytes

LLAMA = model_bytes(TOYS["llama"])
INDEX = index_of(LLAMA)


def changed(index: ModelIndex, **parameters: int) -> ModelIndex:
    metadata = dict(index.metadata)
    for key, value in parameters.items():
        name = f"{index.architecture}.{key}"
        metadata[name] = scalar(name, ValueType.UINT32, value)
    return replace(index, metadata=metadata)


def renamed(architecture: str) -> ModelIndex:
    metadata = dict(INDEX.metadata)
    metadata["general.architecture"] = scalar("general.architecture", ValueType.STRING, architecture)
    for key, entry in INDEX.metadata.items():
        if key.startswith("llama."):
            name = architecture + key.removeprefix("llama")
            metadata[name] = replace(entry, key=name)
    return replace(INDEX, metadata=metadata)


def test_the_whole_is_the_file_itself() -> None:
    made = cut(INDEX, whole(INDEX))
    assert materialise(made, LLAMA) == LLAMA
    assert made.facts.tap is None
    assert (made.facts.input, made.facts.output, made.facts.tokenizer) == ("tokens", "logits", True)


def test_a_middle_slice_has_no_vocabulary_and_only_its_layers() -> None:
    made = cut(INDEX, Part(1, 3))
    local = parse(materialise(made, LLAMA))
    assert {name.split(".")[1] for name in local.tensors if name.startswith("blk.")} == {"0", "1"}
    assert local.metadata["llama.block_count"].value() == 2
    assert local.metadata["tokenizer.ggml.model"].value() == "no_vocab"
    assert not any("tokens" in key for key in local.metadata)
    assert local.tensors["token_embd.weight"].shape == (64, 1)
    assert (made.facts.tap, made.facts.layer_count) == ("l_out-1", 2)
    for name, tensor in local.tensors.items():
        if name.startswith("blk.0."):
            original = INDEX.tensors[name.replace("blk.0.", "blk.1.")]
            assert (tensor.shape, tensor.type) == (original.shape, original.type)


def test_a_node_needs_the_tensors_of_its_share_only() -> None:
    names = needed_tensors(INDEX, Part(1, 3))
    assert {name.split(".")[1] for name in names} == {"1", "2"}
    assert set(needed_tensors(INDEX, Part(5, 5, output=True))) == {"output.weight", "output_norm.weight"}
    assert set(needed_tensors(INDEX, whole(INDEX))) == set(INDEX.tensors)
    tied = index_of(model_bytes(TOYS["llama-tied-q8_0"]))
    assert "token_embd.weight" in needed_tensors(tied, Part(3, 5, output=True))
    ranges = {
        (piece.offset, piece.size) for piece in cut(INDEX, Part(1, 3)).pieces if isinstance(piece, Source)
    }
    assert ranges == {(INDEX.tensors[name].offset, INDEX.tensors[name].size) for name in names}


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Part(-1, 2), r"layers \[-1, 2\)"),
        (Part(2, 6), r"layers \[2, 6\)"),
        (Part(3, 2), r"layers \[3, 2\)"),
        (Part(1, 2, embedding=True), "before layer 0"),
        (Part(1, 2, output=True), "behind layer 5"),
        (Part(2, 2), "without layers"),
        (Part(0, 0, embedding=True), "without layers"),
        (Part(0, 5, shard=Shard(2, (1, 1))), "rank 2"),
        (Part(0, 5, shard=Shard(0, (1, 0))), "rank 0"),
    ],
)
def test_parts_that_cannot_be_are_refused(part: Part, reason: str) -> None:
    with pytest.raises(PlanError, match=reason) as caught:
        cut(INDEX, part)
    assert caught.value.hint
    with pytest.raises(PlanError):
        needed_tensors(INDEX, part)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_architectures_that_cannot_be_cut_say_why_and_still_run_whole(name: str) -> None:
    index = renamed(name)
    with pytest.raises(ArchitectureUnsupported) as caught:
        cut(index, Part(0, 2))
    assert REFUSED[name] in caught.value.message
    assert cut(index, whole(index)).facts.architecture == name


def test_an_architecture_nobody_proved_is_not_cut() -> None:
    with pytest.raises(ArchitectureUnsupported, match="not in the table"):
        needed_tensors(renamed("hopeful"), Part(0, 2))
    assert not set(REFUSED) & set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("name", "layers"), [("gemma2", 46), ("gemma3", 62), ("exaone4", 64), ("command-r", 64)]
)
def test_models_whose_attention_follows_the_layer_count_are_not_cut(name: str, layers: int) -> None:
    index = index_of(model_bytes(replace(TOYS[name], layers=layers, width=32, ff=32)))
    with pytest.raises(ArchitectureUnsupported, match=r"layer count|from 64 layers"):
        cut(index, Part(0, 2))


def test_a_family_that_counts_its_layers_is_cut_where_the_count_starts_again() -> None:
    index = index_of(model_bytes(TOYS["smollm3"]))
    assert cut(index, Part(4, 8)).facts.layer_count == 4
    assert cut(index, Part(8, 9, output=True)).facts.layer_count == 1
    with pytest.raises(ArchitectureUnsupported, match="multiples of 4"):
        cut(index, Part(2, 4))


def test_glm4_takes_rows_only_with_rope_sections() -> None:
    with pytest.raises(ArchitectureUnsupported, match="no rows"):
        cut(index_of(model_bytes(Toy("glm4"))), Part(0, 2))


def test_positions_follow_the_rope_sections() -> None:
    sections = {"rope.dimension_sections": [2, 3, 3, 0]}
    plain, multi = (
        index_of(model_bytes(replace(TOYS["ernie4_5"], parameters=each))) for each in ({}, sections)
    )
    assert cut(plain, Part(1, 2)).facts.positions == 1
    assert cut(multi, Part(1, 2)).facts.positions == 4


def test_a_part_without_sliding_layers_gets_an_inert_one_where_dense_layers_have_no_rope() -> None:
    index = index_of(model_bytes(TOYS["cohere2"]))
    facts = cut(index, Part(3, 4)).facts
    assert (facts.layer_count, facts.tap, facts.sliding) == (2, "l_out-0", False)


def test_deepstack_models_are_not_cut() -> None:
    toy = replace(TOYS["granite"], parameters={"deepstack_mapping": [0, 1, 2, 3, 4]})
    with pytest.raises(ArchitectureUnsupported, match="deepstack"):
        cut(index_of(model_bytes(toy)), Part(0, 2))


def test_a_deepseek_slice_is_never_as_long_as_the_lite_model() -> None:
    toy = replace(TOYS["deepseek2"], layers=30, width=32, ff=32)
    index = index_of(model_bytes(toy))
    with pytest.raises(ArchitectureUnsupported, match="lite"):
        cut(index, Part(0, 26))
    assert cut(index, Part(0, 25)).facts.layer_count == 25


def test_layers_that_predict_further_tokens_are_left_out() -> None:
    index = changed(INDEX, nextn_predict_layers=1)
    assert real_layer_count(index) == 4
    made = parse(materialise(cut(index, Part(2, 4, output=True)), LLAMA))
    assert made.metadata["llama.nextn_predict_layers"].value() == 0
    assert not any(name.startswith("blk.2.") for name in made.tensors)
    assert len(needed_tensors(index, whole(index))) == len(INDEX.tensors)
    with pytest.raises(PlanError, match="no layer"):
        cut(changed(INDEX, nextn_predict_layers=5), Part(0, 1))


def test_models_with_holes_are_refused() -> None:
    missing = replace(INDEX, tensors={n: t for n, t in INDEX.tensors.items() if not n.startswith("blk.1.")})
    with pytest.raises(BadModelFile, match="no layer 1"):
        cut(missing, Part(0, 2))
    headless = replace(INDEX, tensors={n: t for n, t in INDEX.tensors.items() if n != "token_embd.weight"})
    with pytest.raises(BadModelFile, match="no token embedding"):
        cut(headless, Part(0, 2))


def test_fingerprints_tell_units_apart() -> None:
    parts = [Part(0, 2), Part(0, 2, embedding=True), Part(1, 3), Part(2, 5), Part(2, 5, output=True)]
    prints = {cut(INDEX, part).facts.fingerprint for part in parts}
    prints |= {cut(INDEX, Part(0, 2), model_id=b"another").facts.fingerprint}
    assert len(prints) == len(parts) + 1
    assert cut(INDEX, Part(0, 2)).facts.fingerprint in prints


def test_a_long_window_replaces_the_missing_sliding_layer() -> None:
    index = index_of(model_bytes(TOYS["gpt-oss"]))
    made = cut(index, Part(1, 2))
    assert not made.facts.sliding
    metadata = parse(materialise(made, model_bytes(TOYS["gpt-oss"]))).metadata
    assert metadata["gpt-oss.attention.sliding_window"].value() == 1 << 22
    assert metadata["gpt-oss.attention.sliding_window_pattern"].value() == [True]
    assert cut(index, Part(0, 1)).facts.sliding


@settings(max_examples=40)
@given(st.data())
def test_reads_of_the_virtual_file_agree_with_the_file(data: st.DataObject) -> None:
    first = data.draw(st.integers(0, 4))
    made = cut(INDEX, Part(first, data.draw(st.integers(first + 1, 5))))
    real = materialise(made, LLAMA)
    assert len(real) == made.size
    reader = made.reader(reader_of(LLAMA))
    offset = data.draw(st.integers(0, made.size + 10))
    size = data.draw(st.integers(0, 5000))
    assert reader.read(offset, size) == real[offset : offset + size]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q6_K"])
def test_embedding_rows_are_what_llama_cpp_looks_up(kind: str) -> None:
    """The rows are compared through the first layer: equal input, equal output, bit for bit."""
    from tests.kit.llama_runner import Engine, engine_for

    toy = Toy("llama", type=kind, width=256, head_width=64, layers=1)
    data = model_bytes(toy)
    index = index_of(data)
    tokens = [5, 0, 127, 5]
    rows = embed_rows(index, reader_of(data), tokens)
    assert rows.shape == (4, 256)
    made, full = engine_for(cut(index, Part(0, 1, output=True)), data), Engine(data)
    assert np.array_equal(made.decode(range(4), rows=rows), full.decode(range(4), tokens=tokens))
    made.close()
    full.close()


def test_embedding_lookup_refuses_what_it_cannot() -> None:
    with pytest.raises(ShapeMismatch, match="token 320"):
        embed_rows(INDEX, reader_of(LLAMA), [320])
    with pytest.raises(ArchitectureUnsupported, match="not in the table"):
        embed_rows(renamed("hopeful"), reader_of(LLAMA), [1])
    table = replace(INDEX.tensors["token_embd.weight"], type=TENSOR_TYPES[42])
    odd = replace(INDEX, tensors={**INDEX.tensors, "token_embd.weight": table})
    with pytest.raises(ArchitectureUnsupported, match="stored as"):
        embed_rows(odd, lambda file, offset, size: bytes(size), [1])


@pytest.mark.parametrize("name", ["llama", "qwen2", "mixtral", "llama-q4_k"])
def test_the_output_alone_costs_little_more_than_its_matrix(name: str) -> None:
    toy = TOYS[name]
    index = index_of(model_bytes(toy))
    made = cut(index, Part(toy.layers, toy.layers, output=True))
    needed = sum(index.tensors[each].size for each in needed_tensors(index, made.part))
    layer = sum(tensor.size for each, tensor in index.tensors.items() if each.startswith("blk.0."))
    assert made.size - len(made.header) - needed < layer * 0.6


def local_metadata(toy: Toy, part: Part) -> dict[str, object]:
    data = model_bytes(toy)
    made = parse(materialise(cut(index_of(data), part), data))
    return {key.partition(".")[2]: entry.value() for key, entry in made.metadata.items()}


def test_patterns_in_the_file_come_before_the_familys_own() -> None:
    pattern = [True, True, False, False, True, False]
    listed = replace(TOYS["gemma2"], parameters={"attention.sliding_window_pattern": pattern})
    assert local_metadata(listed, Part(1, 4))["attention.sliding_window_pattern"] == pattern[1:4]
    every_third = replace(TOYS["gemma2"], parameters={"attention.sliding_window_pattern": 3})
    expected = [True, False, True]
    assert local_metadata(every_third, Part(1, 4))["attention.sliding_window_pattern"] == expected
    all_slide = replace(TOYS["gemma2"], parameters={"attention.sliding_window_pattern": 0})
    assert local_metadata(all_slide, Part(1, 2))["attention.sliding_window_pattern"] == [True]


def test_a_base_frequency_of_sliding_layers_is_not_used_by_dense_ones() -> None:
    toy = replace(TOYS["gpt-oss"], parameters={"rope.freq_base": 5e5, "rope.freq_base_swa": 1e4})
    assert local_metadata(toy, Part(1, 2))["rope.freq_base_swa"] == 5e5
    assert local_metadata(toy, Part(0, 2))["rope.freq_base_swa"] == 1e4


def test_recurrent_layers_may_be_listed() -> None:
    listed = [True, False, True, False, True]
    toy = replace(TOYS["qwen3next"], parameters={"attention.recurrent_layers": listed})
    assert local_metadata(toy, Part(1, 3))["attention.recurrent_layers"] == [False, True]


def test_deepseek_guesses_are_written_down() -> None:
    lite = TOYS["deepseek2-lite"]
    index = index_of(model_bytes(lite))
    bare = replace(index, metadata={k: v for k, v in index.metadata.items() if "q_lora_rank" not in k})
    made = parse(cut(bare, Part(1, 3)).header, 10**9)
    assert made.metadata["deepseek2.attention.q_lora_rank"].value() == 0
    assert made.metadata["deepseek2.expert_gating_func"].value() == 1
    given_function = replace(lite, parameters={"expert_gating_func": 2})
    assert local_metadata(given_function, Part(1, 3))["expert_gating_func"] == 2


def test_rope_sections_are_not_sliced_with_the_layers() -> None:
    toy = replace(TOYS["qwen2vl"], layers=4)
    assert local_metadata(toy, Part(1, 3))["rope.dimension_sections"] == [2, 3, 3, 0]
    per_layer = array("llama.attention.head_count", ValueType.UINT32, [4, 4, 4, 4, 4])
    index = replace(INDEX, metadata={**INDEX.metadata, per_layer.key: per_layer})
    assert parse(cut(index, Part(1, 3)).header, 10**9).metadata[per_layer.key].count == 2


def test_an_empty_tensor_has_no_piece() -> None:
    empty = replace(INDEX.tensors["output_norm.weight"], name="empty", shape=(0,), size=0)
    made = cut(replace(INDEX, tensors={**INDEX.tensors, "empty": empty}), whole(INDEX))
    assert all(piece.total for piece in made.pieces)
    assert parse(made.header, made.size).tensors["empty"].size == 0


def test_tensors_of_the_output_stay_with_the_output() -> None:
    extra = replace(INDEX.tensors["output_norm.weight"], name="cls.weight")
    index = replace(INDEX, tensors={**INDEX.tensors, "cls.weight": extra})
    assert "cls.weight" not in needed_tensors(index, Part(1, 3))
    assert "cls.weight" in needed_tensors(index, Part(3, 5, output=True))


def test_families_that_need_several_layers_get_inert_ones_or_are_refused() -> None:
    gemma4 = index_of(model_bytes(TOYS["gemma4"]))
    assert cut(gemma4, Part(1, 2)).facts.layer_count == 2
    assert "rope_freqs.weight" not in needed_tensors(gemma4, Part(0, 2))
    assert "rope_freqs.weight" in needed_tensors(gemma4, Part(1, 3))
    with pytest.raises(ArchitectureUnsupported, match="at least 4 layers"):
        cut(index_of(model_bytes(TOYS["llama4"])), Part(8, 8, output=True))


@pytest.mark.parametrize(
    ("name", "parameters", "reason"),
    [
        ("gemma4", {"attention.shared_kv_layers": 2}, "share keys"),
        ("llama4", {"interleave_moe_layer_step": 3}, "do not repeat"),
        ("ernie4_5-moe", {"interleave_moe_layer_step": 2}, "do not repeat"),
    ],
)
def test_models_of_a_family_may_be_refused(name: str, parameters: dict[str, int], reason: str) -> None:
    changed = changed_toy(name, parameters)
    with pytest.raises(ArchitectureUnsupported, match=reason):
        cut(index_of(model_bytes(changed)), Part(0, 4))


def changed_toy(name: str, parameters: dict[str, int]) -> Toy:
    return replace(TOYS[name], parameters={**TOYS[name].parameters, **parameters})


def test_activations_listed_by_layer_are_sliced() -> None:
    toy = replace(TOYS["apertus"], parameters={"xielu.beta": [0.1, 0.2, 0.3, 0.4, 0.5]})
    data = model_bytes(toy)
    values = parse(materialise(cut(index_of(data), Part(1, 3)), data)).metadata["xielu.beta"].value()
    assert values == pytest.approx([0.2, 0.3])


def test_cuts_of_a_split_model_are_cuts_of_the_one_file() -> None:
    infos = list(INDEX.tensors.values())
    files, parts = [], []
    for number in range(2):
        mine = infos[number::2]
        entries = [
            *(INDEX.metadata.values() if number == 0 else ()),
            scalar("split.no", ValueType.UINT16, number),
            scalar("split.count", ValueType.UINT16, 2),
        ]
        header, _ = header_bytes(entries, [(t.name, t.shape, t.type, t.size) for t in mine], 32)
        files.append(header + b"".join(LLAMA[t.offset : t.offset + align_up(t.size, 32)] for t in mine))
        parts.append(parse(files[-1], file=number))
    index = join(parts)
    part = Part(1, 4, shard=Shard(1, (1, 2)))
    ours, theirs = parse(materialise(cut(index, part), *files)), parse(materialise(cut(INDEX, part), LLAMA))
    assert (ours.metadata, set(ours.tensors)) == (theirs.metadata, set(theirs.tensors))
    one, other = materialise(cut(index, part), *files), materialise(cut(INDEX, part), LLAMA)
    for name, tensor in ours.tensors.items():
        twin = theirs.tensors[name]
        assert (
            one[tensor.offset : tensor.offset + tensor.size] == other[twin.offset : twin.offset + twin.size]
        )
    assert {piece.file for piece in cut(index, part).pieces if isinstance(piece, Source)} == {0, 1}
