"""The giving side of `/p2pnode/blob/1`: answers what is asked, verified, rate-limited, never more."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from p2pnode import limits
from p2pnode.errors import Busy, ModelError, P2PNodeError, RemoteProtocolError
from p2pnode.models import blob, cid
from p2pnode.models.manifest import Manifest
from p2pnode.models.rate import RateLimit
from p2pnode.models.shard_table import ShardTable
from p2pnode.models.store import ModelStore


class BlobStream(Protocol):
    """What this protocol needs of a stream; the transport's `Stream` fits."""

    async def write(self, *chunks: bytes | bytearray | memoryview) -> None: ...
    async def read(self, size_max: int) -> bytes: ...
    async def read_exactly(self, size: int) -> bytes: ...
    async def close_write(self) -> None: ...
    def reset(self, code: int = 0) -> None: ...


@dataclass(slots=True)
class ServeCounters:
    """Since start; bytes are payload bytes of this protocol on the wire."""

    requests: int = 0
    chunks: int = 0
    bytes_sent: int = 0
    refused: int = 0


class BlobServer:
    """Serves one store to any number of admitted peers."""

    def __init__(self, store: ModelStore, *, rate: RateLimit | None = None) -> None:
        self.store = store
        self.rate = rate
        self.counters = ServeCounters()
        self._open_count = 0

    async def handle(self, stream: BlobStream) -> None:
        """Serve one stream until the peer closes it; returns or raises, the caller owns the stream's end."""
        if self._open_count >= limits.BLOB_STREAMS_SERVED_MAX:
            self.counters.refused += 1
            await self._refuse(stream, Busy("this device serves as many model transfers as it may"))
            return
        self._open_count += 1
        try:
            while await self._serve_one(stream):
                pass
        finally:
            self._open_count -= 1

    async def _serve_one(self, stream: BlobStream) -> bool:
        """Answer one request; False when there is none any more."""
        async with asyncio.timeout(limits.BLOB_IDLE_TIMEOUT_S):
            first = await stream.read(1)
            if not first:
                return False
            kind, size = blob.request_head(first + await stream.read_exactly(blob.FRAME_HEAD_BYTES - 1))
            payload = await stream.read_exactly(size) if size else b""
        self.counters.requests += 1
        try:
            await self._answer(stream, blob.decode_request(kind, payload))
        except ModelError as error:
            await self._refuse(stream, error)
        return True

    async def _answer(self, stream: BlobStream, request: blob.Request) -> None:
        if isinstance(request, blob.GetManifest):
            manifest = await asyncio.to_thread(self._manifest, request.digest, request.name)
            await self._send(stream, blob.frame(blob.MANIFEST, manifest))
        elif isinstance(request, blob.GetHave):
            bits = await asyncio.to_thread(self.store.have, cid.from_digest(request.digest))
            await self._send(stream, blob.frame(blob.HAVE, bits))
        elif isinstance(request, blob.GetTiles):
            bits = await asyncio.to_thread(self._tiles, request)
            await self._send(stream, blob.frame(blob.HAVE, bits))
        else:
            await self._send_chunks(stream, request)
        await self._send(stream, blob.frame(blob.END))

    def _manifest(self, digest: bytes, name: str) -> bytes:
        if not digest:
            return self.store.get(name).manifest.encoded
        return self._named(digest).encoded

    def _named(self, digest: bytes) -> Manifest | ShardTable:
        """What has this content id; ModelUnknown."""
        content_id = cid.from_digest(digest)
        table = None if self.store.has_manifest(content_id) else self.store.shards.find(content_id)
        return self.store.manifest(content_id) if table is None else table

    def _tiles(self, request: blob.GetTiles) -> bytes:
        shards = self.store.shards
        return shards.have(shards.named(cid.from_digest(request.model), cid.from_digest(request.table)))

    def pieces(self, digest: bytes) -> tuple[int, Callable[[int], bytes]]:
        """How many chunks, or tiles, what has this digest consists of, and how to read one, verified."""
        found = self._named(digest)
        if isinstance(found, ShardTable):
            return len(found.chunks), functools.partial(self.store.shards.read, found)
        return len(found.chunks), functools.partial(self.store.read_chunk, found.content_id)

    async def _send_chunks(self, stream: BlobStream, request: blob.GetChunks) -> None:
        count, read = await asyncio.to_thread(self.pieces, request.digest)
        last_first, last_count = request.runs[-1]
        if last_first + last_count > count:
            raise RemoteProtocolError(
                f"chunk {last_first + last_count - 1} was asked of a model with {count}"
            )
        for index in request.indexes():
            data = await asyncio.to_thread(read, index)
            await self._send(stream, blob.chunk_head(index, len(data)), data)
            self.counters.chunks += 1

    async def _send(self, stream: BlobStream, *parts: bytes) -> None:
        size = sum(len(part) for part in parts)
        if self.rate is not None:
            await self.rate.take(size)
        async with asyncio.timeout(limits.BLOB_IDLE_TIMEOUT_S):
            await stream.write(*parts)
        self.counters.bytes_sent += size

    async def _refuse(self, stream: BlobStream, error: P2PNodeError) -> None:
        await self._send(stream, blob.encode_error(error.code, error.message))
