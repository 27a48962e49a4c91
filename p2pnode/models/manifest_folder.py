"""Manifests on this disk, a file each, named by their content id. Not for several threads at once."""

from __future__ import annotations

from pathlib import Path

from p2pnode.errors import BadModelFile, ModelUnknown
from p2pnode.models import cid as content
from p2pnode.models import manifest_codec as manifests
from p2pnode.models.files import check_disk, data_errors, delete, write_atomic
from p2pnode.models.manifest import Manifest
from p2pnode.units import ContentId


class ManifestFolder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[ContentId, Manifest] = {}
        with data_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def get(self, content_id: ContentId) -> Manifest:
        """Checked against its id, so a damaged file is never believed; ModelUnknown, BadModelFile."""
        known = self._known.get(content_id)
        if known is None:
            path = self._folder / content.from_digest(content.to_digest(content_id))
            if not path.is_file():
                raise ModelUnknown(f"no manifest {content_id} on this device", model=content_id)
            with data_errors(path):
                data = path.read_bytes()
            if content.of(data) != content_id:
                raise BadModelFile(
                    f"manifest {content_id} is damaged on this disk",
                    hint="remove the model and add or fetch it again: p2pnode rm",
                )
            known = self._known[content_id] = manifests.decode(data)
        return known

    def has(self, content_id: ContentId) -> bool:
        """Whether it is here and whole."""
        try:
            self.get(content_id)
        except (BadModelFile, ModelUnknown):
            return False
        return True

    def keep(self, manifest: Manifest) -> None:
        """Written unless it is here already."""
        if not self.has(manifest.content_id):
            path = self._folder / manifest.content_id
            check_disk(self._folder, len(manifest.encoded))
            if path.is_dir():
                delete(path)
            write_atomic(path, manifest.encoded)
        self._known[manifest.content_id] = manifest

    def delete(self, content_id: ContentId) -> int:
        """Bytes freed."""
        self._known.pop(content_id, None)
        return delete(self._folder / content_id)
