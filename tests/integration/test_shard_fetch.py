"""Ranks of tensor groups fetch their shards and hardly more, verified by the table that their head named."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode import limits
from p2pnode.compute.gguf import ModelIndex
from p2pnode.errors import ModelIncomplete, P2PNodeError, RemoteProtocolError
from p2pnode.models import blob
from p2pnode.models.blob_client import Holder
from p2pnode.models.exchange import FetchResult
from p2pnode.models.serve import BlobServer
from p2pnode.models.shard_table import ShardTable, build
from p2pnode.models.source import PeerSource
from p2pnode.models.store import ModelStore
from p2pnode.transport.port import Stream
from tests.kit.blobs import Liar, Party, chunk
from tests.kit.shards import TOY, expected, loaded, rank_of, shard_bytes, toy_at
from tests.kit.toy_models import Toy

REAL = Toy(
    "llama", layers=1, width=2048, heads=32, kv_heads=4, head_width=64, ff=5632, vocabulary=64, type="Q8_0"
)
"""A layer of a model of 1.1 billion parameters, in the type with the smallest blocks: the most tiles there can be."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(limits, "BLOB_STEAL_AFTER_S", 0.05)
    if "per_cent" not in request.node.name:
        monkeypatch.setattr(limits, "CHUNK_BYTES", 16 * 1024)


class Group:
    """A toy model at a head, and what ranks of groups over it fetch."""

    def __init__(self, folder: Path, toy: Toy = TOY) -> None:
        self.path = folder / "toy.gguf"
        self.index: ModelIndex = toy_at(self.path, toy)
        self.party = Party(folder, self.path)
        self.content_id = self.party.model.content_id
        self.reported: list[tuple[str, str]] = []
        table = self.party.origin.shards.own(self.content_id)
        assert table is not None
        self.table: ShardTable = table

    def store(self, name: str) -> ModelStore:
        store = ModelStore(self.party.folder / name)
        store.add_manifest("toy", self.party.model.manifest)
        return store

    def _report(self, peer: str, error: P2PNodeError) -> None:
        self.reported.append((peer, error.code))

    async def fetch(
        self, store: ModelStore, rank: int, shares: tuple[int, ...], *holders: Holder, named: bool = True
    ) -> FetchResult:
        """As a node does it for an order; what an engine would read afterwards is the cut of the original."""
        part, wants = rank_of(self.index, rank, shares)
        source = PeerSource(self.content_id, holders, self._report)
        table = self.table if named else None
        shards = table.content_id if table else None
        result = await source.part(store, self.party.model.manifest, wants, shards=shards)
        assert loaded(store, table, self.index, part) == expected(self.path, self.index, part)
        return result

    def own_bytes(self, rank: int, shares: tuple[int, ...]) -> int:
        return shard_bytes(self.index, *rank_of(self.index, rank, shares))


@pytest.fixture
def group(tmp_path: Path) -> Group:
    return Group(tmp_path)


@pytest.mark.parametrize("shares", [(1, 1), (5, 2), (3, 2, 1), (1, 1, 6)], ids=str)
async def test_a_rank_fetches_its_shard_and_nothing_else(group: Group, shares: tuple[int, ...]) -> None:
    """To the byte, and after a restart nothing; the frame of a tile, and the table, come on top."""
    holder = group.party.holder("a")
    async with group.party.up():
        for rank in range(len(shares)):
            store = group.store(f"rank-{rank}")
            result = await group.fetch(store, rank, shares, holder)
            assert result.bytes_wanted == group.own_bytes(rank, shares)
            pieces = sum(result.chunks_by_peer.values())
            extra = len(group.table.encoded) + len(group.table.chunks) // 8 + 1000
            assert result.bytes_wanted < result.bytes_on_wire <= result.bytes_wanted + 9 * pieces + extra
            assert store.room.cached_bytes() == result.bytes_wanted + len(group.table.encoded)
            store.close()
            again = ModelStore(group.party.folder / f"rank-{rank}")
            assert await group.fetch(again, rank, shares, holder) == FetchResult()
            again.close()


@pytest.mark.parametrize("shares", [(1, 1), (7, 4), (4, 2, 1)], ids=str)
async def test_all_on_the_wire_is_the_shard_and_one_per_cent(tmp_path: Path, shares: tuple[int, ...]) -> None:
    """A layer of real shape and chunks of real size: table, manifest, frames and weights against the shard."""
    group = Group(tmp_path, REAL)
    holder = group.party.holder("a")
    async with group.party.up():
        for rank in range(len(shares)):
            store = group.store(f"rank-{rank}")
            result = await group.fetch(store, rank, shares, holder)
            on_wire = result.bytes_on_wire + len(group.party.model.manifest.encoded)
            ratio = on_wire / group.own_bytes(rank, shares)
            assert ratio <= 1.01
            store.close()


async def test_all_holders_serve_tiles_and_ranks_serve_ranks(group: Group) -> None:
    """A device that holds the model but never saw the table computes it; one with the same columns has those."""
    other = ModelStore(group.party.folder / "other")
    other.add_file(group.path)
    first = group.store("first")
    holders = [group.party.holder("a"), group.party.holder("b", store=other)]
    peer = group.party.holder("c", store=first)
    async with group.party.up():
        await group.fetch(first, 0, (1, 1), *holders)
        second = await group.fetch(group.store("second"), 0, (1, 1), *holders, peer)
        assert set(second.chunks_by_peer) == {"a", "b", "c"}
        alone = await group.fetch(group.store("third"), 0, (1, 1), peer)
        assert set(alone.chunks_by_peer) == {"c"}
        with pytest.raises(ModelIncomplete):
            await group.fetch(group.store("fourth"), 1, (1, 1), peer)
    assert group.reported == []


async def test_other_shares_fetch_only_what_is_new(group: Group) -> None:
    holder = group.party.holder("a")
    async with group.party.up():
        store = group.store("rank")
        await group.fetch(store, 0, (1, 1), holder)
        more = await group.fetch(store, 0, (6, 2), holder)
        assert more.bytes_wanted == group.own_bytes(0, (6, 2)) - group.own_bytes(0, (1, 1))
        assert await group.fetch(store, 0, (1, 1), holder) == FetchResult()
        assert store.collect() > 0, "the narrow strips lie in the wide ones"
        assert store.room.cached_bytes() == group.own_bytes(0, (6, 2)) + len(group.table.encoded)
        assert await group.fetch(store, 0, (1, 1), holder) == FetchResult()


async def test_a_narrower_share_reads_inside_a_wider_strip(group: Group) -> None:
    """The last rank's strips begin inside of lines, and what it needs later begins inside of the strips."""
    holder = group.party.holder("a")
    async with group.party.up():
        store = group.store("rank")
        await group.fetch(store, 1, (2, 6), holder)
        assert await group.fetch(store, 1, (6, 2), holder) == FetchResult()


async def test_a_liar_costs_time_and_is_noted(group: Group) -> None:
    def spoil(_sent: int, index: int, data: bytes) -> bytes:
        return chunk(index, bytes([data[0] ^ 1]) + data[1:])

    liar = group.party.holder("liar", Liar(group.party.origin, spoil))
    honest = group.party.holder("honest")
    async with group.party.up():
        result = await group.fetch(group.store("rank"), 1, (1, 1), liar, honest)
        assert set(result.chunks_by_peer) == {"honest"}
        assert ("liar", "blob_mismatch") in group.reported
        assert {peer for peer, _ in group.reported} == {"liar"}
        with pytest.raises(ModelIncomplete):
            await group.fetch(group.store("other"), 1, (1, 1), liar)


async def test_an_older_holder_gives_whole_chunks(group: Group) -> None:
    """One that does not know the question resets its stream: not noted, and no worse than before."""
    store = group.party.origin

    async def older(stream: Stream) -> None:
        server = BlobServer(store)
        while head := await stream.read(1):
            kind, size = blob.request_head(head + await stream.read_exactly(4))
            if kind == blob.GET_TILES:
                raise RemoteProtocolError(f"blob request of unknown kind {kind}")
            await server._answer(stream, blob.decode_request(kind, await stream.read_exactly(size)))

    holder = group.party.holder("old", older)
    async with group.party.up():
        rank = group.store("rank")
        result = await group.fetch(rank, 0, (1, 1), holder)
        plain = await group.fetch(group.store("plain"), 0, (1, 1), holder, named=False)
        assert plain.bytes_wanted > group.own_bytes(0, (1, 1))
        assert rank.room.cached_bytes() == plain.bytes_wanted + len(group.table.encoded)
        assert sum(result.chunks_by_peer.values()) == sum(plain.chunks_by_peer.values())
    assert group.reported == []


async def test_a_table_nobody_has_leaves_whole_chunks(group: Group) -> None:
    part, wants = rank_of(group.index, 0, (1, 1))
    false = build(group.party.model.manifest, bytes(len(group.table.digests)))
    source = PeerSource(group.content_id, [group.party.holder("a")], group._report)
    async with group.party.up():
        store = group.store("rank")
        await source.part(store, group.party.model.manifest, wants, shards=false.content_id)
        assert loaded(store, false, group.index, part) == expected(group.path, group.index, part)
    assert group.reported == []


async def test_a_false_table_of_a_head_spoils_nothing(group: Group) -> None:
    """No honest holder has bytes that fit it, and what a rank keeps under it is of no use to other orders."""
    false = build(group.party.model.manifest, bytes(len(group.table.digests)))
    head = ModelStore(group.party.folder / "head")
    head.add_manifest("toy", group.party.model.manifest)
    head.shards.add_table(false)
    holders = [group.party.holder("head", store=head), group.party.holder("a")]
    part, wants = rank_of(group.index, 0, (1, 1))
    async with group.party.up():
        store = group.store("rank")
        source = PeerSource(group.content_id, holders, group._report)
        await source.part(store, group.party.model.manifest, wants, shards=false.content_id)
        assert loaded(store, false, group.index, part) == expected(group.path, group.index, part)
    assert group.reported == [], "it is the head that lied, not who holds the model"


async def test_what_is_damaged_is_found_and_fetched_again(group: Group) -> None:
    origin, store = group.party.holder("a"), group.store("rank")
    rank = group.party.holder("rank", store=store)
    _, wants = rank_of(group.index, 0, (1, 1))
    async with group.party.up():
        await group.fetch(store, 0, (1, 1), origin)
        strip = store.shards.strip(group.table, next(want for want in wants if want.span))
        assert strip is not None
        with strip.path.open("r+b") as file:
            file.write(b"damage")
        result = await group.fetch(group.store("other"), 0, (1, 1), rank, origin)
        assert set(result.chunks_by_peer) == {"rank", "a"}
        again = await group.fetch(store, 0, (1, 1), origin)
        assert again.chunks_by_peer == {"a": 1}


async def test_a_device_with_the_whole_file_fetches_nothing(group: Group) -> None:
    store = ModelStore(group.party.folder / "whole")
    store.add_file(group.path)
    async with group.party.up():
        assert await group.fetch(store, 0, (1, 1)) == FetchResult()
    assert not (store.root / "data" / group.content_id / "shards").exists()
