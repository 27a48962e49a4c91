"""Files, peers and hubs keep the model source contract: right bytes, only what is missing, clear refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import huggingface_hub
import pytest

from p2pnode import limits
from p2pnode.errors import P2PNodeError
from p2pnode.models import blob, hub_ref
from p2pnode.models.blob_client import Holder
from p2pnode.models.hub import Hub
from p2pnode.models.importer import read_manifest
from p2pnode.models.manifest import Manifest, Want
from p2pnode.models.serve import BlobServer
from p2pnode.models.source import FileSource, HubSource, ModelSource, PeerSource
from p2pnode.models.store import ModelStore
from p2pnode.transport.port import Stream
from tests.kit.gguf_files import write_toy
from tests.kit.hub_server import REPO, hub_server
from tests.kit.net import quic, running

SLICE = [Want("blk.1.attn_q.weight"), Want("blk.1.attn_norm.weight")]


def _bytes(path: Path) -> bytes:
    return path.read_bytes()


class ModelSourceContract:
    """What every source does; subclasses give `source` of the toy in `original`."""

    copies = True
    """False where nothing is copied, so there is nothing to save."""

    @pytest.fixture(autouse=True)
    def small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "CHUNK_BYTES", 4096)

    @pytest.fixture
    def original(self, tmp_path: Path) -> Path:
        return write_toy(tmp_path / "toy.gguf")

    @pytest.fixture
    def manifest(self, original: Path) -> Manifest:
        return read_manifest([original])

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[ModelStore]:
        store = ModelStore(tmp_path / "store")
        yield store
        store.close()

    async def test_the_whole_model_comes(
        self, source: ModelSource, store: ModelStore, original: Path
    ) -> None:
        seen: list[tuple[int, int]] = []
        model = await source.whole(store, "mine", lambda done, total: seen.append((done, total)))
        assert model.name == "mine"
        assert model.is_complete
        assert _bytes(store.paths(model.content_id)[0]) == _bytes(original)
        assert seen == sorted(seen)
        assert seen

    async def test_a_part_comes_and_only_that(
        self, source: ModelSource, store: ModelStore, manifest: Manifest, original: Path
    ) -> None:
        store.add_manifest("mine", manifest)
        result = await source.part(store, manifest, SLICE)
        data = _bytes(original)
        for piece in store.pieces(manifest.content_id, SLICE):
            assert _bytes(piece.path)[piece.offset :][: piece.size] == data[piece.offset :][: piece.size]
        assert result.bytes_on_wire <= result.bytes_wanted * 1.01 + 200
        if self.copies:
            assert result.bytes_wanted == 20_064
            assert not store.get("mine").is_complete

    async def test_asking_again_moves_nothing(
        self, source: ModelSource, store: ModelStore, manifest: Manifest
    ) -> None:
        store.add_manifest("mine", manifest)
        await source.part(store, manifest, SLICE)
        assert (await source.part(store, manifest, SLICE)).bytes_on_wire == 0
        store.close()
        again = ModelStore(store.root)
        assert (await source.part(again, manifest, SLICE)).bytes_on_wire == 0

    async def test_the_vocabulary_comes_when_wanted(
        self, source: ModelSource, store: ModelStore, manifest: Manifest
    ) -> None:
        store.add_manifest("mine", manifest)
        await source.part(store, manifest, SLICE, vocabulary=True)
        assert b"token-17" in _bytes(store.paths(manifest.content_id)[0])

    async def test_another_model_is_refused(
        self, source: ModelSource, store: ModelStore, tmp_path: Path
    ) -> None:
        other = read_manifest([write_toy(tmp_path / "other.gguf", seed=5)])
        store.add_manifest("other", other)
        with pytest.raises(P2PNodeError):
            await source.part(store, other, SLICE)
        if self.copies:
            assert store.get("other").have_bytes == 0


class TestFileSource(ModelSourceContract):
    copies = False

    @pytest.fixture
    def source(self, original: Path) -> ModelSource:
        return FileSource(original)


class TestHubSource(ModelSourceContract):
    @pytest.fixture
    def source(self, original: Path) -> Iterator[ModelSource]:
        with hub_server({"toy.gguf": original.read_bytes()}) as server:
            yield HubSource(Hub(server.endpoint), hub_ref.parse(f"hf:{REPO}"))
        huggingface_hub.close_session()


class TestPeerSource(ModelSourceContract):
    """Over real QUIC on loopback, from two holders."""

    @pytest.fixture
    async def source(self, original: Path, manifest: Manifest, tmp_path: Path) -> AsyncIterator[ModelSource]:
        origin = ModelStore(tmp_path / "origin")
        origin.add_file(original)
        fetcher = quic("fetcher")
        holders, transports = [], []
        for name in ("one", "two"):
            transport = quic(name)
            transport.handle(blob.PROTOCOL, BlobServer(origin).handle)
            transports.append(transport)

            async def open_stream(transport: object = transport) -> Stream:
                connection = await fetcher.dial(transport.listen_multiaddrs, transport.peer_id)  # type: ignore[attr-defined]
                return await connection.open_stream(blob.PROTOCOL)

            holders.append(Holder(name, open_stream))
        async with running(fetcher, *transports):
            yield PeerSource(manifest.content_id, holders)
