"""Whole models to a disk: from a file, from the mesh, from a hub; to this device, or to another that is asked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from p2pnode import limits
from p2pnode.errors import Forbidden, RemoteProtocolError
from p2pnode.models.hub import ENDPOINT_DEFAULT, Hub
from p2pnode.models.hub_ref import is_reference, parse
from p2pnode.models.manifest import Want
from p2pnode.models.source import HubSource
from p2pnode.models.store import StoredModel
from p2pnode.node.calls import ProgressCallback
from p2pnode.node.catalog import Catalog
from p2pnode.node.keyed_locks import KeyedLocks
from p2pnode.node.links import Links
from p2pnode.node.loading import Loads, Say
from p2pnode.node.mesh import Mesh
from p2pnode.units import ContentId, PeerId

Came = Callable[[StoredModel], Awaitable[None]]


class Pulling:
    def __init__(self, *, catalog: Catalog, links: Links, mesh: Mesh, transfers: Loads, came: Came) -> None:
        self._catalog = catalog
        self._links = links
        self._mesh = mesh
        self._transfers = transfers
        self._came = came
        self._locks: KeyedLocks[str] = KeyedLocks()
        links.serve("model.copy", self._serve_copy)

    async def pull(self, source: str) -> tuple[StoredModel, int]:
        """The model, complete on this disk, and the bytes that came over the wire for it."""
        with self._transfers.of(source) as say:
            if is_reference(source):
                pulled = await self._from_hub(source, say)
            else:
                known = await self._catalog.resolve_or_add(source)
                pulled = await self._from_mesh(known.content_id, known.name, (), say)
        await self._came(pulled[0])
        return pulled

    async def copy(self, name: str, device: PeerId) -> dict[str, Any]:
        """Another device fetches the model from whoever holds it; its progress is this node's news too."""
        model = self._catalog.resolve(name)
        where = self._links.name_of(device)
        wish = {"manifest": model.content_id, "name": model.name}
        with self._transfers.of(model.name) as say:
            answer = await self._links.call(
                device,
                "model.copy",
                wish,
                on_progress=lambda data: say({**data, "name": where}),
                timeout_s=limits.PREPARE_SILENCE_S_MAX,
            )
        return {**answer, "model": model.name, "peer": device, "name": where}

    async def _serve_copy(
        self, peer: PeerId, arguments: Mapping[str, Any], progress: ProgressCallback
    ) -> dict[str, Any]:
        """What `copy` asks of this device; a member that only asks questions may not fill disks."""
        if self._mesh.role_of(peer) == "client":
            raise Forbidden("a device that joined as a client cannot copy models to others")
        manifest, name = arguments.get("manifest"), arguments.get("name")
        if not isinstance(manifest, str) or not isinstance(name, str) or not 0 < len(name) <= 128:
            raise RemoteProtocolError("a wish to copy names a manifest and a model")
        with self._transfers.of(name) as say:

            def tell(data: dict[str, Any]) -> None:
                say(data)
                progress(data)

            model, fetched = await self._from_mesh(ContentId(manifest), name, (peer,), tell)
        await self._came(model)
        return {"manifest": model.content_id, "bytes_fetched": fetched, "size_bytes": model.manifest.size}

    async def _from_mesh(
        self, content_id: ContentId, name: str, extra_holders: tuple[str, ...], say: Say
    ) -> tuple[StoredModel, int]:
        catalog = self._catalog
        async with self._locks.hold(content_id):
            manifest = await catalog.manifest(content_id, name=name, extra_holders=extra_holders)
            result = await catalog.fetch(
                content_id,
                map(Want, manifest.tensors),
                vocabulary=True,
                extra_holders=extra_holders,
                on_progress=lambda done, total: say({"state": "fetching", "done": done, "total": total}),
            )
        return await asyncio.to_thread(catalog.store.get, content_id), result.bytes_on_wire

    async def _from_hub(self, source: str, say: Say) -> tuple[StoredModel, int]:
        hub = Hub(os.environ.get("HF_ENDPOINT", ENDPOINT_DEFAULT), token=os.environ.get("HF_TOKEN"))
        loop = asyncio.get_running_loop()
        reported = 0

        def progress(done: int, total: int) -> None:
            nonlocal reported
            reported = max(reported, done)
            loop.call_soon_threadsafe(say, {"state": "fetching", "done": done, "total": total})

        model = await HubSource(hub, parse(source)).whole(self._catalog.store, progress=progress)
        return model, reported
