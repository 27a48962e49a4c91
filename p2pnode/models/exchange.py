"""The asking side of `/p2pnode/blob/1`: wanted chunks from several holders at once, each one verified.

Holders take batches from one list of what is still missing; when the list is empty, those who are done ask
again for what slower ones still owe. A holder that lies is dropped at once and reported; its answers cost
time, never correctness, and never more memory than one chunk a holder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from p2pnode import limits
from p2pnode.errors import (
    BadModelFile,
    BlobMismatch,
    ModelIncomplete,
    ModelUnknown,
    P2PNodeError,
    PeerTimeout,
    RemoteProtocolError,
    TransportError,
)
from p2pnode.models import cid
from p2pnode.models import manifest_codec as manifests
from p2pnode.models.blob_client import BlobClient, Holder, connect
from p2pnode.models.manifest import Manifest, Want
from p2pnode.models.store import ModelStore
from p2pnode.units import ContentId


@dataclass(slots=True)
class FetchResult:
    """What came over the wire in one fetch."""

    bytes_wanted: int = 0
    bytes_on_wire: int = 0
    """Payload bytes of this protocol received, duplicates and refused ones included."""
    chunks_by_peer: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    """Holders given up, with the reason."""

    def plus(self, other: FetchResult) -> FetchResult:
        chunks = dict(self.chunks_by_peer)
        for peer, count in other.chunks_by_peer.items():
            chunks[peer] = chunks.get(peer, 0) + count
        return FetchResult(
            self.bytes_wanted + other.bytes_wanted,
            self.bytes_on_wire + other.bytes_on_wire,
            chunks,
            self.dropped | other.dropped,
        )


Report = Callable[[str, P2PNodeError], None]
"""Called with a holder and what it did wrong."""
FetchProgress = Callable[[int, int], None]


async def fetch_manifest(
    content_id: ContentId, holders: Sequence[Holder], report: Report | None = None
) -> Manifest:
    """The manifest of a content id from the first holder that has it, checked."""
    digest = cid.to_digest(content_id)
    reasons: list[list[str]] = []
    for holder in holders:
        client: BlobClient | None = None
        try:
            client = await connect(holder)
            found = manifests.decode(await client.manifest(digest=digest))
            await client.close()
            return found
        except (P2PNodeError, OSError) as error:
            if client is not None:
                client.abort()
            reasons.append([holder.peer, str(error)])
            tell(report, holder.peer, error)
    raise ModelUnknown(f"nobody gave the manifest {content_id}", tried=reasons)


async def fetch_part(
    manifest: Manifest,
    wants: Sequence[Want],
    holders: Sequence[Holder],
    store: ModelStore,
    *,
    vocabulary: bool = False,
    progress: FetchProgress | None = None,
    report: Report | None = None,
) -> FetchResult:
    """Fetch what is not here yet of the wanted tensors; returns when all of it is verified and durable.

    The manifest must be in the store (`add_manifest`). Raises ModelIncomplete(missing_bytes, tried) when all
    holders together cannot give it; what came is kept for the next attempt.
    """
    here = ChunkTarget(manifest, store)
    fetch = Fetch(here, holders, progress, report)
    return await fetch.run(manifest.chunks_for(wants, vocabulary=vocabulary))


class Target(Protocol):
    """What a fetch brings the pieces of: chunks of a manifest, or tiles of a shard table."""

    @property
    def digest(self) -> bytes: ...
    @property
    def batch_max(self) -> int:
        """Pieces asked for at once."""
        ...

    def size(self, index: int) -> int: ...
    async def held(self, client: BlobClient) -> bytes:
        """One bit for each piece that the holder has."""
        ...

    def missing(self, indexes: Iterable[int]) -> list[int]: ...
    def reserve(self, size: int) -> None: ...
    def write(self, index: int, data: memoryview) -> None: ...
    def flush(self) -> None: ...


class ChunkTarget:
    batch_max = limits.BLOB_BATCH_CHUNKS

    def __init__(self, manifest: Manifest, store: ModelStore) -> None:
        self._manifest, self._store = manifest, store
        self._content_id = manifest.content_id
        self.digest = cid.to_digest(manifest.content_id)

    def size(self, index: int) -> int:
        return self._manifest.chunks[index].size

    async def held(self, client: BlobClient) -> bytes:
        return await client.have(self.digest)

    def missing(self, indexes: Iterable[int]) -> list[int]:
        return self._store.missing(self._content_id, indexes)

    def reserve(self, size: int) -> None:
        self._store.reserve(self._content_id, size)

    def write(self, index: int, data: memoryview) -> None:
        self._store.write_chunk(self._content_id, index, data)

    def flush(self) -> None:
        self._store.flush(self._content_id)


def tell(report: Report | None, peer: str, error: BaseException) -> None:
    if report is not None and isinstance(error, (RemoteProtocolError, BlobMismatch, BadModelFile)):
        report(peer, error)


class Fetch:
    """State of one fetch; all of it touched by one event loop only."""

    def __init__(
        self,
        target: Target,
        holders: Sequence[Holder],
        progress: FetchProgress | None,
        report: Report | None,
    ) -> None:
        self.target = target
        self.holders = holders[: limits.BLOB_HOLDERS_MAX]
        self.progress = progress
        self.report = report
        self.result = FetchResult()
        self.waiting: list[int] = []
        """Not asked of anybody now, ascending."""
        self.asked: dict[int, int] = {}
        """Asked and not here yet -> how many holders owe it."""
        self.done_bytes = 0
        self.changed = asyncio.Condition()
        self.finished = asyncio.Event()

    async def run(self, indexes: Sequence[int]) -> FetchResult:
        missing = await asyncio.to_thread(self.target.missing, indexes)
        self.result.bytes_wanted = self._bytes_of(missing)
        if not missing:
            return self.result
        await asyncio.to_thread(self.target.reserve, self.result.bytes_wanted)
        self.waiting = list(missing)
        try:
            await self._run_workers()
        finally:
            await asyncio.to_thread(self.target.flush)
        left = await asyncio.to_thread(self.target.missing, missing)
        if left:
            size = self._bytes_of(left)
            raise ModelIncomplete(
                f"{size / 1e6:.1f} MB of this model could not be fetched: {_asked(len(self.holders))} what is missing",
                hint="start a device that holds the model, or add the file on this one with --model",
                missing_bytes=size,
                tried=[[peer, reason] for peer, reason in self.result.dropped.items()],
            )
        return self.result

    def _bytes_of(self, indexes: Iterable[int]) -> int:
        return sum(map(self.target.size, indexes))

    async def _run_workers(self) -> None:
        """One worker a holder; whoever still waits for a slow one when all is here is stopped."""
        workers = {asyncio.create_task(self._work(holder)) for holder in self.holders}
        finished = asyncio.create_task(self.finished.wait())
        try:
            running = set(workers)
            while running and not finished.done():
                done, _ = await asyncio.wait({*running, finished}, return_when=asyncio.FIRST_COMPLETED)
                running -= done
                for task in done - {finished}:
                    task.result()
        finally:
            for task in (*workers, finished):
                task.cancel()
            await asyncio.gather(*workers, finished, return_exceptions=True)

    async def _work(self, holder: Holder) -> None:
        """Take batches until nothing is left that this holder can give."""
        failures = 0
        while failures < limits.BLOB_ATTEMPTS_MAX:
            before = self.result.chunks_by_peer.get(holder.peer, 0)
            client: BlobClient | None = None
            try:
                client = await connect(holder)
                await self._drain(holder, client)
                await client.close()
                return
            except (RemoteProtocolError, BlobMismatch) as error:
                self._drop(holder, error)
                return
            except (TransportError, OSError, ModelIncomplete, ModelUnknown) as error:
                has_progressed = self.result.chunks_by_peer.get(holder.peer, 0) > before
                failures = 1 if has_progressed else failures + 1
                if isinstance(error, (ModelUnknown, PeerTimeout)) or failures == limits.BLOB_ATTEMPTS_MAX:
                    self._drop(holder, error)
                    return
            finally:
                if client is not None:
                    self.result.bytes_on_wire += client.bytes_received
                    client.abort()

    def _drop(self, holder: Holder, error: Exception) -> None:
        self.result.dropped[holder.peer] = str(error)
        tell(self.report, holder.peer, error)

    def _is_finished(self) -> bool:
        return not self.waiting and not self.asked

    async def _drain(self, holder: Holder, client: BlobClient) -> None:
        bits = await self.target.held(client)
        patience_s = limits.BLOB_STEAL_AFTER_S
        clock = asyncio.get_running_loop().time
        is_patient = True
        while not self._is_finished():
            batch = self._take(bits) if is_patient else self._steal(bits)
            if not batch:
                if not self.asked:
                    return
                is_patient = await self._wait_for_change(patience_s)
                continue
            is_patient, started_s = True, clock()
            try:
                await self._fetch_batch(holder, client, batch)
            finally:
                await self._settle(batch)
            patience_s = max(limits.BLOB_STEAL_AFTER_S, 2 * (clock() - started_s))

    async def _wait_for_change(self, timeout_s: float) -> bool:
        """False when nothing changed for so long that another holder must be very slow."""
        try:
            async with asyncio.timeout(timeout_s), self.changed:
                await self.changed.wait()
        except TimeoutError:
            return False
        return True

    def _take(self, bits: bytes) -> list[int]:
        """The next batch for a holder with these chunks: smaller towards the end, so that all end together."""
        share = -(-len(self.waiting) // (2 * len(self.holders)))
        batch: list[int] = []
        size = 0
        for index in self.waiting:
            if len(batch) >= min(self.target.batch_max, share) or size >= limits.BLOB_BATCH_BYTES:
                break
            if _has(bits, index):
                batch.append(index)
                size += self.target.size(index)
        chosen = set(batch)
        self.waiting = [index for index in self.waiting if index not in chosen]
        self.asked |= dict.fromkeys(batch, 1)
        return batch

    def _steal(self, bits: bytes) -> list[int]:
        """One chunk that a slow holder owes, the one it would send last."""
        owed = [index for index, holders in self.asked.items() if holders == 1 and _has(bits, index)]
        if not owed:
            return []
        self.asked[max(owed)] = 2
        return [max(owed)]

    async def _fetch_batch(self, holder: Holder, client: BlobClient, batch: list[int]) -> None:
        async def keep(index: int, data: memoryview) -> None:
            await asyncio.to_thread(self.target.write, index, data)
            if self.asked.pop(index, None) is None:
                return
            self.done_bytes += len(data)
            self.result.chunks_by_peer[holder.peer] = self.result.chunks_by_peer.get(holder.peer, 0) + 1
            if self.progress is not None:
                self.progress(self.done_bytes, self.result.bytes_wanted)
            if self._is_finished():
                self.finished.set()

        sizes = [self.target.size(index) for index in batch]
        await client.chunks(self.target.digest, batch, sizes, keep)

    async def _settle(self, batch: list[int]) -> None:
        """Give back what a holder still owes of its batch, and wake those who wait for work."""
        for index in batch:
            owed = self.asked.get(index)
            if owed == 1:
                del self.asked[index]
                self.waiting.append(index)
            elif owed is not None:
                self.asked[index] = owed - 1
        self.waiting.sort()
        async with self.changed:
            self.changed.notify_all()


def _has(bits: bytes, index: int) -> bool:
    return index // 8 < len(bits) and bool(bits[index // 8] >> index % 8 & 1)


def _asked(count: int) -> str:
    """Who could have given it, as people say it."""
    if not count:
        return "no device that is reachable now has"
    return (
        "the one device that was asked has not" if count == 1 else f"{count} devices that were asked have not"
    )
