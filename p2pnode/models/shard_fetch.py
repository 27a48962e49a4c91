"""Fetching shards: a shard's tiles from several holders, each verified against the table that the head named."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from p2pnode import limits
from p2pnode.errors import BadModelFile, ModelIncomplete, ModelUnknown, P2PNodeError
from p2pnode.models import cid, shard_table
from p2pnode.models.blob_client import BlobClient, Holder, connect
from p2pnode.models.exchange import Fetch, FetchProgress, FetchResult, Report, tell
from p2pnode.models.manifest import Manifest, Want
from p2pnode.models.shard_store import ShardStore
from p2pnode.models.shard_table import ShardTable
from p2pnode.models.store import ModelStore
from p2pnode.units import ContentId


@dataclass(slots=True)
class ShardFetch:
    """What became of a fetch of tiles."""

    result: FetchResult
    left: list[Want]
    """To be fetched as whole chunks."""
    table: ShardTable | None = None
    given_up: list[Want] = field(default_factory=list)
    """What nobody gave; what came of it waits until the whole tensors are here."""


async def fetch_shard(
    manifest: Manifest,
    wants: Sequence[Want],
    table_id: ContentId,
    holders: Sequence[Holder],
    store: ModelStore,
    *,
    progress: FetchProgress | None = None,
    report: Report | None = None,
) -> ShardFetch:
    """Bring the wanted spans here as strips, but those of tensors that are here whole.

    Holders that do not know the question, or a table that cannot be had, leave the wants for whole chunks.
    """
    out = ShardFetch(FetchResult(), list(wants))
    thin = await asyncio.to_thread(store.shards.needed, manifest, wants)
    if not thin:
        return out
    out.table = await _table(manifest, table_id, holders, store.shards, out.result, report)
    if out.table is None:
        return out
    thin = [want for want in thin if want.tensor in out.table.grids]
    numbers = await asyncio.to_thread(store.shards.place, out.table, thin)
    fetch = Fetch(TileTarget(out.table, store.shards), holders, progress, report)
    try:
        await fetch.run(numbers)
    except ModelIncomplete:
        out.given_up = [want for want in thin if store.shards.strip(out.table, want) is None]
    fetch.result.bytes_on_wire += out.result.bytes_on_wire
    out.result = fetch.result
    out.left = [want for want in wants if want not in thin or want in out.given_up]
    return out


async def _table(
    manifest: Manifest,
    table_id: ContentId,
    holders: Sequence[Holder],
    store: ShardStore,
    result: FetchResult,
    report: Report | None,
) -> ShardTable | None:
    """From this disk, or from the first holder that has it."""
    digest = cid.to_digest(table_id)
    try:
        return await asyncio.to_thread(store.table, manifest.content_id, table_id)
    except (BadModelFile, ModelUnknown):
        pass
    for holder in holders:
        client: BlobClient | None = None
        try:
            client = await connect(holder)
            data = await client.manifest(digest=digest)
            await client.close()
        except (P2PNodeError, OSError) as error:
            tell(report, holder.peer, error)
            continue
        finally:
            if client is not None:
                result.bytes_on_wire += client.bytes_received
                client.abort()
        try:
            table = shard_table.decode(data, manifest)
        except BadModelFile:
            return None  # the holder gave what was named: it is the head that named nonsense
        await asyncio.to_thread(store.add_table, table)
        return table
    return None


class TileTarget:
    batch_max = limits.BLOB_BATCH_TILES

    def __init__(self, table: ShardTable, store: ShardStore) -> None:
        self._table, self._store = table, store
        self.digest = cid.to_digest(table.content_id)

    def size(self, index: int) -> int:
        return self._table.chunks[index].size

    async def held(self, client: BlobClient) -> bytes:
        return await client.tiles(cid.to_digest(self._table.manifest.content_id), self.digest)

    def missing(self, indexes: Iterable[int]) -> list[int]:
        return self._store.missing(self._table, indexes)

    def reserve(self, size: int) -> None:
        self._store.reserve(self._table, size)

    def write(self, index: int, data: memoryview) -> None:
        self._store.write(self._table, index, data)

    def flush(self) -> None:
        self._store.flush(self._table)
