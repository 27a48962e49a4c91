"""A manifest has one form, names content alone, and says exactly which chunks cover wanted bytes."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.errors import BadModelFile, ModelIncomplete
from p2pnode.models import cid
from p2pnode.models.importer import read_manifest
from p2pnode.models.manifest import Manifest, Want
from p2pnode.models.manifest_codec import build, decode
from tests.kit.gguf_files import gguf, write_split, write_toy


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES", 4096)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return read_manifest([write_toy(tmp_path / "toy.gguf")])


def test_it_reads_back_as_itself(manifest: Manifest) -> None:
    again = decode(manifest.encoded)
    assert again == manifest
    assert again.content_id == manifest.content_id


def test_the_name_of_a_file_is_no_part_of_its_identity(tmp_path: Path) -> None:
    one, two = write_toy(tmp_path / "a.gguf"), write_toy(tmp_path / "b.gguf")
    assert read_manifest([one]).content_id == read_manifest([two]).content_id
    assert (
        read_manifest([write_toy(tmp_path / "c.gguf", seed=1)]).content_id != read_manifest([one]).content_id
    )


def test_chunks_are_the_bytes_of_the_file(tmp_path: Path, manifest: Manifest) -> None:
    data = (tmp_path / "toy.gguf").read_bytes()
    for chunk in manifest.chunks:
        assert cid.digest(data[chunk.offset : chunk.offset + chunk.size]) == chunk.digest
    covered = sum(chunk.size for chunk in manifest.chunks)
    padding = len(data) - covered
    assert 0 <= padding < 32 * len(manifest.tensors)


def test_a_manifest_is_small_beside_its_model(manifest: Manifest) -> None:
    """The vocabulary is not in it."""
    assert b"token-17" not in manifest.encoded


@given(st.data())
def test_wanted_bytes_are_covered_and_nothing_beyond_their_chunks(data: st.DataObject) -> None:
    entry_size = 4 * 5000
    first = data.draw(st.integers(0, entry_size))
    end = data.draw(st.integers(first, entry_size))
    manifest = _MANIFEST
    entry = manifest.tensors["blk.2.attn_q.weight"]
    chosen = [manifest.chunks[i] for i in manifest.chunks_for([Want(entry.name, first, end)])]
    covered = {byte for c in chosen for byte in (c.offset - entry.offset, c.offset - entry.offset + c.size)}
    if first == end:
        assert chosen == []
        return
    assert min(covered) <= first
    assert max(covered) >= end
    assert sum(c.size for c in chosen) < end - first + 2 * 4096


def test_whole_tensors_and_the_vocabulary(manifest: Manifest) -> None:
    every = manifest.chunks_for([Want(name) for name in manifest.tensors], vocabulary=True)
    assert every == list(range(len(manifest.chunks)))
    assert manifest.chunks_for([], vocabulary=True) == list(manifest.header_chunks)
    assert manifest.bytes_of(manifest.chunks_for([Want("blk.0.attn_norm.weight")])) == 64


def test_ranges_of_a_file_are_covered(manifest: Manifest) -> None:
    entry = manifest.tensors["blk.1.attn_q.weight"]
    assert manifest.chunks_at([(0, entry.offset + 5000, 10)]) == [entry.chunk_first + 1]
    whole = range(entry.chunk_first, entry.chunk_first + entry.chunk_count)
    assert manifest.chunks_at([(0, entry.offset, entry.size)]) == list(whole)
    assert manifest.chunks_at([(0, entry.offset, 0)]) == []


@pytest.mark.parametrize(
    "want", [Want("nothing"), Want("output_norm.weight", 0, 65), Want("output_norm.weight", 9, 8)]
)
def test_what_is_not_there_cannot_be_wanted(manifest: Manifest, want: Want) -> None:
    with pytest.raises(ModelIncomplete):
        manifest.chunks_for([want])


def test_padding_between_tensors_is_in_no_chunk(tmp_path: Path) -> None:
    padded = read_manifest([write_toy(tmp_path / "padded.gguf", floats=5001)])
    entry = padded.tensors["blk.1.attn_q.weight"]
    assert padded.chunks_at([(0, entry.offset + entry.size, 12)]) == []
    assert padded.chunks_at([(0, entry.offset + entry.size - 4, 16)]) == [
        entry.chunk_first + entry.chunk_count - 1
    ]


def test_split_models_are_one(tmp_path: Path) -> None:
    manifest = read_manifest(write_split(tmp_path))
    assert decode(manifest.encoded) == manifest
    assert {entry.file for entry in manifest.tensors.values()} == {0, 1}
    assert manifest.summary()["file_count"] == 2
    assert manifest.summary()["layers"] == 2


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    paths[1].write_bytes(gguf({}, [("blk.0.attn_q.weight", bytes(64))]))
    with pytest.raises(BadModelFile, match="same name"):
        read_manifest(paths)


def test_the_summary_comes_from_the_header(manifest: Manifest) -> None:
    found = manifest.summary()
    assert (found["architecture"], found["layers"], found["quantisation"]) == ("llama", 4, "F32")
    assert found["context_length"] == 128
    assert found["size_bytes"] == manifest.size


def _module_manifest() -> Manifest:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CHUNK_BYTES", 4096)
        found = read_manifest([write_toy(Path(folder) / "toy.gguf")])
        assert found.chunks
        assert found.tensors
        assert found.header_chunks
        return found


_MANIFEST = _module_manifest()


def _damaged() -> dict[str, bytes]:
    good = msgpack.unpackb(_MANIFEST.encoded)
    size, header_size, holes, kept, digests = good[2][0]
    assert len(holes) == 2

    def file(*entry: object) -> bytes:
        return bytes(msgpack.packb([1, 4096, [list(entry)]]))

    fix, first, end = holes[0]
    return {
        "empty": b"",
        "no msgpack": b"\xc1",
        "trailing byte": _MANIFEST.encoded + b"\0",
        "a map": msgpack.packb({"a": 1}),
        "nested too deep": b"\x91" * 600 + b"\x90",
        "version 2": msgpack.packb([2, *good[1:]]),
        "version true": msgpack.packb([True, *good[1:]]),
        "other chunks": msgpack.packb([1, 8192, good[2]]),
        "no files": msgpack.packb([1, 4096, []]),
        "files no list": msgpack.packb([1, 4096, 7]),
        "file of text": msgpack.packb([1, 4096, ["x"]]),
        "short file entry": file(size, header_size, holes, kept),
        "wide integers": _MANIFEST.encoded.replace(b"\x93\x01", b"\x93\xcc\x01", 1),
        "file smaller than header": file(header_size - 1, header_size, holes, kept, digests),
        "file smaller than tensors": file(size - 64, header_size, holes, kept, digests),
        "header of nothing": file(size, 0, [], b"", digests),
        "huge header": file(size, 2**40, holes, kept, digests),
        "header too short": file(size, header_size, holes, kept[:-1], digests),
        "header cut before a hole": file(size, header_size, holes, kept[:9], digests),
        "header too long": file(size, header_size, holes, kept + b"\0", digests),
        "missing digest": file(size, header_size, holes, kept, digests[:-32]),
        "half a digest": file(size, header_size, holes, kept, digests[:-1]),
        "hole is text": file(size, header_size, ["x"], kept, digests),
        "holes overlap": file(size, header_size, [holes[0], holes[0]], kept, digests),
        "hole outside": file(size, header_size, [[fix, first, header_size + 5]], kept, digests),
        "hole is no array": file(size, header_size, [[fix - 1, first, end], holes[1]], kept, digests),
        "hole elsewhere": file(size, header_size, [[0, 12, 12 + end - first], holes[1]], kept, digests),
    }


@pytest.mark.parametrize("name", _damaged())
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(BadModelFile):
        decode(_damaged()[name])


def test_too_long_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MANIFEST_BYTES_MAX", 10)
    with pytest.raises(BadModelFile, match="at most 10"):
        decode(_MANIFEST.encoded)


@given(st.integers(0, len(_MANIFEST.encoded) - 1), st.integers(1, 255))
def test_a_changed_byte_changes_the_id_or_is_refused(position: int, change: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CHUNK_BYTES", 4096)
        data = bytearray(_MANIFEST.encoded)
        data[position] ^= change
        with contextlib.suppress(BadModelFile):
            assert decode(bytes(data)).content_id != _MANIFEST.content_id


def test_building_twice_gives_equal_manifests() -> None:
    assert build(_MANIFEST.files) == _MANIFEST
