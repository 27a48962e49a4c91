"""Whole models to this disk: from a file, from the mesh, or from a hub."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from p2pnode.models.hub import ENDPOINT_DEFAULT, Hub
from p2pnode.models.hub_ref import is_reference, parse
from p2pnode.models.store import StoredModel
from p2pnode.node.catalog import Catalog

Say = Callable[[dict[str, Any]], None]


class Pulling:
    def __init__(self, catalog: Catalog, say: Say) -> None:
        self._catalog = catalog
        self._say = say

    async def pull(self, source: str) -> tuple[StoredModel, int]:
        """The model, complete on this disk, and the bytes that came over the wire for it."""
        if is_reference(source):
            return await self._from_hub(source)
        model = await self._catalog.resolve_or_add(source)
        manifest = await self._catalog.manifest(model.content_id, name=model.name)
        result = await self._catalog.fetch(
            model.content_id,
            manifest.tensors,
            vocabulary=True,
            on_progress=lambda done, total: self._tell(model.name, done, total),
        )
        return await asyncio.to_thread(self._catalog.store.get, model.name), result.bytes_on_wire

    async def _from_hub(self, source: str) -> tuple[StoredModel, int]:
        hub = Hub(os.environ.get("HF_ENDPOINT", ENDPOINT_DEFAULT), token=os.environ.get("HF_TOKEN"))
        reference = parse(source)
        loop = asyncio.get_running_loop()
        reported = 0

        def progress(done: int, total: int) -> None:
            nonlocal reported
            reported = max(reported, done)
            loop.call_soon_threadsafe(self._tell, source, done, total)

        try:
            files = await asyncio.to_thread(hub.resolve, reference)
            store = self._catalog.store
            folder = store.pulled_folder(reference.repo)
            await asyncio.to_thread(store.check_room, sum(file.size for file in files))
            paths = await asyncio.to_thread(hub.pull, files, folder, progress)
        except asyncio.CancelledError:
            hub.stop.set()  # the thread ends at its next piece; what came is kept
            raise
        return await asyncio.to_thread(self._catalog.store.add_file, paths[0]), reported

    def _tell(self, name: str, done: int, total: int) -> None:
        self._say({"kind": "pull", "data": {"model": name, "done_bytes": done, "total_bytes": total}})
