"""`store.json`: names, imported files, and the order of use. Small, replaced as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from p2pnode.errors import BadModelFile
from p2pnode.models import cid as content
from p2pnode.models.files import data_errors, write_atomic
from p2pnode.units import ContentId


class ImportedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file outside the store and how it looked when it was read."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> ImportedFile:
        try:
            found = path.stat()
        except OSError as error:
            reason = error.strerror or str(error)
            raise BadModelFile(
                f"cannot read {path}: {reason}", hint="check the path of the model file"
            ) from error
        return cls(str(path.absolute()), found.st_size, found.st_mtime_ns)

    def is_unchanged(self) -> bool:
        try:
            found = Path(self.path).stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    version: int = 1
    names: dict[str, str] = {}
    imports: dict[str, list[ImportedFile]] = {}
    used: list[str] = []


@dataclass(slots=True)
class StoreRecords:
    """In memory; `save` writes it."""

    path: Path
    names: dict[str, ContentId] = field(default_factory=dict)
    imports: dict[ContentId, list[ImportedFile]] = field(default_factory=dict)
    used: list[ContentId] = field(default_factory=list)
    """Least recently used first."""

    @classmethod
    def load(cls, path: Path) -> StoreRecords:
        """Read it; a damaged one is put aside, for everything in it can be found or fetched again."""
        records = cls(path)
        if not path.exists():
            return records
        with data_errors(path):
            data = path.read_bytes()
        try:
            found = msgspec.json.decode(data, type=_Content)
            for value in (*found.names.values(), *found.imports, *found.used):
                content.to_digest(ContentId(value))
        except (msgspec.DecodeError, msgspec.ValidationError, BadModelFile):
            with data_errors(path):
                path.replace(path.with_name(path.name + ".damaged"))
            return records
        records.names = {name: ContentId(value) for name, value in found.names.items()}
        records.imports = {ContentId(key): value for key, value in found.imports.items()}
        records.used = [ContentId(value) for value in found.used]
        return records

    def save(self) -> None:
        document = _Content(
            names=dict(self.names),
            imports={str(key): value for key, value in self.imports.items()},
            used=[c for c in self.used if c in self.names.values()],
        )
        write_atomic(self.path, msgspec.json.format(msgspec.json.encode(document), indent=1))

    def touch(self, content_id: ContentId) -> None:
        """Mark as used now."""
        if content_id in self.used:
            self.used.remove(content_id)
        self.used.append(content_id)

    def by_use(self) -> list[ContentId]:
        """Least recently used first; those never used before all others."""
        never = [value for value in dict.fromkeys(self.names.values()) if value not in self.used]
        return never + [value for value in self.used if value in self.names.values()]

    def import_of(self, stamps: list[ImportedFile]) -> ContentId | None:
        """Content id of files that were imported before and have not changed."""
        return next((key for key, value in self.imports.items() if value == stamps), None)
