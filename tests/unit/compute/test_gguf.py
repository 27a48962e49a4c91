"""The GGUF reader gives back exactly what is in a file, and refuses what cannot be."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import gguf as reference_gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.compute.ggml_types import F32, TENSOR_TYPES
from p2pnode.compute.gguf import (
    ValueType,
    array,
    header_bytes,
    join,
    open_model,
    parse,
    scalar,
    split_paths,
)
from p2pnode.errors import BadModelFile
from tests.kit.gguf_files import split
from tests.kit.toy_models import TOYS, model_bytes, write_model


def raw(
    *, magic: bytes = b"GGUF", version: int = 3, tensors: int = 0, entries: int = 0, rest: bytes = b""
) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, entries) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes = b"t", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize("name", TOYS)
def test_headers_are_reencoded_byte_for_byte(name: str) -> None:
    data = model_bytes(TOYS[name])
    model = parse(data)
    infos = [(each.name, each.shape, each.type, each.size) for each in model.tensors.values()]
    header, offsets = header_bytes(model.metadata.values(), infos, model.alignment)
    assert header == data[: model.header_size]
    assert offsets == [each.offset for each in model.tensors.values()]


def test_an_independent_reader_sees_the_same(tmp_path: Path) -> None:
    path = write_model(tmp_path / "toy.gguf", TOYS["llama"])
    theirs, (ours, _) = reference_gguf.GGUFReader(path), open_model(path)
    assert [each.name for each in theirs.tensors] == list(ours.tensors)
    for each in theirs.tensors:
        mine = ours.tensors[each.name]
        assert (mine.offset, mine.size, mine.shape) == (each.data_offset, each.n_bytes, tuple(each.shape))
    for key, entry in ours.metadata.items():
        value = theirs.get_field(key).contents()
        assert entry.value() == (pytest.approx(value) if isinstance(value, float) else value)


SCALARS = {
    ValueType.UINT8: st.integers(0, 255),
    ValueType.INT8: st.integers(-128, 127),
    ValueType.UINT16: st.integers(0, 65535),
    ValueType.INT16: st.integers(-32768, 32767),
    ValueType.UINT32: st.integers(0, 2**32 - 1),
    ValueType.INT32: st.integers(-(2**31), 2**31 - 1),
    ValueType.FLOAT32: st.floats(width=32, allow_nan=False),
    ValueType.BOOL: st.booleans(),
    ValueType.STRING: st.text(max_size=20),
    ValueType.UINT64: st.integers(0, 2**64 - 1),
    ValueType.INT64: st.integers(-(2**63), 2**63 - 1),
    ValueType.FLOAT64: st.floats(allow_nan=False),
}


@given(st.data())
def test_every_kind_of_value_survives(data: st.DataObject) -> None:
    entries, expected = [], []
    for number, kind in enumerate(data.draw(st.lists(st.sampled_from(sorted(SCALARS)), max_size=6))):
        if data.draw(st.booleans()):
            values = data.draw(st.lists(SCALARS[kind], max_size=4))
            entries.append(array(f"k{number}", kind, values))
            expected.append(values)
        else:
            value = data.draw(SCALARS[kind])
            entries.append(scalar(f"k{number}", kind, value))
            expected.append(value)
    found = parse(header_bytes(entries, [], 32)[0]).metadata
    assert list(found.values()) == entries
    assert [entry.value() for entry in found.values()] == expected
    assert all(
        entry.count == len(value) for entry, value in zip(entries, expected, strict=True) if entry.is_array
    )
    assert all(entry.element_type is entry.type for entry in entries if not entry.is_array)


def test_text_that_is_not_utf8_is_kept() -> None:
    entry = scalar("k", ValueType.STRING, b"\xff\x00a".decode("utf-8", "surrogateescape"))
    assert parse(header_bytes([entry], [], 32)[0]).metadata["k"] == entry


BAD = {
    "empty": (b"", "not a GGUF file"),
    "another format": (b"PK\x03\x04" + bytes(60), "not a GGUF file"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version 1": (raw(version=1), "version 1"),
    "version 4": (raw(version=4), "version 4"),
    "ends after the magic": (b"GGUF", "ends inside its header"),
    "ends in the counts": (raw()[:-1], "ends inside its header"),
    "absurd tensor count": (raw(tensors=2**60), "tensors"),
    "absurd entry count": (raw(entries=2**60), "metadata entries"),
    "no entries behind the count": (raw(entries=1), "ends inside its header"),
    "absurd key": (raw(entries=1, rest=struct.pack("<Q", 2**62)), "a key of"),
    "empty key": (raw(entries=1, rest=text(b"")), "an empty key"),
    "key that is not text": (raw(entries=1, rest=text(b"\xff")), "not text"),
    "unknown value type": (raw(entries=1, rest=text(b"k") + struct.pack("<I", 13)), "type 13"),
    "absurd string": (raw(entries=1, rest=text(b"k") + struct.pack("<IQ", 8, 2**40)), "a string of"),
    "string past the end": (raw(entries=1, rest=text(b"k") + struct.pack("<IQ", 8, 9)), "ends inside"),
    "string without a length": (raw(entries=1, rest=text(b"k") + struct.pack("<II", 8, 0)), "ends inside"),
    "absurd array": (raw(entries=1, rest=text(b"k") + struct.pack("<IIQ", 9, 4, 2**40)), "an array of"),
    "array past the end": (raw(entries=1, rest=text(b"k") + struct.pack("<IIQ", 9, 4, 1000)), "ends inside"),
    "array of arrays": (raw(entries=1, rest=text(b"k") + struct.pack("<IIQ", 9, 9, 1)), "an array of arrays"),
    "scalar past the end": (raw(entries=1, rest=text(b"k") + struct.pack("<I", 10)), "ends inside"),
    "key twice": (raw(entries=2, rest=2 * scalar("k", ValueType.UINT8, 1).encode()), "the key k twice"),
    "alignment of 3": (
        raw(entries=1, rest=scalar("general.alignment", ValueType.UINT32, 3).encode()),
        "alignment",
    ),
    "alignment of 0": (
        raw(entries=1, rest=scalar("general.alignment", ValueType.UINT32, 0).encode()),
        "alignment",
    ),
    "alignment as text": (
        raw(entries=1, rest=scalar("general.alignment", ValueType.STRING, "32").encode()),
        "alignment",
    ),
    "long tensor name": (raw(tensors=1, rest=tensor(b"t" * 64)), "a tensor name of"),
    "tensor name that is not text": (raw(tensors=1, rest=tensor(b"\xff")), "not text"),
    "five dimensions": (raw(tensors=1, rest=tensor(shape=(1,) * 5)), "5 dimensions"),
    "unknown tensor type": (raw(tensors=1, rest=tensor(kind=4) + bytes(99)), "unknown type 4"),
    "absurd shape": (raw(tensors=1, rest=tensor(shape=(2**40,))), "of shape"),
    "shape overflowing together": (raw(tensors=1, rest=tensor(shape=(2**31 - 1,) * 4)), "of shape"),
    "row not of whole blocks": (raw(tensors=1, rest=tensor(shape=(33,), kind=8)), "rows of 33"),
    "tensor twice": (raw(tensors=2, rest=tensor() * 2 + bytes(99)), "twice"),
    "unaligned tensor": (raw(tensors=1, rest=tensor(offset=8) + bytes(99)), "unaligned"),
    "tensor past the end": (raw(tensors=1, rest=tensor(offset=1024)), "ends at byte"),
    "tensors overlapping": (
        raw(tensors=2, rest=tensor(b"a", (64,)) + tensor(b"b", (64,), offset=32) + bytes(999)),
        "overlapping",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_with_a_reason_and_a_hint(case: str) -> None:
    data, reason = BAD[case]
    with pytest.raises(BadModelFile, match=reason) as caught:
        parse(data)
    assert caught.value.hint
    assert "\n" not in caught.value.message


@given(st.data())
def test_damage_is_refused_or_read_but_never_crashes(data: st.DataObject) -> None:
    whole = bytearray(model_bytes(TOYS["llama"])[:3000])
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    del whole[data.draw(st.integers(0, len(whole))) :]
    try:
        model = parse(bytes(whole), file_size=10**9)
    except BadModelFile:
        return
    for entry in model.metadata.values():
        entry.value()


@given(st.binary(max_size=200))
def test_noise_behind_the_magic_never_crashes(noise: bytes) -> None:
    with pytest.raises(BadModelFile):
        parse(b"GGUF\x03\x00\x00\x00\x05" + noise)


def test_truncation_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(model_bytes(TOYS["llama"])[:-2000])
    with pytest.raises(BadModelFile, match="the file at") as caught:
        open_model(path)
    assert "truncated" in caught.value.hint


def test_a_header_alone_is_enough_when_the_size_is_known() -> None:
    data = model_bytes(TOYS["qwen3"])
    size = parse(data).header_size
    assert parse(data[:size], file_size=len(data)) == parse(data)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="not there"):
        open_model(tmp_path / "none.gguf")
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(BadModelFile, match="cannot be read"):
        open_model(tmp_path / "empty.gguf")
    with pytest.raises(BadModelFile, match="cannot be read"):
        open_model(tmp_path)


def test_split_files_are_one_index(tmp_path: Path) -> None:
    data = model_bytes(TOYS["llama"])
    for number, part in enumerate(split(data, 3), 1):
        (tmp_path / f"m-{number:05}-of-00003.gguf").write_bytes(part)
    index, paths = open_model(tmp_path / "m-00002-of-00003.gguf")
    single = join([parse(data)])
    assert list(index.metadata) == list(single.metadata)
    assert set(index.tensors) == set(single.tensors)
    for name, tensor in index.tensors.items():
        stored = paths[tensor.file].read_bytes()[tensor.offset : tensor.offset + tensor.size]
        original = single.tensors[name]
        assert stored == data[original.offset : original.offset + original.size]


def test_splits_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    parts = split(model_bytes(TOYS["llama"]), 2)
    files = [parse(part, file=number) for number, part in enumerate(parts)]
    with pytest.raises(BadModelFile, match="no file"):
        join([])
    with pytest.raises(BadModelFile, match="split into 2 files, 1"):
        join(files[:1])
    with pytest.raises(BadModelFile, match="file 1 of the split"):
        join([files[1], files[0]])
    model = files[0]
    twice = [model, replace(model, metadata=files[1].metadata, tensors={})]
    first = next(iter(model.tensors))
    twice[1].tensors[first] = replace(model.tensors[first], file=1)
    twice[1].tensors.update(
        {f"more{n}": replace(t, file=1) for n, t in enumerate(files[1].tensors.values()) if n}
    )
    with pytest.raises(BadModelFile, match="in two files"):
        join(twice)
    wrong = [parse(part, file=n) for n, part in enumerate(split(model_bytes(TOYS["llama"]), 2, total=3))]
    with pytest.raises(BadModelFile, match="should hold 3 tensors"):
        join(wrong)
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(parts[0])
    with pytest.raises(BadModelFile, match="not there"):
        open_model(tmp_path / "m-00001-of-00002.gguf")
    with pytest.raises(BadModelFile, match="one of 0 files"):
        split_paths(tmp_path / "m-00001-of-00000.gguf")


def test_index_questions() -> None:
    index = join([parse(model_bytes(TOYS["llama"]))])
    assert index.architecture == "llama"
    assert index.layer_count == 5
    assert index.parameter("nothing", 7) == 7
    assert index.tensor_bytes == sum(each.size for each in index.tensors.values())
    table = index.tensors["token_embd.weight"]
    assert (table.row_elements, table.row_bytes, table.row_count) == (64, 256, 320)
    with pytest.raises(BadModelFile, match="nothing is missing"):
        index.parameter_int("nothing")
    with pytest.raises(BadModelFile, match="not an unsigned integer"):
        index.parameter_int("attention.layer_norm_rms_epsilon")
    assert index.parameter_ints("attention.head_count_kv") == [2] * 5
    assert index.parameter_float("rope.freq_base", 2.0) == 2.0
    wrong = replace(index, metadata={**index.metadata, "llama.x": array("llama.x", ValueType.STRING, ["a"])})
    with pytest.raises(BadModelFile, match="not 5 unsigned integers"):
        wrong.parameter_ints("x")
    with pytest.raises(BadModelFile, match="not a number"):
        wrong.parameter_float("x", 1.0)


@pytest.mark.parametrize("count", [0, limits.MODEL_LAYERS_MAX + 1])
def test_absurd_layer_counts_are_refused(count: int) -> None:
    entries = [
        scalar("general.architecture", ValueType.STRING, "llama"),
        scalar("llama.block_count", ValueType.UINT32, count),
    ]
    with pytest.raises(BadModelFile, match=f"{count} layers"):
        _ = join([parse(header_bytes(entries, [], 32)[0])]).layer_count


def test_a_file_without_an_architecture_is_refused() -> None:
    with pytest.raises(BadModelFile, match="which architecture"):
        _ = join([parse(header_bytes([], [], 32)[0])]).architecture


def test_another_alignment_is_kept() -> None:
    entry = scalar("general.alignment", ValueType.UINT32, 128)
    header, offsets = header_bytes([entry], [("a", (1,), F32, 4), ("b", (1,), F32, 4)], 128)
    model = parse(header + bytes(256))
    assert (model.alignment, model.header_size % 128, offsets[1] - offsets[0]) == (128, 0, 128)


def test_scalars_and_empty_tensors_have_sizes() -> None:
    header, offsets = header_bytes([], [("scalar", (), F32, 4), ("none", (0, 4), F32, 0)], 32)
    tensors = parse(header + bytes(32)).tensors
    assert (tensors["scalar"].size, tensors["scalar"].row_elements) == (4, 1)
    assert (tensors["none"].size, tensors["none"].row_count) == (0, 0)
    assert offsets[0] == len(header)


def test_the_type_table_is_ggmls_own() -> None:
    import ctypes

    from llama_cpp.llama_cpp import _lib as lib

    lib.ggml_type_size.restype = ctypes.c_size_t
    lib.ggml_blck_size.restype = ctypes.c_int64
    for number, kind in TENSOR_TYPES.items():
        assert (lib.ggml_blck_size(number), lib.ggml_type_size(number)) == (
            kind.block_elements,
            kind.block_bytes,
        )
    known = {kind.value for kind in reference_gguf.GGMLQuantizationType}
    assert known <= set(TENSOR_TYPES)
    assert np.dtype(np.float32).itemsize == F32.block_bytes


def test_one_text_of_an_array_is_read_alone() -> None:
    words = ["", "a", "größer", "\udcff"]
    entry = array("tokenizer.ggml.tokens", ValueType.STRING, words)
    assert [entry.text_at(number) for number in range(4)] == words == entry.value()
    assert [entry.text_at(number) for number in (-1, 4)] == ["", ""]
    assert array("numbers", ValueType.UINT32, [1]).text_at(0) == ""
    assert scalar("text", ValueType.STRING, "a").text_at(0) == ""


def test_an_index_without_its_vocabulary_says_the_same_of_tensors() -> None:
    model = join([parse(model_bytes(TOYS["llama"]))])
    many = array("tokenizer.ggml.scores", ValueType.FLOAT32, [0.0] * limits.HEADER_OMIT_BYTES_MIN)
    whole = replace(model, metadata={**model.metadata, many.key: many})
    slim = whole.without_vocabulary()
    gone = {entry.key for entry in whole.metadata.values()} - {entry.key for entry in slim.metadata.values()}
    assert gone == {many.key, "tokenizer.ggml.tokens"}
    assert slim.tensors == whole.tensors
