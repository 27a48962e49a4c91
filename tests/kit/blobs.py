"""Holders of models on an in-memory network, honest and otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from p2pnode.models import blob
from p2pnode.models.blob_client import Holder
from p2pnode.models.serve import BlobServer
from p2pnode.models.store import ModelStore
from p2pnode.transport.memory import MemoryNetwork, MemoryTransport
from p2pnode.transport.port import Stream
from tests.kit.gguf_files import write_toy
from tests.kit.net import identity, running

Handler = Callable[[Stream], Awaitable[None]]


class Party:
    """One fetching node and any number of holders, connected in memory."""

    def __init__(self, folder: Path, model: Path | None = None) -> None:
        self.folder = folder
        self.network = MemoryNetwork(seed=7)
        self.fetcher = self.network.transport(identity("fetcher"))
        self.store = ModelStore(folder / "fetcher")
        self.origin = ModelStore(folder / "origin")
        self.model = self.origin.add_file(model or write_toy(folder / "toy.gguf"))
        self.servers: dict[str, BlobServer] = {}
        self._transports: list[MemoryTransport] = [self.fetcher]

    def holder(self, name: str, handler: Handler | None = None, *, store: ModelStore | None = None) -> Holder:
        """A peer that serves blobs with `handler`, or honestly from a store."""
        transport = self.network.transport(identity(name))
        if handler is None:
            self.servers[name] = BlobServer(store or self.origin)
            handler = self.servers[name].handle
        transport.handle(blob.PROTOCOL, handler)
        self._transports.append(transport)

        async def open_stream() -> Stream:
            connection = await self.fetcher.dial(transport.listen_multiaddrs, transport.peer_id)
            return await connection.open_stream(blob.PROTOCOL)

        return Holder(name, open_stream)

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        async with running(*self._transports):
            yield
        self.store.close()


class Liar:
    """Answers like an honest holder until the chunks: those go through `spoil(sent_before, index, data)`.

    `spoil` gives the frames to write instead, or None to stop answering for good.
    """

    def __init__(self, store: ModelStore, spoil: Callable[[int, int, bytes], bytes | None]) -> None:
        self.store = store
        self.spoil = spoil
        self.sent = 0

    async def __call__(self, stream: Stream) -> None:
        honest = BlobServer(self.store)
        while head := await stream.read(1):
            kind, size = blob.request_head(head + await stream.read_exactly(4))
            request = blob.decode_request(kind, await stream.read_exactly(size))
            if not isinstance(request, blob.GetChunks):
                await honest._answer(stream, request)
                continue
            for index in request.indexes():
                data = honest.pieces(request.digest)[1](index)
                frames = self.spoil(self.sent, index, data)
                if frames is None:
                    await asyncio.Event().wait()
                    return
                await stream.write(frames)
                self.sent += 1
            await stream.write(blob.frame(blob.END))


def chunk(index: int, data: bytes) -> bytes:
    return blob.chunk_head(index, len(data)) + data
