"""The store: imports copy nothing, the cache survives crashes, bad files and full disks leave nothing behind."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import gguf as reference
import pytest

from p2pnode import limits
from p2pnode.errors import BadModelFile, BlobMismatch, DataDirError, DiskFull, ModelIncomplete, ModelUnknown
from p2pnode.models import cid, files, importer
from p2pnode.models.manifest import Want
from p2pnode.models.manifest_codec import build
from p2pnode.models.records import ImportedFile
from p2pnode.models.store import DEMO_NAME, Holdings, ModelStore, StoredModel
from tests.kit.gguf_files import gguf, toy, write_split, write_toy

BODY = 10
"""A chunk of a tensor; the first ones are the header's."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES", 4096)


@pytest.fixture
def origin(tmp_path: Path) -> ModelStore:
    """A store that has the model `toy`."""
    store = ModelStore(tmp_path / "origin")
    store.add_file(write_toy(tmp_path / "toy.gguf"))
    return store


def _copy(source: ModelStore, target: ModelStore, indexes: list[int]) -> None:
    content_id = source.get("toy").content_id
    for index in indexes:
        target.write_chunk(content_id, index, source.read_chunk(content_id, index))
    target.flush(content_id)


def _empty(origin: ModelStore, folder: Path, **options: int) -> tuple[ModelStore, StoredModel]:
    store = ModelStore(folder, **options)  # type: ignore[arg-type]
    return store, store.add_manifest("toy", origin.get("toy").manifest.encoded)


def _read(store: ModelStore, model: StoredModel) -> reference.GGUFReader:
    return reference.GGUFReader(store.paths(model.content_id)[0])


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- import ------------------------------------------------------------------------------------------
def test_an_import_copies_nothing(tmp_path: Path, origin: ModelStore) -> None:
    model = origin.get("toy")
    assert model.is_complete
    assert origin.paths(model.content_id) == (tmp_path / "toy.gguf",)
    assert _files(tmp_path / "origin") == [f"manifests/{model.content_id}", "store.json"]


def test_importing_again_reads_no_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_toy(tmp_path / "toy.gguf")
    first = ModelStore(tmp_path / "s").add_file(path)
    monkeypatch.setattr(importer, "read_manifest", None)
    assert ModelStore(tmp_path / "s").add_file(path) == first
    assert ModelStore(tmp_path / "s").add_demo(path).name == DEMO_NAME


def test_a_changed_file_is_not_believed(tmp_path: Path, origin: ModelStore) -> None:
    old = origin.get("toy").content_id
    write_toy(tmp_path / "toy.gguf", seed=9)
    os.utime(tmp_path / "toy.gguf", ns=(1, 1))
    assert not origin.get("toy").is_complete
    assert len(origin.missing(old, range(3))) == 3
    again = origin.add_file(tmp_path / "toy.gguf")
    assert again.content_id != old
    assert again.is_complete


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = write_toy(tmp_path / "toy.gguf")
    ModelStore(tmp_path / "s").add_file(path, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] > 0.99 * seen[-1][1]


def test_split_models_are_imported_from_any_part(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    store = ModelStore(tmp_path / "s")
    model = store.add_file(paths[1])
    assert model.name == "toy"
    assert store.paths(model.content_id) == tuple(paths)
    pieces = store.pieces(model.content_id, [Want("blk.1.attn_q.weight", 8, 24)])
    assert [(piece.path, piece.size) for piece in pieces] == [(paths[1], 16)]
    paths[0].unlink()
    with pytest.raises(BadModelFile, match="is missing"):
        store.add_file(paths[1], "again")


def test_bad_files_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "s")
    good = toy()
    bad = {
        "no-gguf": b"hello",
        "empty": b"",
        "header-cut": good[:200],
        "data-cut": good[:-100],
        "long-header-cut": toy(vocabulary=60_000)[:300_000],
    }
    for name, data in bad.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        with pytest.raises(BadModelFile) as caught:
            store.add_file(path)
        assert path.name in caught.value.message
    for path in (tmp_path / "absent.gguf", tmp_path, tmp_path / "x-00001-of-99999.gguf"):
        with pytest.raises(BadModelFile):
            store.add_file(path)
    (tmp_path / "x-00001-of-00000.gguf").write_bytes(good)
    with pytest.raises(BadModelFile):
        store.add_file(tmp_path / "x-00001-of-00000.gguf")
    assert store.models() == []
    assert _files(tmp_path / "s") == []


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy.gguf")
    store = ModelStore(tmp_path / "s")
    with pytest.raises(BadModelFile, match="changed while"):
        store.add_file(path, progress=lambda _done, _total: os.utime(path, ns=(5, 5)))
    with pytest.raises(BadModelFile, match="shorter while"):
        store.add_file(path, progress=lambda _done, _total: os.truncate(path, 20_000))


def test_a_large_header_is_read_whole(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy.gguf", vocabulary=60_000)
    model = ModelStore(tmp_path / "s").add_file(path)
    assert model.manifest.outlines[0].size > importer._HEADER_FIRST_BYTES
    assert model.manifest.summary()["quantisation"] == "F32"


@pytest.mark.parametrize("name", ["", "-x", "a b", "../x", "x" * 201, "ä"])
def test_bad_names_are_refused(origin: ModelStore, name: str) -> None:
    with pytest.raises(BadModelFile):
        origin.add_manifest(name, origin.get("toy").manifest)


@pytest.mark.parametrize(
    ("file", "name"), [("a b.gguf", "a-b"), ("m-00001-of-00002.gguf", "m"), ("-.gguf", "model"), ("x", "x")]
)
def test_names_come_from_files(file: str, name: str) -> None:
    assert importer.name_of(Path(file)) == name


# --- cache -------------------------------------------------------------------------------------------
def test_fetched_tensors_lie_where_the_original_has_them(tmp_path: Path, origin: ModelStore) -> None:
    store, model = _empty(origin, tmp_path / "b")
    wants = [Want("blk.1.attn_q.weight"), Want("blk.1.attn_norm.weight")]
    with pytest.raises(ModelIncomplete) as caught:
        store.pieces(model.content_id, wants)
    assert caught.value.details["missing_bytes"] == 20_064
    _copy(origin, store, model.manifest.chunks_for(wants))
    data = (tmp_path / "toy.gguf").read_bytes()
    for piece in store.pieces(model.content_id, wants):
        assert piece.path.read_bytes()[piece.offset :][: piece.size] == data[piece.offset :][: piece.size]
    assert [t.name for t in _read(store, model).tensors] == list(model.manifest.tensors)
    assert store.room.cached_bytes() == 20_064
    assert not store.get("toy").is_complete


def test_a_restart_misses_nothing(tmp_path: Path, origin: ModelStore) -> None:
    store, model = _empty(origin, tmp_path / "b")
    chunks = model.manifest.chunks_for([Want("blk.2.attn_q.weight")])
    _copy(origin, store, chunks)
    again = ModelStore(tmp_path / "b")
    assert again.missing(model.content_id, chunks) == []
    assert again.have(model.content_id) == store.have(model.content_id)
    assert again.read_chunk(model.content_id, chunks[0]) == origin.read_chunk(model.content_id, chunks[0])


def test_what_was_not_flushed_is_fetched_again(tmp_path: Path, origin: ModelStore) -> None:
    """A crash between two flushes: bits promise only durable bytes."""
    store, model = _empty(origin, tmp_path / "b")
    store.write_chunk(model.content_id, BODY, origin.read_chunk(model.content_id, BODY))
    assert ModelStore(tmp_path / "b").missing(model.content_id, [BODY]) == [BODY]
    store.flush(model.content_id)
    assert ModelStore(tmp_path / "b").missing(model.content_id, [BODY]) == []


def test_a_complete_cache_is_the_original(tmp_path: Path, origin: ModelStore) -> None:
    store, model = _empty(origin, tmp_path / "b")
    _copy(origin, store, list(range(len(model.manifest.chunks))))
    assert store.get("toy").is_complete
    assert store.paths(model.content_id)[0].read_bytes() == (tmp_path / "toy.gguf").read_bytes()
    assert store.verify(model.content_id) == []


def test_a_header_appears_whole_or_slim(tmp_path: Path, origin: ModelStore) -> None:
    """Half of a vocabulary never makes the file unreadable, not even after a crash."""
    store, model = _empty(origin, tmp_path / "b")
    pieces = list(model.manifest.header_chunks)
    assert len(pieces) > 2
    _copy(origin, store, pieces[:-1])
    field = _read(store, model).fields["tokenizer.ggml.tokens"]
    assert field.types[1] == reference.GGUFValueType.UINT8
    again = ModelStore(tmp_path / "b")
    assert again.missing(model.content_id, pieces) == pieces
    _copy(origin, again, pieces)
    field = _read(again, model).fields["tokenizer.ggml.tokens"]
    assert field.contents()[17] == "token-17"


def test_a_header_that_is_not_the_shown_one_is_refused(tmp_path: Path) -> None:
    """A maker of manifests may give digests of another header than the one shown."""
    path = write_toy(tmp_path / "toy.gguf")
    honest = importer.read_manifest([path]).files[0]
    size = importer.read_manifest([path]).outlines[0].size
    evil = bytearray(path.read_bytes()[:size])
    evil[evil.index(b"toy")] = ord("T")
    digests = [cid.digest(bytes(evil[at : at + 4096])) for at in range(0, size, 4096)]
    rest = honest.digests[32 * len(digests) :]
    manifest = build([replace(honest, digests=b"".join(digests) + rest)])
    store = ModelStore(tmp_path / "b")
    model = store.add_manifest("toy", manifest)
    *first, last = [manifest.chunks[index] for index in manifest.header_chunks]
    for chunk in first:
        store.write_chunk(
            model.content_id, chunk.index, bytes(evil[chunk.offset : chunk.offset + chunk.size])
        )
    with pytest.raises(BadModelFile, match="another header"):
        store.write_chunk(model.content_id, last.index, bytes(evil[last.offset : last.offset + last.size]))


def test_writing_a_chunk_twice_changes_nothing(tmp_path: Path, origin: ModelStore) -> None:
    store, model = _empty(origin, tmp_path / "b")
    _copy(origin, store, [BODY])
    _copy(origin, store, [BODY])
    assert store.room.cached_bytes() == model.manifest.chunks[BODY].size


def test_an_imported_file_that_vanished_is_missing(tmp_path: Path, origin: ModelStore) -> None:
    model = origin.get("toy")
    assert origin.lost_file(model.content_id) is None
    (tmp_path / "toy.gguf").unlink()
    assert not origin.get("toy").is_complete
    assert origin.lost_file(model.content_id) == tmp_path / "toy.gguf"
    assert origin.missing(model.content_id, [BODY]) == [BODY]
    with pytest.raises(ModelIncomplete):
        origin.read_chunk(model.content_id, BODY)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_toy(tmp_path / "toy.gguf")

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    store = ModelStore(tmp_path / "s")
    monkeypatch.setattr(importer, "read_header", broken)
    with pytest.raises(BadModelFile, match="Input/output error"):
        store.add_file(path)
    monkeypatch.setattr(Path, "stat", broken)
    with pytest.raises(BadModelFile, match="cannot read"):
        ImportedFile.of(path)


def test_whole_layers_are_known(tmp_path: Path, origin: ModelStore) -> None:
    content_id = origin.get("toy").content_id
    assert origin.holdings(content_id) == Holdings(((0, 4),), ends=True)
    store, model = _empty(origin, tmp_path / "b")
    assert store.holdings(content_id) == Holdings((), ends=False)
    for layer in (0, 2, 3):
        _copy(origin, store, list(model.manifest.chunks_by_layer[layer]))
    _copy(origin, store, list(model.manifest.chunks_by_layer[1][1:]))
    assert store.holdings(content_id) == Holdings(((0, 1), (2, 4)), ends=False)


def test_wrong_bytes_are_refused(tmp_path: Path, origin: ModelStore) -> None:
    store, model = _empty(origin, tmp_path / "b")
    good = origin.read_chunk(model.content_id, BODY)
    for bad in (good[:-1], good + b"\0", bytes(len(good)), b""):
        with pytest.raises(BlobMismatch):
            store.write_chunk(model.content_id, BODY, bad)
    assert store.missing(model.content_id, [BODY]) == [BODY]


def test_damage_on_disk_is_found_and_forgotten(tmp_path: Path, origin: ModelStore) -> None:
    store, model = _empty(origin, tmp_path / "b")
    everything = list(range(len(model.manifest.chunks)))
    _copy(origin, store, everything)
    victim = model.manifest.chunks[-3]
    header = model.manifest.chunks[0]
    with store.paths(model.content_id)[0].open("r+b") as file:
        file.seek(victim.offset)
        file.write(b"damage")
        file.seek(header.offset + 100)
        file.write(b"damage")
    seen: list[int] = []
    assert store.verify(model.content_id, lambda done, _total: seen.append(done))[-1] == victim.index
    assert set(store.missing(model.content_id, everything)) == {victim.index, *model.manifest.header_chunks}
    assert seen[-1] == model.manifest.bytes_of(everything)
    with pytest.raises(ModelIncomplete):
        store.read_chunk(model.content_id, victim.index)
    assert ModelStore(tmp_path / "b").missing(model.content_id, [victim.index]) == [victim.index]


def test_damage_of_an_import_is_found(tmp_path: Path, origin: ModelStore) -> None:
    path, model = tmp_path / "toy.gguf", origin.get("toy")
    stamp = path.stat()
    with path.open("r+b") as file:
        file.seek(model.manifest.chunks[-1].offset)
        file.write(b"damage")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(BlobMismatch):
        origin.read_chunk(model.content_id, len(model.manifest.chunks) - 1)
    assert not origin.get("toy").is_complete


# --- removal, quota ----------------------------------------------------------------------------------
def test_removing_frees_the_cache_and_keeps_imported_files(tmp_path: Path, origin: ModelStore) -> None:
    store, model = _empty(origin, tmp_path / "b")
    _copy(origin, store, list(range(len(model.manifest.chunks))))
    store.add_manifest("alias", model.manifest)
    assert store.remove("alias") == 0
    assert store.remove(model.content_id) > 0
    assert _files(tmp_path / "b") == ["store.json"]
    origin.remove("toy")
    assert (tmp_path / "toy.gguf").exists()
    for name in ("toy", model.content_id, "nothing"):
        with pytest.raises(ModelUnknown):
            origin.get(name)
    with pytest.raises(ModelUnknown):
        origin.manifest(model.content_id)


def test_leftovers_of_a_crash_are_collected(tmp_path: Path, origin: ModelStore) -> None:
    store, _model = _empty(origin, tmp_path / "b")
    _copy(origin, store, [BODY])
    (tmp_path / "b" / "store.json").unlink()
    again = ModelStore(tmp_path / "b")
    assert again.collect() > 0
    assert _files(tmp_path / "b") == []
    assert origin.collect() == 0


def test_the_quota_drops_the_least_recently_used(tmp_path: Path) -> None:
    sources = {}
    for number in range(3):
        sources[number] = ModelStore(tmp_path / f"o{number}")
        sources[number].add_file(write_toy(tmp_path / f"m{number}.gguf", seed=number), "toy")
    size = sources[0].get("toy").manifest.size
    store = ModelStore(tmp_path / "b", quota_bytes=2 * size + 100)
    for number, source in sources.items():
        model = source.get("toy")
        store.add_manifest(f"m{number}", model.manifest)
        store.reserve(model.content_id, size)
        if number == 0:
            store.room.pin([])
        _copy(source, store, list(range(len(model.manifest.chunks))))
    assert [model.name for model in store.models()] == ["m1", "m2"]
    store.room.pin(model.content_id for model in store.models())
    fourth = store.add_manifest("m0", sources[0].get("toy").manifest)
    with pytest.raises(DiskFull, match="in use"):
        store.reserve(fourth.content_id, size)
    with pytest.raises(DiskFull, match="may hold"):
        store.reserve(fourth.content_id, 3 * size)


def test_a_full_disk_is_said_before_and_during(
    tmp_path: Path, origin: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, model = _empty(origin, tmp_path / "b")
    monkeypatch.setattr(limits, "STORE_FREE_BYTES_MIN", shutil.disk_usage(tmp_path).total)
    with pytest.raises(DiskFull):
        store.reserve(model.content_id, 1)
    monkeypatch.undo()
    monkeypatch.setattr(limits, "CHUNK_BYTES", 4096)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store.paths(model.content_id)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull):
        files.write_atomic(tmp_path / "x", b"data")
    assert not list(tmp_path.glob("x*"))
    store.write_chunk(model.content_id, BODY, origin.read_chunk(model.content_id, BODY))
    with pytest.raises(DiskFull):
        store.flush(model.content_id)
    assert store.missing(model.content_id, [BODY]) == [BODY]
    store.close()
    monkeypatch.undo()
    monkeypatch.setattr(limits, "CHUNK_BYTES", 4096)
    assert ModelStore(tmp_path / "b").missing(model.content_id, [BODY]) == [BODY]


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataDirError, match="cannot use"):
        ModelStore(tmp_path / "file" / "store")


@pytest.mark.parametrize("damage", ["not JSON", "a content id that is none"])
def test_damaged_records_are_put_aside(tmp_path: Path, origin: ModelStore, damage: str) -> None:
    model = origin.get("toy")
    records = tmp_path / "origin" / "store.json"
    whole = records.read_text()
    records.write_text(
        "{broken" if damage == "not JSON" else whole.replace(model.content_id[-9:], "&&&&&&&&&")
    )
    again = ModelStore(tmp_path / "origin")
    assert again.models() == []
    assert (tmp_path / "origin" / "store.json.damaged").exists()
    assert again.add_file(tmp_path / "toy.gguf").content_id == model.content_id


def test_a_damaged_manifest_is_not_believed(tmp_path: Path, origin: ModelStore) -> None:
    model = origin.get("toy")
    path = tmp_path / "origin" / "manifests" / model.content_id
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    again = ModelStore(tmp_path / "origin")
    with pytest.raises(BadModelFile, match="damaged"):
        again.get("toy")
    assert again.models() == []


@pytest.mark.parametrize("damage", ["flip", "empty", "missing", "a folder"])
def test_a_damaged_manifest_is_made_again(tmp_path: Path, origin: ModelStore, damage: str) -> None:
    """From the file that it was made of; a name without one can be removed, and keeps no other model from room."""
    model = origin.get("toy")
    path = tmp_path / "origin" / "manifests" / model.content_id
    data = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(b"" if damage == "empty" else data[:-1] + b"x")
    again = ModelStore(tmp_path / "origin")
    assert again.room.cached_bytes() == 0
    assert again.add_file(tmp_path / "toy.gguf").manifest == model.manifest
    assert path.read_bytes() == data
    path.write_bytes(b"x")
    last = ModelStore(tmp_path / "origin")
    last.remove("toy")
    with pytest.raises(ModelUnknown):
        last.get("toy")
    assert not path.exists()


def test_a_cache_without_its_files_is_empty(tmp_path: Path, origin: ModelStore) -> None:
    store, model = _empty(origin, tmp_path / "b")
    _copy(origin, store, [BODY])
    folder = tmp_path / "b" / "data" / model.content_id
    (folder / "have").write_bytes(b"\xff")
    assert ModelStore(tmp_path / "b").missing(model.content_id, [BODY]) == [BODY]
    (folder / "model.gguf").unlink()
    assert ModelStore(tmp_path / "b").missing(model.content_id, [BODY]) == [BODY]


def test_a_model_without_tensors_is_possible(tmp_path: Path) -> None:
    """A vocabulary alone is a valid GGUF file."""
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(gguf({"general.architecture": "llama"}, []))
    assert ModelStore(tmp_path / "s").add_file(path).manifest.tensors == {}
