"""Where models come from: a file, peers, or a hub. One port, so that a node asks all of them alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from p2pnode import limits
from p2pnode.errors import BlobMismatch, ModelIncomplete
from p2pnode.models.blob_client import Holder
from p2pnode.models.exchange import FetchResult, Report, fetch_manifest, fetch_part
from p2pnode.models.hub import Hub, RemoteFile
from p2pnode.models.hub_ref import HubReference
from p2pnode.models.importer import name_of
from p2pnode.models.manifest import Chunk, Manifest, Want
from p2pnode.models.shard_fetch import ShardFetch, fetch_shard
from p2pnode.models.store import ModelStore, StoredModel
from p2pnode.units import ContentId

Progress = Callable[[int, int], None]


class ModelSource(Protocol):
    """Brings a model, or a part of it, into a store."""

    async def whole(self, store: ModelStore, name: str, progress: Progress | None = None) -> StoredModel:
        """Everything, verified, under this name."""
        ...

    async def part(
        self, store: ModelStore, manifest: Manifest, wants: Sequence[Want], *, vocabulary: bool = False
    ) -> FetchResult:
        """Wanted bytes of a model whose manifest is in the store; only what is not there yet crosses a wire."""
        ...


class FileSource:
    """A GGUF file on this machine; nothing is copied."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def whole(
        self, store: ModelStore, name: str | None = None, progress: Progress | None = None
    ) -> StoredModel:
        """Without a name it gets the file's."""
        return await asyncio.to_thread(store.add_file, self.path, name, progress)

    async def part(
        self, store: ModelStore, manifest: Manifest, wants: Sequence[Want], *, vocabulary: bool = False
    ) -> FetchResult:
        found = await self.whole(store, name_of(self.path))
        if found.content_id != manifest.content_id:
            raise BlobMismatch(f"{self.path.name} is another model than the one asked for")
        await asyncio.to_thread(store.pieces, found.content_id, wants, vocabulary=vocabulary)
        return FetchResult()


class PeerSource:
    """Other devices of the mesh."""

    def __init__(
        self, content_id: ContentId, holders: Sequence[Holder], report: Report | None = None
    ) -> None:
        self.content_id = content_id
        self.holders = holders
        self.report = report

    async def whole(self, store: ModelStore, name: str, progress: Progress | None = None) -> StoredModel:
        manifest = await self.manifest(store, name)
        wants = [Want(tensor) for tensor in manifest.tensors]
        await self.part(store, manifest, wants, vocabulary=True, progress=progress)
        return await asyncio.to_thread(store.get, name)

    async def manifest(self, store: ModelStore, name: str) -> Manifest:
        """What the model consists of, registered under this name; its bytes may come later."""
        manifest = await fetch_manifest(self.content_id, self.holders, self.report)
        await asyncio.to_thread(store.add_manifest, name, manifest)
        return manifest

    async def part(
        self,
        store: ModelStore,
        manifest: Manifest,
        wants: Sequence[Want],
        *,
        vocabulary: bool = False,
        shards: ContentId | None = None,
        progress: Progress | None = None,
    ) -> FetchResult:
        """With a shard table that a head named, of tensors that shards are cut from only the wanted spans come."""
        found = ShardFetch(FetchResult(), list(wants))
        if shards is not None:
            found = await fetch_shard(
                manifest, wants, shards, self.holders, store, progress=progress, report=self.report
            )
        before = found.result.bytes_wanted
        result = await fetch_part(
            manifest,
            found.left,
            self.holders,
            store,
            vocabulary=vocabulary,
            progress=progress and (lambda done, total: progress(before + done, before + total)),
            report=self.report,
        )
        if found.table is not None and found.given_up:
            await asyncio.to_thread(store.shards.drop, found.table, found.given_up)
        return found.result.plus(result)


class HubSource:
    """A repository on a hub. Whole files are kept under the store's folder and imported from there."""

    def __init__(self, hub: Hub, reference: HubReference) -> None:
        self.hub = hub
        self.reference = reference

    async def whole(
        self, store: ModelStore, name: str | None = None, progress: Progress | None = None
    ) -> StoredModel:
        """Without a name it gets the file's."""
        try:
            return await asyncio.to_thread(self._whole, store, name, progress)
        except asyncio.CancelledError:
            self.hub.stop.set()  # the thread ends at its next piece; what came is kept
            raise

    def _whole(self, store: ModelStore, name: str | None, progress: Progress | None) -> StoredModel:
        files = self.hub.resolve(self.reference)
        store.room.check(sum(file.size for file in files))
        paths = self.hub.pull(files, store.pulled_folder(self.reference.repo), progress)
        return store.add_file(paths[0], name)

    async def part(
        self, store: ModelStore, manifest: Manifest, wants: Sequence[Want], *, vocabulary: bool = False
    ) -> FetchResult:
        return await asyncio.to_thread(
            self._part, store, manifest, manifest.chunks_for(wants, vocabulary=vocabulary)
        )

    def _part(self, store: ModelStore, manifest: Manifest, indexes: Sequence[int]) -> FetchResult:
        missing = store.missing(manifest.content_id, indexes)
        result = FetchResult(bytes_wanted=manifest.bytes_of(missing))
        if not missing:
            return result
        store.reserve(manifest.content_id, result.bytes_wanted)
        files = self.hub.resolve(self.reference)
        if [file.size for file in files] != [file.size for file in manifest.files]:
            raise ModelIncomplete(f"{self.reference.repo} has another model than the one asked for")
        try:
            for run in _runs([manifest.chunks[index] for index in missing]):
                self._fetch_run(store, manifest, files[run[0].file], run, result)
        finally:
            store.flush(manifest.content_id)
        return result

    def _fetch_run(
        self,
        store: ModelStore,
        manifest: Manifest,
        file: RemoteFile,
        run: Sequence[Chunk],
        result: FetchResult,
    ) -> None:
        start = run[0].offset
        data = memoryview(self.hub.read_range(file, start, run[-1].offset + run[-1].size - start))
        result.bytes_on_wire += len(data)
        for chunk in run:
            store.write_chunk(manifest.content_id, chunk.index, data[chunk.offset - start :][: chunk.size])
        result.chunks_by_peer["hub"] = result.chunks_by_peer.get("hub", 0) + len(run)


def _runs(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Chunks that lie together, but for padding, in ranges of a bounded size."""
    runs: list[list[Chunk]] = []
    for chunk in chunks:
        if runs:
            last, first = runs[-1][-1], runs[-1][0]
            gap = chunk.offset - (last.offset + last.size)
            fits = chunk.offset + chunk.size - first.offset <= limits.HUB_RANGE_BYTES
            if chunk.file == last.file and 0 <= gap <= limits.HUB_GAP_BYTES_MAX and fits:
                runs[-1].append(chunk)
                continue
        runs.append([chunk])
    return runs
