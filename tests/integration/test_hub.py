"""Pulling from a hub on loopback: ranged, resumable, checked, and clear about what it cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from p2pnode import limits
from p2pnode.errors import (
    BadModelFile,
    BlobMismatch,
    Cancelled,
    DiskFull,
    ModelIncomplete,
    ModelUnknown,
    P2PNodeError,
    PeerTimeout,
)
from p2pnode.models import hub_ref
from p2pnode.models.hub import Hub, RemoteFile
from p2pnode.models.manifest import Want
from p2pnode.models.source import HubSource
from p2pnode.models.store import ModelStore
from tests.kit.gguf_files import toy, write_split
from tests.kit.hub_server import REPO, HubServer, hub_server

NAME = "toy-Q4_K_M.gguf"
SMALL_READS = 4096


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES", 4096)
    monkeypatch.setattr(limits, "HUB_RETRY_S", 0.0)
    monkeypatch.setattr(limits, "HUB_READ_BYTES", SMALL_READS)


@pytest.fixture
def server() -> Iterator[HubServer]:
    with hub_server({NAME: toy(), "README.md": b"hello"}) as running:
        yield running
    huggingface_hub.close_session()


def _remote(server: HubServer) -> tuple[Hub, list[RemoteFile]]:
    hub = Hub(server.endpoint)
    return hub, hub.resolve(hub_ref.parse(f"hf:{REPO}"))


def test_a_model_is_pulled_and_checked(server: HubServer, tmp_path: Path) -> None:
    hub, files = _remote(server)
    seen: list[tuple[int, int]] = []
    paths = hub.pull(files, tmp_path / "pulled", lambda done, total: seen.append((done, total)))
    assert paths[0].read_bytes() == server.files[NAME]
    assert seen[-1] == (len(toy()), len(toy()))
    assert [path.name for path in (tmp_path / "pulled").iterdir()] == [NAME]


def test_checksums_of_the_listing_are_enough(server: HubServer, tmp_path: Path) -> None:
    server.faults = {"checksums listed", "no checksum"}
    hub, files = _remote(server)
    assert hub.pull(files, tmp_path)[0].read_bytes() == server.files[NAME]


def test_pulling_again_costs_nothing(server: HubServer, tmp_path: Path) -> None:
    hub, files = _remote(server)
    hub.pull(files, tmp_path)
    server.ranges.clear()
    hub.pull(files, tmp_path, lambda done, total: None)
    assert server.ranges == []


def test_a_broken_pull_goes_on_where_it_ended(server: HubServer, tmp_path: Path) -> None:
    hub, files = _remote(server)
    server.cut_after = 10_000
    paths = hub.pull(files, tmp_path)
    assert paths[0].read_bytes() == server.files[NAME]
    assert server.ranges[0] is None
    assert str(server.ranges[1]).startswith("bytes=")
    assert server.bytes_sent < len(toy()) + SMALL_READS + 1000


def test_a_stopped_pull_goes_on_later(server: HubServer, tmp_path: Path) -> None:
    hub, files = _remote(server)
    with pytest.raises(Cancelled):
        hub.pull(files, tmp_path, lambda done, total: hub.stop.set() if done > 20_000 else None)
    part = next(tmp_path.iterdir())
    assert part.name.endswith(".part")
    kept = part.stat().st_size
    hub.stop.clear()
    server.ranges.clear()
    hub.pull(files, tmp_path)
    assert server.ranges == [f"bytes={kept}-"]


def test_a_hub_without_ranges_starts_again(server: HubServer, tmp_path: Path) -> None:
    hub, files = _remote(server)
    server.cut_after = 10_000
    server.faults = {"no ranges"}
    assert hub.pull(files, tmp_path)[0].read_bytes() == server.files[NAME]


@pytest.mark.parametrize("fault", ["bad bytes", "endless"])
def test_bytes_that_are_not_what_the_hub_lists_are_refused(
    server: HubServer, tmp_path: Path, fault: str
) -> None:
    hub, files = _remote(server)
    server.faults = {fault}
    with pytest.raises(BlobMismatch):
        hub.pull(files, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_part_longer_than_the_file_is_thrown_away(server: HubServer, tmp_path: Path) -> None:
    hub, files = _remote(server)
    (tmp_path / f"{NAME}.{files[0].checksum[:16]}.part").write_bytes(bytes(len(toy()) + 1))
    assert hub.pull(files, tmp_path)[0].read_bytes() == server.files[NAME]


def test_a_file_of_another_version_is_replaced(server: HubServer, tmp_path: Path) -> None:
    hub, files = _remote(server)
    (tmp_path / NAME).write_bytes(bytes(len(toy())))
    assert hub.pull(files, tmp_path)[0].read_bytes() == server.files[NAME]


def test_small_files_are_checked_by_their_git_id(server: HubServer, tmp_path: Path) -> None:
    server.small = {NAME}
    hub, files = _remote(server)
    assert len(files[0].checksum) == 40
    assert hub.pull(files, tmp_path)[0].read_bytes() == server.files[NAME]


def test_a_hub_that_keeps_breaking_is_given_up(server: HubServer, tmp_path: Path) -> None:
    hub, files = _remote(server)
    server.faults = {"down"}
    with pytest.raises(PeerTimeout):
        hub.pull(files, tmp_path)


@pytest.mark.parametrize(
    ("fault", "error"),
    [("down", PeerTimeout), ("gated", ModelUnknown), ("no checksum", BadModelFile), ("sizes", BadModelFile)],
)
def test_resolving_fails_in_words(server: HubServer, fault: str, error: type[P2PNodeError]) -> None:
    server.faults = {fault}
    with pytest.raises(error):
        _remote(server)


def test_unknown_repositories_and_dead_hubs(server: HubServer) -> None:
    with pytest.raises(ModelUnknown):
        Hub(server.endpoint).resolve(hub_ref.parse("hf:maker/nothing"))
    with pytest.raises(PeerTimeout):
        Hub("http://127.0.0.1:9").resolve(hub_ref.parse("hf:maker/nothing"))


def test_the_header_alone_is_enough_to_plan(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HUB_HEADER_FIRST_BYTES", 8192)
    hub, files = _remote(server)
    found = hub.outline(files[0])
    assert found.scalars["llama.block_count"] == 4
    assert server.bytes_sent < 50_000
    server.files[NAME] = b"GGUF" + bytes([3]) + bytes(3) + b"\xff" * 2 + bytes(14)
    with pytest.raises(BadModelFile):
        hub.outline(_remote(server)[1][0])


@pytest.mark.parametrize(
    ("fault", "error"),
    [("no ranges", ModelUnknown), ("short range", BlobMismatch), ("long range", BlobMismatch)],
)
def test_ranges_are_exact_or_refused(server: HubServer, fault: str, error: type[P2PNodeError]) -> None:
    hub, files = _remote(server)
    assert hub.read_range(files[0], 100, 50) == server.files[NAME][100:150]
    server.faults = {fault}
    with pytest.raises(error):
        hub.read_range(files[0], 100, 50)


# --- into the store ----------------------------------------------------------------------------------
async def test_a_pulled_model_belongs_to_the_store(server: HubServer, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "s")
    source = HubSource(Hub(server.endpoint), hub_ref.parse(f"hf:{REPO}"))
    model = await source.whole(store, "toy")
    assert model.is_complete
    assert store.room.stored_bytes() == len(toy())
    assert store.remove("toy") > 0
    assert not list((tmp_path / "s" / "pulled").rglob("*.gguf"))


async def test_only_needed_ranges_come_for_a_known_manifest(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(toy())
    manifest = ModelStore(tmp_path / "o").add_file(tmp_path / NAME).manifest
    store = ModelStore(tmp_path / "s")
    store.add_manifest("toy", manifest)
    source = HubSource(Hub(server.endpoint), hub_ref.parse(f"hf:{REPO}"))
    wants = [Want("blk.2.attn_q.weight"), Want("blk.2.attn_norm.weight"), Want("blk.0.attn_norm.weight")]
    server.bytes_sent = 0
    result = await source.part(store, manifest, wants)
    assert result.bytes_on_wire < result.bytes_wanted + 64
    assert len(server.ranges) == 2
    assert store.pieces(manifest.content_id, wants)
    assert (await source.part(store, manifest, wants)).bytes_on_wire == 0
    server.faults = {"bad bytes"}
    with pytest.raises(BlobMismatch):
        await source.part(store, manifest, [Want("blk.1.attn_q.weight")])
    server.files[NAME] = toy(seed=3, layers=2)
    server.faults = set()
    with pytest.raises(ModelIncomplete, match="another model"):
        await source.part(store, manifest, [Want("blk.1.attn_q.weight")])


async def test_split_models_come_whole(tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in write_split(tmp_path)}
    with hub_server(files) as server:
        store = ModelStore(tmp_path / "s")
        source = HubSource(Hub(server.endpoint), hub_ref.parse(f"hf:{REPO}/toy-00002-of-00002.gguf"))
        model = await source.whole(store, "toy")
        assert len(model.manifest.files) == 2
    huggingface_hub.close_session()


async def test_a_quota_is_kept(server: HubServer, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "s", quota_bytes=1000)
    source = HubSource(Hub(server.endpoint), hub_ref.parse(f"hf:{REPO}"))
    with pytest.raises(DiskFull):
        await source.whole(store, "toy")
    assert server.ranges == []
