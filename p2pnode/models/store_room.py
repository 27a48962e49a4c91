"""Room for models on this disk: the quota, what counts towards it, and which models go to make room for others."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from p2pnode.errors import DiskFull
from p2pnode.models.files import check_disk
from p2pnode.models.records import StoreRecords
from p2pnode.units import ContentId


class Cached(Protocol):
    """What is needed of the store."""

    @property
    def root(self) -> Path: ...
    @property
    def lock(self) -> threading.RLock: ...
    def bytes_here(self, content_id: ContentId) -> int: ...
    def drop(self, content_id: ContentId) -> int: ...


class StoreRoom:
    """Safe to use from several threads."""

    def __init__(self, store: Cached, records: StoreRecords, *, quota_bytes: int | None) -> None:
        self._store = store
        self._records = records
        self.quota_bytes = quota_bytes
        self._pinned: frozenset[ContentId] = frozenset()

    def reserve(self, content_id: ContentId, size: int) -> None:
        """Make room for fetched bytes: drop least recently used cached models, or DiskFull with numbers."""
        with self._store.lock:
            self._records.touch(content_id)
            self._records.save()
            if self.quota_bytes is not None:
                self._make_room(content_id, size, self.quota_bytes)
            check_disk(self._store.root, size)

    def check(self, size: int) -> None:
        """DiskFull unless so many bytes may be written here."""
        with self._store.lock:
            if self.quota_bytes is not None and self.stored_bytes() + size > self.quota_bytes:
                raise DiskFull(
                    f"{size} more bytes do not fit into a store of {self.quota_bytes}",
                    hint="raise the disk quota or remove a model: p2pnode rm",
                    needed_bytes=size,
                    quota_bytes=self.quota_bytes,
                )
            check_disk(self._store.root, size)

    def _make_room(self, content_id: ContentId, size: int, quota: int) -> None:
        used = self.cached_bytes()
        own = self._store.bytes_here(content_id)
        if own + size > quota:
            raise DiskFull(
                f"this model needs {own + size} bytes here, the store may hold {quota}",
                hint="raise the disk quota or plan fewer layers for this device",
                needed_bytes=own + size,
                quota_bytes=quota,
            )
        for candidate in self._records.by_use():
            if used + size <= quota:
                return
            if candidate != content_id and candidate not in self._pinned:
                used -= self._store.bytes_here(candidate)
                for name in [label for label, value in self._records.names.items() if value == candidate]:
                    del self._records.names[name]
                self._store.drop(candidate)
                self._records.save()
        if used + size > quota:
            raise DiskFull(
                f"{size} more bytes do not fit: {used} of {quota} are in use by models that are loaded",
                hint="raise the disk quota or remove a model: p2pnode rm",
                needed_bytes=size,
                quota_bytes=quota,
            )

    def pin(self, content_ids: Iterable[ContentId]) -> None:
        """Models in use: never dropped to make room."""
        self._pinned = frozenset(content_ids)

    def cached_bytes(self) -> int:
        """Bytes fetched into this store, all models together."""
        with self._store.lock:
            return sum(map(self._store.bytes_here, set(self._records.names.values())))

    def stored_bytes(self) -> int:
        """Bytes on this disk that belong to the store: fetched chunks and files pulled from a hub."""
        pulled = self._store.root / "pulled"
        files = (
            sum(path.stat().st_size for path in pulled.rglob("*") if path.is_file()) if pulled.is_dir() else 0
        )
        return self.cached_bytes() + files
