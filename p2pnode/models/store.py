"""The model store: what this node holds, by name and by content.

A model comes from files that stay where they are, or from peers into sparse files whose offsets equal those
of the original. Either way `paths()` gives files on which the byte ranges of the manifest hold, so that
nobody else needs to know the difference.

Layout under the root: `store.json` (names, imports), `manifests/<cid>`, `data/<cid>/*.gguf` and
`data/<cid>/have` (one bit a chunk, written after the chunk is durable), `data/<cid>/shards/` (see
`shard_store`), `pulled/` (whole files from a hub).
Methods block; call them from a thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from p2pnode.errors import BadModelFile, BlobMismatch, ModelIncomplete, ModelUnknown
from p2pnode.models import cid as content
from p2pnode.models import importer
from p2pnode.models import manifest_codec as manifests
from p2pnode.models.cache import ChunkCache
from p2pnode.models.files import data_errors, delete
from p2pnode.models.manifest import NO_LAYER, Manifest, Want
from p2pnode.models.manifest_folder import ManifestFolder
from p2pnode.models.records import ImportedFile, StoreRecords
from p2pnode.models.shard_store import ShardStore
from p2pnode.models.store_room import StoreRoom
from p2pnode.models.stored import DEMO_NAME, Holdings, Piece, Progress, StoredModel, check_name
from p2pnode.units import ContentId

__all__ = ["DEMO_NAME", "Holdings", "ModelStore", "Piece", "Progress", "StoredModel"]


class ModelStore:
    """Names, imports and the chunk cache of one data folder; safe to use from several threads."""

    def __init__(self, root: Path, *, quota_bytes: int | None = None) -> None:
        self.root = root
        self._lock = self.lock = threading.RLock()
        self.shards = ShardStore(self)
        self._caches: dict[ContentId, ChunkCache] = {}
        with data_errors(root):
            (root / "data").mkdir(parents=True, exist_ok=True)
        self._manifests = ManifestFolder(root / "manifests")
        self._records = StoreRecords.load(root / "store.json")
        self.room = StoreRoom(self, self._records, quota_bytes=quota_bytes)

    # --- names -------------------------------------------------------------------------------------
    def models(self) -> list[StoredModel]:
        """Every model, by name; entries whose manifest is damaged are left out."""
        found = []
        with self._lock:
            for name in sorted(self._records.names):
                with contextlib.suppress(BadModelFile, ModelUnknown):
                    found.append(self.get(name))
        return found

    def get(self, name: str) -> StoredModel:
        """By name or content id; ModelUnknown."""
        with self._lock:
            content_id, name = self._named(name)
            manifest = self.manifest(content_id)
            imported = self.imported_paths(content_id) is not None
            have = manifest.size if imported else self._cache(content_id).have_bytes
            return StoredModel(name, content_id, manifest, imported, have)

    def _named(self, name: str) -> tuple[ContentId, str]:
        """Content id and name, by one of them; ModelUnknown."""
        names = self._records.names
        if name in names:
            return names[name], name
        for label, content_id in names.items():
            if content_id == name:
                return content_id, label
        raise ModelUnknown(f"no model named {name!r} on this device", model=name)

    def manifest(self, content_id: ContentId) -> Manifest:
        """The manifest of a content id; checked against it, so a damaged file is never believed."""
        with self._lock:
            return self._manifests.get(content_id)

    def has_manifest(self, content_id: ContentId) -> bool:
        """Whether it is here and whole."""
        with self._lock:
            return self._manifests.has(content_id)

    # --- adding ------------------------------------------------------------------------------------
    def add_file(self, path: Path, name: str | None = None, progress: Progress | None = None) -> StoredModel:
        """Import a GGUF file (any part of a split one) without copying it; quick when it is known and unchanged."""
        paths = importer.split_paths(path)
        label = check_name(name or importer.name_of(path))
        stamps = [ImportedFile.of(part) for part in paths]
        with self._lock:
            known = self._records.import_of(stamps)
        if known is None or not self.has_manifest(known):
            manifest = importer.read_manifest(paths, progress)
            if [ImportedFile.of(part) for part in paths] != stamps:
                raise BadModelFile(
                    f"{path} changed while it was read", hint="add it again when it is complete"
                )
            known = manifest.content_id
            with self._lock:
                self._manifests.keep(manifest)
                self._records.imports[known] = stamps
        with self._lock:
            self._records.names[label] = known
            self._records.save()
            return self.get(label)

    def add_demo(self, path: Path) -> StoredModel:
        """Make sure that the embedded model is there under its name."""
        return self.add_file(path, DEMO_NAME)

    def add_manifest(self, name: str, data: bytes | Manifest) -> StoredModel:
        """Register a model to be fetched; takes manifest bytes from a peer."""
        manifest = data if isinstance(data, Manifest) else manifests.decode(data)
        label = check_name(name)
        with self._lock:
            self._manifests.keep(manifest)
            self._records.names[label] = manifest.content_id
            self._records.touch(manifest.content_id)
            self._records.save()
            return self.get(label)

    # --- removing ----------------------------------------------------------------------------------
    def remove(self, name: str) -> int:
        """Forget a name; bytes freed. Imported files are never deleted."""
        with self._lock:
            content_id, label = self._named(name)
            del self._records.names[label]
            freed = 0
            if content_id not in self._records.names.values():
                freed = self.drop(content_id)
                freed += self._drop_pulled(content_id)
                self._records.imports.pop(content_id, None)
            self._records.save()
            return freed

    def _drop_pulled(self, content_id: ContentId) -> int:
        """Delete imported files that this store fetched itself; all others are left alone."""
        pulled = self.root.absolute() / "pulled"
        paths = [Path(stamp.path) for stamp in self._records.imports.get(content_id, [])]
        return sum(delete(path) for path in paths if path.is_relative_to(pulled))

    def collect(self) -> int:
        """Delete data and manifests that no name refers to (after a crash); bytes freed."""
        freed = 0
        with self._lock:
            used = set(self._records.names.values())
            for folder in ("data", "manifests"):
                for entry in (self.root / folder).iterdir():
                    if entry.name not in used:
                        freed += delete(entry)
            freed += sum(self.shards.tidy(value) for value in used if self.has_manifest(value))
        return freed

    def drop(self, content_id: ContentId) -> int:
        """Delete what was fetched of a model, and its manifest; bytes freed. Names and imports stay as they are."""
        cache = self._caches.pop(content_id, None)
        if cache is not None:
            cache.close()
        self.shards.forget_model(content_id)
        return delete(self.root / "data" / content_id) + self._manifests.delete(content_id)

    # --- reading -----------------------------------------------------------------------------------
    def imported_paths(self, content_id: ContentId) -> tuple[Path, ...] | None:
        """Original files, if there are some and none has changed since."""
        stamps = self._records.imports.get(content_id)
        if stamps and all(stamp.is_unchanged() for stamp in stamps):
            return tuple(Path(stamp.path) for stamp in stamps)
        return None

    def lost_file(self, content_id: ContentId) -> Path | None:
        """An original file that is not there any more as it was imported."""
        stamps = self._records.imports.get(content_id, [])
        return next((Path(stamp.path) for stamp in stamps if not stamp.is_unchanged()), None)

    def paths(self, content_id: ContentId) -> tuple[Path, ...]:
        """One path per file of the manifest; offsets in them equal the original's. Valid GGUF headers, slim unless
        the vocabulary was fetched; tensors that were not fetched are holes."""
        with self._lock:
            return self.imported_paths(content_id) or self._cache(content_id).paths

    def missing(self, content_id: ContentId, indexes: Iterable[int]) -> list[int]:
        """Those chunks that are not on this disk."""
        with self._lock:
            if self.imported_paths(content_id) is not None:
                return []
            cache = self._cache(content_id)
            return [index for index in indexes if not cache.has(index)]

    def holdings(self, content_id: ContentId) -> Holdings:
        """Whole layers on this disk, for the planner and for peers."""
        manifest = self.manifest(content_id)
        by_layer = manifest.chunks_by_layer
        with self._lock:
            if self.imported_paths(content_id) is not None:
                there = set(by_layer)
            else:
                cache = self._cache(content_id)
                there = {layer for layer, chunks in by_layer.items() if all(map(cache.has, chunks))}
        ranges: list[tuple[int, int]] = []
        for layer in sorted(there - {NO_LAYER}):
            if ranges and ranges[-1][1] == layer:
                ranges[-1] = (ranges[-1][0], layer + 1)
            else:
                ranges.append((layer, layer + 1))
        return Holdings(tuple(ranges), NO_LAYER in there)

    def have(self, content_id: ContentId) -> bytes:
        """One bit a chunk, least significant first."""
        with self._lock:
            if self.imported_paths(content_id) is not None:
                count = len(self.manifest(content_id).chunks)
                return ((1 << count) - 1).to_bytes(-(-count // 8), "little")
            return self._cache(content_id).bits()

    def pieces(
        self, content_id: ContentId, wants: Sequence[Want], *, vocabulary: bool = False
    ) -> list[Piece]:
        """Places of the wanted bytes, one for each want; ModelIncomplete(missing_bytes) when some are not here."""
        manifest = self.manifest(content_id)
        lacking = self.missing(content_id, manifest.chunks_for(wants, vocabulary=vocabulary))
        if lacking:
            size = manifest.bytes_of(lacking)
            raise ModelIncomplete(
                f"{size} bytes of this model are not on this device yet",
                hint="fetch them from a peer with: p2pnode pull",
                missing_bytes=size,
            )
        paths = self.paths(content_id)
        result = []
        for want in wants:
            entry = manifest.tensors[want.tensor]
            end = entry.size if want.end is None else want.end
            result.append(Piece(paths[entry.file], entry.offset + want.first, end - want.first))
        return result

    def read_chunk(self, content_id: ContentId, index: int) -> bytes:
        """One chunk, verified; BlobMismatch when the disk has other bytes (the chunk is then forgotten)."""
        chunk = self.manifest(content_id).chunks[index]
        with self._lock:
            imported = self.imported_paths(content_id)
            cache = None if imported else self._cache(content_id)
            if cache is not None and not cache.has(index):
                raise ModelIncomplete(f"chunk {index} is not on this device", missing_bytes=chunk.size)
            path = (imported or self._cache(content_id).paths)[chunk.file]
        with data_errors(path), path.open("rb") as file:
            file.seek(chunk.offset)
            data = file.read(chunk.size)
        if content.digest(data) != chunk.digest:
            with self._lock:
                if cache is not None:
                    cache.forget(index)
                else:
                    self._records.imports.pop(content_id, None)
                    self._records.save()
            raise BlobMismatch(
                f"chunk {index} of {content_id} is damaged on this disk", index=index, path=str(path)
            )
        return data

    def verify(self, content_id: ContentId, progress: Progress | None = None) -> list[int]:
        """Read everything that is here again; the damaged chunks, which are forgotten."""
        manifest = self.manifest(content_id)
        damaged: list[int] = []
        lacking = set(self.missing(content_id, range(len(manifest.chunks))))
        present = [chunk for chunk in manifest.chunks if chunk.index not in lacking]
        total, done = sum(chunk.size for chunk in present), 0
        for chunk in present:
            try:
                self.read_chunk(content_id, chunk.index)
            except (BlobMismatch, ModelIncomplete):
                damaged.append(chunk.index)
            done += chunk.size
            if progress is not None:
                progress(done, total)
        return damaged

    # --- writing -----------------------------------------------------------------------------------
    def reserve(self, content_id: ContentId, size: int) -> None:
        """Make room for fetched bytes of a model: `StoreRoom.reserve`."""
        self.room.reserve(content_id, size)

    def write_chunk(self, content_id: ContentId, index: int, data: bytes | memoryview) -> None:
        """Keep one fetched chunk; BlobMismatch unless it is exactly the chunk asked for."""
        chunk = self.manifest(content_id).chunks[index]
        if len(data) != chunk.size or content.digest(data) != chunk.digest:
            raise BlobMismatch(f"chunk {index} of {content_id} is not what its content id says", index=index)
        with self._lock:
            self._cache(content_id).write(chunk, data)

    def flush(self, content_id: ContentId) -> None:
        """Make written chunks durable and remember that they are here."""
        with self._lock:
            if self.imported_paths(content_id) is None:
                self._cache(content_id).flush()

    def bytes_here(self, content_id: ContentId) -> int:
        """Bytes fetched into this store for one model; 0 where its manifest is damaged."""
        if not self.has_manifest(content_id):
            return 0
        return self._cache(content_id).have_bytes + self.shards.bytes_of(content_id)

    def pulled_folder(self, repo: str) -> Path:
        """Where files from a hub are kept; they belong to the store and go with the model."""
        return self.root / "pulled" / repo.replace("/", "--")

    def close(self) -> None:
        with self._lock:
            for cache in self._caches.values():
                cache.close()
            self._caches.clear()

    def _cache(self, content_id: ContentId) -> ChunkCache:
        cache = self._caches.get(content_id)
        if cache is None:
            cache = ChunkCache(self.root / "data" / content_id, self.manifest(content_id))
            self._caches[content_id] = cache
        return cache
