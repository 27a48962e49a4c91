"""The asking side of `/p2pnode/blob/1`: wanted chunks from several holders at once, each one verified.

Holders take batches from one list of what is still missing; when the list is empty, those who are done ask
again for what slower ones still owe. A holder that lies is dropped at once and reported; its answers cost
time, never correctness, and never more memory than one chunk a holder.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

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
from p2pnode.models import blob, cid
from p2pnode.models import manifest as manifests
from p2pnode.models.manifest import Manifest, Want
from p2pnode.models.serve import BlobStream
from p2pnode.models.store import ModelStore
from p2pnode.units import ContentId


@dataclass(frozen=True, slots=True)
class Holder:
    """A peer that may have the model, and how to open a blob stream to it."""

    peer: str
    open_stream: Callable[[], Awaitable[BlobStream]]


@dataclass(slots=True)
class FetchResult:
    """What came over the wire in one fetch."""

    bytes_wanted: int = 0
    bytes_on_wire: int = 0
    """Payload bytes of this protocol received, duplicates and refused ones included."""
    chunks_by_peer: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    """Holders given up, with the reason."""


Report = Callable[[str, P2PNodeError], None]
"""Called with a holder and what it did wrong."""
FetchProgress = Callable[[int, int], None]


class BlobClient:
    """One stream to a holder; requests in sequence."""

    def __init__(self, stream: BlobStream) -> None:
        self._stream = stream
        self.bytes_received = 0
        self._is_closed = False

    async def manifest(self, *, digest: bytes = b"", name: str = "") -> bytes:
        """Manifest bytes; by digest they are checked, by name the caller must decide whether to trust the holder."""
        payload = await self._single(
            blob.GetManifest(digest, name), blob.MANIFEST, limits.BLOB_MANIFEST_TIMEOUT_S
        )
        if digest and cid.digest(payload) != digest:
            raise BlobMismatch("the manifest is not what its content id says")
        return payload

    async def have(self, digest: bytes) -> bytes:
        return await self._single(blob.GetHave(digest), blob.HAVE, limits.BLOB_FRAME_TIMEOUT_S)

    async def _single(self, request: blob.Request, kind: int, timeout_s: float) -> bytes:
        await self._ask(request)
        found, payload = await self._receive(timeout_s)
        if found != kind:
            raise RemoteProtocolError(f"blob reply of kind {found} where {kind} was due")
        await self._end()
        return payload

    async def chunks(
        self,
        digest: bytes,
        indexes: Sequence[int],
        sizes: Sequence[int],
        keep: Callable[[int, memoryview], Awaitable[None]],
    ) -> None:
        """Fetch chunks in the order asked; `keep` verifies and stores each."""
        await self._ask(blob.GetChunks(digest, blob.runs_of(indexes)))
        for index, size in zip(indexes, sizes, strict=True):
            kind, payload = await self._receive(limits.BLOB_FRAME_TIMEOUT_S, size_expected=size + 4)
            if kind != blob.CHUNK:
                raise RemoteProtocolError(f"blob reply of kind {kind} where a chunk was due")
            number, data = blob.decode_chunk(payload)
            if number != index:
                raise RemoteProtocolError(f"chunk {number} came where {index} was asked for")
            await keep(index, data)
        await self._end()

    async def close(self) -> None:
        await self._stream.close_write()
        self._is_closed = True

    def abort(self) -> None:
        """Stop both directions, unless `close` ended the stream in good order."""
        if not self._is_closed:
            self._stream.reset()

    async def _ask(self, request: blob.Request) -> None:
        async with _deadline(limits.BLOB_FRAME_TIMEOUT_S):
            await self._stream.write(blob.encode_request(request))

    async def _end(self) -> None:
        kind, _ = await self._receive(limits.BLOB_FRAME_TIMEOUT_S)
        if kind != blob.END:
            raise RemoteProtocolError(f"blob reply of kind {kind} after everything asked for had come")

    async def _receive(self, timeout_s: float, *, size_expected: int | None = None) -> tuple[int, bytes]:
        async with _deadline(timeout_s):
            kind, size = blob.reply_head(await self._stream.read_exactly(blob.FRAME_HEAD_BYTES))
            if kind == blob.CHUNK and size != size_expected:
                raise RemoteProtocolError(f"chunk frame of {size} bytes where {size_expected} were due")
            payload = await self._stream.read_exactly(size) if size else b""
        self.bytes_received += blob.FRAME_HEAD_BYTES + size
        if kind == blob.ERROR:
            code, message = blob.decode_error(payload)
            if code == ModelUnknown.code:
                raise ModelUnknown(f"the holder does not know this model: {message}")
            raise ModelIncomplete(f"the holder cannot give it: {message}", remote_code=code)
        return kind, payload


@contextlib.asynccontextmanager
async def _deadline(timeout_s: float) -> AsyncIterator[None]:
    """asyncio.timeout that raises PeerTimeout."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise PeerTimeout(f"no answer within {timeout_s:g} s") from error


async def fetch_manifest(
    content_id: ContentId, holders: Sequence[Holder], report: Report | None = None
) -> Manifest:
    """The manifest of a content id from the first holder that has it, checked."""
    digest = cid.to_digest(content_id)
    reasons: list[list[str]] = []
    for holder in holders:
        client: BlobClient | None = None
        try:
            client = await _connect(holder)
            found = manifests.decode(await client.manifest(digest=digest))
            await client.close()
            return found
        except (P2PNodeError, OSError) as error:
            if client is not None:
                client.abort()
            reasons.append([holder.peer, str(error)])
            _tell(report, holder.peer, error)
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
    fetch = _Fetch(manifest, holders, store, progress, report)
    return await fetch.run(manifest.chunks_for(wants, vocabulary=vocabulary))


async def _connect(holder: Holder) -> BlobClient:
    async with _deadline(limits.BLOB_FRAME_TIMEOUT_S):
        return BlobClient(await holder.open_stream())


def _tell(report: Report | None, peer: str, error: BaseException) -> None:
    if report is not None and isinstance(error, (RemoteProtocolError, BlobMismatch, BadModelFile)):
        report(peer, error)


class _Fetch:
    """State of one fetch; all of it touched by one event loop only."""

    def __init__(
        self,
        manifest: Manifest,
        holders: Sequence[Holder],
        store: ModelStore,
        progress: FetchProgress | None,
        report: Report | None,
    ) -> None:
        self.manifest = manifest
        self.content_id = manifest.content_id
        self.digest = cid.to_digest(manifest.content_id)
        self.holders = holders[: limits.BLOB_HOLDERS_MAX]
        self.store = store
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
        missing = await asyncio.to_thread(self.store.missing, self.content_id, indexes)
        self.result.bytes_wanted = self.manifest.bytes_of(missing)
        if not missing:
            return self.result
        await asyncio.to_thread(self.store.reserve, self.content_id, self.result.bytes_wanted)
        self.waiting = list(missing)
        try:
            await self._run_workers()
        finally:
            await asyncio.to_thread(self.store.flush, self.content_id)
        left = await asyncio.to_thread(self.store.missing, self.content_id, missing)
        if left:
            size = self.manifest.bytes_of(left)
            raise ModelIncomplete(
                f"{size / 1e6:.1f} MB of this model could not be fetched: {_asked(len(self.holders))} what is missing",
                hint="start a device that holds the model, or add the file on this one with --model",
                missing_bytes=size,
                tried=[[peer, reason] for peer, reason in self.result.dropped.items()],
            )
        return self.result

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
                client = await _connect(holder)
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
        _tell(self.report, holder.peer, error)

    def _is_finished(self) -> bool:
        return not self.waiting and not self.asked

    async def _drain(self, holder: Holder, client: BlobClient) -> None:
        bits = await client.have(self.digest)
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
            if len(batch) >= min(limits.BLOB_BATCH_CHUNKS, share) or size >= limits.BLOB_BATCH_BYTES:
                break
            if _has(bits, index):
                batch.append(index)
                size += self.manifest.chunks[index].size
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
            await asyncio.to_thread(self.store.write_chunk, self.content_id, index, data)
            if self.asked.pop(index, None) is None:
                return
            self.done_bytes += len(data)
            self.result.chunks_by_peer[holder.peer] = self.result.chunks_by_peer.get(holder.peer, 0) + 1
            if self.progress is not None:
                self.progress(self.done_bytes, self.result.bytes_wanted)
            if self._is_finished():
                self.finished.set()

        sizes = [self.manifest.chunks[index].size for index in batch]
        await client.chunks(self.digest, batch, sizes, keep)

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
