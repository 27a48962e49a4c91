"""Shard tables and strips on a disk: computed once, believed only when whole, and counted like all that was fetched."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from p2pnode import limits
from p2pnode.errors import BadModelFile, BlobMismatch, DataDirError, DiskFull, ModelIncomplete, ModelUnknown
from p2pnode.models import cid, shard_table
from p2pnode.models.manifest import Span, Want
from p2pnode.models.shard_table import ShardTable
from p2pnode.models.store import ModelStore
from p2pnode.models.strips import Strip
from p2pnode.units import ContentId
from tests.kit.gguf_files import matrices, write_toy

DOWN, UP = "blk.0.ffn_down.weight", "blk.0.ffn_up.weight"
ROW = 96 * 4
LEFT, RIGHT, MIDDLE = (Want(DOWN, span=Span(*ends, ROW)) for ends in ((0, 128), (128, ROW), (64, 200)))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES", 1024)


@pytest.fixture
def origin(tmp_path: Path) -> ModelStore:
    path = tmp_path / "m.gguf"
    path.write_bytes(matrices([(DOWN, (96, 20), 0), (UP, (16, 96), 0)], random.Random(3).randbytes))
    store = ModelStore(tmp_path / "origin")
    store.add_file(path, "m")
    return store


def model_of(store: ModelStore) -> ContentId:
    return store.get("m").content_id


def own(store: ModelStore) -> ShardTable:
    table = store.shards.own(model_of(store))
    assert table is not None
    return table


def empty(origin: ModelStore, folder: Path, quota: int | None = None) -> tuple[ModelStore, ShardTable]:
    store = ModelStore(folder, quota_bytes=quota)
    store.add_manifest("m", origin.get("m").manifest)
    table = own(origin)
    store.shards.add_table(table)
    return store, table


def bring(origin: ModelStore, store: ModelStore, table: ShardTable, *wants: Want) -> list[int]:
    """The tiles that had to come."""
    missing = store.shards.missing(table, store.shards.place(table, wants))
    for index in missing:
        store.shards.write(table, index, origin.shards.read(table, index))
    store.shards.flush(table)
    return missing


def strip_of(store: ModelStore, table: ShardTable, want: Want) -> Strip:
    strip = store.shards.strip(table, want)
    assert strip is not None
    return strip


# --- tables ------------------------------------------------------------------------------------------
def test_a_table_is_computed_once(
    tmp_path: Path, origin: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = own(origin)
    assert (
        table.encoded
        == (origin.root / "data" / model_of(origin) / "shards" / table.content_id / "table").read_bytes()
    )

    def never(*_: object) -> bytes:
        raise AssertionError("hashed a second time")

    again = ModelStore(tmp_path / "origin")
    monkeypatch.setattr(shard_table.Grid, "digests", never)
    assert own(again) == own(origin) == table
    assert again.shards.find(table.content_id) == table


@pytest.mark.parametrize("damage", [b"", b"x" * 59, b"\xff", cid.of(b"other").encode()])
def test_a_damaged_note_of_it_is_written_again(tmp_path: Path, origin: ModelStore, damage: bytes) -> None:
    table = own(origin)
    note = origin.root / "data" / model_of(origin) / "shards" / "own"
    note.write_bytes(damage)
    assert own(ModelStore(tmp_path / "origin")) == table
    assert note.read_text() == table.content_id


def test_a_damaged_table_is_not_believed(tmp_path: Path, origin: ModelStore) -> None:
    table = own(origin)
    path = origin.root / "data" / model_of(origin) / "shards" / table.content_id / "table"
    path.write_bytes(table.encoded[:-1])
    again = ModelStore(tmp_path / "origin")
    with pytest.raises(BadModelFile):
        again.shards.table(model_of(again), table.content_id)
    assert again.shards.find(table.content_id) is None
    assert again.shards.named(model_of(again), table.content_id) == table
    assert path.read_bytes() == table.encoded


def test_only_who_holds_the_tensors_computes_it(tmp_path: Path, origin: ModelStore) -> None:
    store, table = ModelStore(tmp_path / "b"), own(origin)
    store.add_manifest("m", origin.get("m").manifest)
    assert store.shards.own(model_of(store)) is None
    for ask in (store.shards.named, store.shards.table):
        with pytest.raises(ModelUnknown):
            ask(model_of(store), table.content_id)
    assert store.shards.strips(model_of(store), table.content_id, [LEFT]) == {}
    origin.add_file(write_toy(tmp_path / "t.gguf", layers=0), "toy")
    assert origin.shards.own(origin.get("toy").content_id) is None, "a model that no shard is cut from"
    with pytest.raises(ModelUnknown):
        origin.shards.named(model_of(origin), ContentId(cid.of(b"of nobody")))


def test_of_a_damaged_file_there_is_no_table(tmp_path: Path, origin: ModelStore) -> None:
    entry = origin.get("m").manifest.tensors[DOWN]
    path = tmp_path / "m.gguf"
    data = bytearray(path.read_bytes())
    data[entry.offset] ^= 1
    stamp = path.stat()
    path.write_bytes(data)

    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert origin.shards.own(model_of(origin)) is None


def test_nobody_waits_for_a_table_that_is_being_computed(origin: ModelStore) -> None:
    with origin.shards._making, pytest.raises(ModelIncomplete, match="being computed"):
        origin.shards.named(model_of(origin), ContentId(cid.of(b"any")))


# --- tiles -------------------------------------------------------------------------------------------
def test_tiles_come_once_and_stay(tmp_path: Path, origin: ModelStore) -> None:
    store, table = empty(origin, tmp_path / "b")
    assert bring(origin, store, table, LEFT) == [0, 3, 6]
    assert bring(origin, store, table, LEFT) == []
    again = ModelStore(tmp_path / "b")
    assert bring(origin, again, table, LEFT) == []
    strip = strip_of(again, table, LEFT)
    data, entry = (tmp_path / "m.gguf").read_bytes(), table.manifest.tensors[DOWN]
    rows = [data[entry.offset + row * ROW :][:128] for row in range(20)]
    assert strip.path.read_bytes() == b"".join(rows)
    assert again.shards.have(table) == bytes([0b01001001, 0b0])[: len(again.shards.have(table))]
    assert again.shards.read(table, 3) == origin.shards.read(table, 3)
    with pytest.raises(ModelIncomplete):
        again.shards.read(table, 1)


def test_a_wider_strip_takes_what_is_here(tmp_path: Path, origin: ModelStore) -> None:
    store, table = empty(origin, tmp_path / "b")
    bring(origin, store, table, LEFT)
    assert bring(origin, store, table, MIDDLE) == [1, 4, 7]
    assert bring(origin, store, table, RIGHT) == [2, 5, 8]
    whole = Want(DOWN, span=Span(0, ROW, ROW))
    assert bring(origin, store, table, whole, whole) == []
    before = store.room.cached_bytes()
    assert store.collect() == before - len(table.encoded) - 20 * ROW
    assert strip_of(store, table, LEFT).size == 20 * ROW


def test_what_was_not_made_durable_is_not_believed(tmp_path: Path, origin: ModelStore) -> None:
    store, table = empty(origin, tmp_path / "b")
    (first, *_) = store.shards.place(table, [LEFT])
    store.shards.write(table, first, origin.shards.read(table, first))
    assert ModelStore(tmp_path / "b").shards.place(table, [LEFT]) == [0, 3, 6]
    other = ModelStore(tmp_path / "b")
    assert other.shards.missing(table, [0, 3, 6]) == [0, 3, 6]


@pytest.mark.parametrize("spoil", ["short", "gone", "bits"])
def test_a_strip_of_another_size_holds_nothing(tmp_path: Path, origin: ModelStore, spoil: str) -> None:
    store, table = empty(origin, tmp_path / "b")
    bring(origin, store, table, LEFT)
    path = strip_of(store, table, LEFT).path
    match spoil:
        case "short":
            path.write_bytes(path.read_bytes()[:-1])
        case "gone":
            path.unlink()
        case _:
            path.with_name(path.name + ".have").write_bytes(b"")
    for name in ("7-0-1", "0-2-1", "0-0-9"):
        path.with_name(name).write_bytes(b"no strip of this table")
    again = ModelStore(tmp_path / "b")
    assert bring(origin, again, table, LEFT) == [0, 3, 6]


def test_a_disk_that_fails_takes_the_tiles_back(
    tmp_path: Path, origin: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, table = empty(origin, tmp_path / "b")
    bring(origin, store, table, LEFT)
    store.shards.place(table, [RIGHT])
    store.shards.write(table, 1, origin.shards.read(table, 1))

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(DataDirError):
            store.shards.flush(table)
    assert store.shards.missing(table, [0, 1, 2]) == [1, 2]
    assert bring(origin, store, table, LEFT, RIGHT) == [1, 2, 4, 5, 7, 8]


def test_other_bytes_are_refused(tmp_path: Path, origin: ModelStore) -> None:
    store, table = empty(origin, tmp_path / "b")
    (first, *_) = store.shards.place(table, [LEFT])
    good = origin.shards.read(table, first)
    for bad in (good[:-1], bytes([good[0] ^ 1]) + good[1:]):
        with pytest.raises(BlobMismatch):
            store.shards.write(table, first, bad)
    assert store.shards.missing(table, [first]) == [first]


def test_a_damaged_tile_is_forgotten(tmp_path: Path, origin: ModelStore) -> None:
    store, table = empty(origin, tmp_path / "b")
    bring(origin, store, table, LEFT)
    path = strip_of(store, table, LEFT).path
    path.write_bytes(b"?" + path.read_bytes()[1:])
    with pytest.raises(BlobMismatch):
        store.shards.read(table, 0)
    assert store.shards.strip(table, LEFT) is None
    assert bring(origin, ModelStore(tmp_path / "b"), table, LEFT) == [0]


def test_damage_of_the_original_is_its_chunks(tmp_path: Path, origin: ModelStore) -> None:

    table, path = own(origin), tmp_path / "m.gguf"
    stamp, data = path.stat(), bytearray(path.read_bytes())
    data[table.manifest.tensors[DOWN].offset] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(BlobMismatch):
        origin.shards.read(table, 0)
    assert origin.imported_paths(model_of(origin)) is None
    assert origin.shards.find(table.content_id) == table


def test_a_false_table_goes_when_it_meets_the_tensor(origin: ModelStore) -> None:
    table = own(origin)
    false = shard_table.build(table.manifest, bytes(len(table.digests)))
    origin.shards.add_table(false)
    with pytest.raises(BlobMismatch):
        origin.shards.read(false, 0)
    assert origin.shards.find(false.content_id) is None
    assert origin.shards.find(table.content_id) == table


def test_spans_of_other_lines_are_nobodys(tmp_path: Path, origin: ModelStore) -> None:
    store, table = empty(origin, tmp_path / "b")
    odd = [Want(DOWN, span=Span(0, 64, 128)), Want(DOWN), Want("blk.9.x", span=Span(0, 1, 2))]
    assert store.shards.place(table, odd) == []
    assert [store.shards.strip(table, want) for want in odd] == [None, None, None]


# --- room --------------------------------------------------------------------------------------------
def test_strips_count_and_go_with_the_model(tmp_path: Path, origin: ModelStore) -> None:
    store, table = empty(origin, tmp_path / "b")
    bring(origin, store, table, LEFT)
    assert store.room.cached_bytes() == 20 * 128 + len(table.encoded)
    assert not store.get("m").is_complete
    assert store.remove("m") > 20 * 128
    assert list((tmp_path / "b" / "data").iterdir()) == []
    assert store.shards.find(table.content_id) is None


def test_strips_keep_to_the_quota(tmp_path: Path, origin: ModelStore) -> None:
    table = own(origin)
    room = len(table.encoded) + 20 * 128
    store, _ = empty(origin, tmp_path / "b", quota=room)
    with pytest.raises(DiskFull):
        store.shards.place(table, [RIGHT])
    bring(origin, store, table, LEFT)
    with pytest.raises(DiskFull):
        store.shards.reserve(table, 1)
    other = tmp_path / "o.gguf"
    other.write_bytes(matrices([("t", (8, 8), 0)], random.Random(1).randbytes))
    store.add_manifest("o", origin.add_file(other, "o").manifest)
    store.reserve(store.get("o").content_id, 256)
    assert [model.name for model in store.models()] == ["o"], "what was used least is dropped, strips and all"


def test_former_shares_make_room(tmp_path: Path, origin: ModelStore) -> None:
    table = own(origin)
    store, _ = empty(origin, tmp_path / "b", quota=len(table.encoded) + 20 * 256)
    bring(origin, store, table, LEFT)
    assert bring(origin, store, table, RIGHT) == [1, 2, 4, 5, 7, 8]
    assert store.shards.strip(table, LEFT) is None
    assert store.room.cached_bytes() == len(table.encoded) + 20 * 256


def test_a_table_is_of_one_model(tmp_path: Path, origin: ModelStore) -> None:
    """A head cannot make a rank read one model's weights as another's."""
    table = own(origin)
    other = tmp_path / "o.gguf"
    other.write_bytes(matrices([(DOWN, (96, 20), 0)], random.Random(1).randbytes))
    stored = origin.add_file(other, "o")
    for ask in (origin.shards.table, origin.shards.named):
        with pytest.raises(ModelUnknown):
            ask(stored.content_id, table.content_id)


def test_whole_tensors_make_strips_needless(tmp_path: Path, origin: ModelStore) -> None:
    store, table = empty(origin, tmp_path / "b")
    bring(origin, store, table, LEFT)
    store.shards.place(table, [RIGHT])
    store.shards.drop(table, [RIGHT])
    assert store.shards.strip(table, LEFT) is not None, "what is complete stays"
    manifest = table.manifest
    for index in manifest.chunks_for([Want(DOWN)]):
        store.write_chunk(model_of(store), index, origin.read_chunk(model_of(store), index))
    store.flush(model_of(store))
    assert store.shards.needed(manifest, [LEFT, Want(UP), Want(UP, span=Span(0, 4, 8))]) == [
        Want(UP, span=Span(0, 4, 8))
    ]
    assert store.shards.strip(table, LEFT) is None
    assert store.collect() == 20 * 128
    assert store.shards.read(table, 0) == origin.shards.read(table, 0)
