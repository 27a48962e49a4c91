"""One stream of `/p2pnode/blob/1` to a holder: requests in sequence, answers checked against what was asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from p2pnode import limits
from p2pnode.errors import BlobMismatch, ModelIncomplete, ModelUnknown, PeerTimeout, RemoteProtocolError
from p2pnode.models import blob, cid
from p2pnode.models.serve import BlobStream


@dataclass(frozen=True, slots=True)
class Holder:
    """A peer that may have the model, and how to open a blob stream to it."""

    peer: str
    open_stream: Callable[[], Awaitable[BlobStream]]


async def connect(holder: Holder) -> BlobClient:
    async with _deadline(limits.BLOB_FRAME_TIMEOUT_S):
        return BlobClient(await holder.open_stream())


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

    async def tiles(self, model: bytes, table: bytes) -> bytes:
        """Which tiles of a shard table the holder has; one that has the model may have to compute it first."""
        return await self._single(blob.GetTiles(model, table), blob.HAVE, limits.BLOB_MANIFEST_TIMEOUT_S)

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
