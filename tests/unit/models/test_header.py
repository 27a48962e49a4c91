"""The outline of a GGUF header agrees with an independent reader, and nothing damaged gets through."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import gguf as reference
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.errors import BadModelFile
from p2pnode.models.header import HeaderTruncated, outline, slim
from tests.kit.gguf_files import entry, gguf, text, toy, write_toy


def test_an_independent_reader_agrees(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy.gguf")
    found = outline(path.read_bytes())
    theirs = reference.GGUFReader(path)
    assert [(t.name, t.offset, t.size) for t in found.tensors] == [
        (t.name, int(t.data_offset), int(t.n_bytes)) for t in theirs.tensors
    ]
    assert found.scalars["llama.block_count"] == 4
    assert found.array_lengths["tokenizer.ggml.tokens"] == 1100
    assert found.size == theirs.data_offset


def test_type_sizes_are_ggmls() -> None:
    """Every type the reference package knows has the same block size here."""
    for kind, (values, size) in reference.GGML_QUANT_SIZES.items():
        head = (
            b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<IQIQ", 1, values, int(kind), 0)
        )
        assert outline(head + bytes(-len(head) % 32)).tensors[0].size == size


def test_slim_keeps_every_place_and_drops_the_vocabulary() -> None:
    data = toy()
    found = outline(data)
    header = slim(data[: found.size], found)
    again = outline(header)
    assert len(header) == found.size
    assert again.tensors == found.tensors
    assert again.omissions == ()
    assert b"token-17" in data
    assert b"token-17" not in header
    assert slim(header, again) == header


def test_every_truncation_is_noticed() -> None:
    data = toy(layers=1, vocabulary=3)
    size = outline(data).size
    for end in range(4, size - 32, 3):
        with pytest.raises(HeaderTruncated):
            outline(data[:end])


@given(st.data())
def test_damage_never_does_more_than_be_refused(data: st.DataObject) -> None:
    good = bytearray(toy(layers=1, vocabulary=3))
    size = outline(bytes(good)).size
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadModelFile):
        outline(bytes(good))


def _file(
    values: bytes = b"", tensors: bytes = b"", *, count: int = 0, tensor_count: int = 0, version: int = 3
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensor_count, count) + values + tensors + bytes(64)


def _tensor(name: str = "t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


BAD = {
    "no GGUF": b"PK\x03\x04" + bytes(60),
    "empty": b"",
    "version 1": _file(version=1),
    "byte-swapped version": _file(version=0x03000000),
    "too many tensors": _file(tensor_count=limits.TENSORS_MAX + 1),
    "too many values": _file(count=limits.METADATA_ENTRIES_MAX + 1),
    "key twice": _file(entry("a", 1) + entry("a", 1), count=2),
    "key not UTF-8": _file(struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", 4, 1), count=1),
    "key too long": _file(struct.pack("<Q", 70_000), count=1),
    "unknown value type": _file(text("a") + struct.pack("<I", 13), count=1),
    "unknown element type": _file(text("a") + struct.pack("<IIQ", 9, 77, 1), count=1),
    "huge array": _file(text("a") + struct.pack("<IIQ", 9, 8, 2**60), count=1),
    "huge scalar array": _file(text("a") + struct.pack("<IIQ", 9, 10, 2**61), count=1),
    "arrays too deep": _file(text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 8, count=1),
    "alignment 3": _file(entry("general.alignment", 3), count=1),
    "alignment text": _file(entry("general.alignment", "32"), count=1),
    "no dimensions": _file(tensors=_tensor(shape=()), tensor_count=1),
    "five dimensions": _file(tensors=_tensor(shape=(1, 1, 1, 1, 1)), tensor_count=1),
    "zero elements": _file(tensors=_tensor(shape=(0,)), tensor_count=1),
    "unknown tensor type": _file(tensors=_tensor(kind=99), tensor_count=1),
    "half a block": _file(tensors=_tensor(shape=(33,), kind=8), tensor_count=1),
    "name too long": _file(tensors=_tensor("n" * 65), tensor_count=1),
    "same name": _file(tensors=_tensor() + _tensor(offset=128), tensor_count=2),
    "overlap": _file(tensors=_tensor() + _tensor("u", offset=96), tensor_count=2),
    "not aligned": _file(tensors=_tensor(offset=8), tensor_count=1),
    "more bytes than files have": _file(tensors=_tensor(shape=(2**40, 2**40)), tensor_count=1),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_headers_are_refused(name: str) -> None:
    with pytest.raises(BadModelFile):
        outline(BAD[name])


def test_nested_arrays_and_long_strings_are_passed_over() -> None:
    nested = text("n") + struct.pack("<IIQ", 9, 9, 2) + struct.pack("<IQ", 4, 1) * 2
    nested = text("n") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQI", 4, 1, 5)
    long = entry("tokenizer.chat_template", "x" * 5000)
    found = outline(_file(nested + long, count=2))
    assert found.array_lengths == {"n": 1}
    assert "tokenizer.chat_template" not in found.scalars
    assert found.data_end < found.size + 1


def test_a_header_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEADER_BYTES_MAX", 100)
    with pytest.raises(BadModelFile, match="longer than 100"):
        outline(gguf({"a": "x" * 200}, []))
