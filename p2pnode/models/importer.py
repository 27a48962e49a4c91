"""Read GGUF files into a manifest: header, outline, and one digest per chunk."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from p2pnode import limits
from p2pnode.errors import BadModelFile
from p2pnode.models import cid
from p2pnode.models.header import HeaderTruncated, Outline, outline
from p2pnode.models.manifest import Manifest, ManifestFile, chunk_extents
from p2pnode.models.manifest_codec import build, manifest_file

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_HEADER_FIRST_BYTES = 256 * 1024
_HINT = "the file is not complete; download or copy it again"


def name_of(path: Path) -> str:
    """Model name of a file: its stem without the numbers of a split."""
    match = _SPLIT.fullmatch(path.name)
    stem = match["stem"] if match else path.name.removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._:+@-]+", "-", stem).strip("-._:+@") or "model"


def split_paths(path: Path) -> list[Path]:
    """All files of a model, given any of them; BadModelFile when one is missing."""
    match = _SPLIT.fullmatch(path.name)
    if not path.is_file():
        raise BadModelFile(f"there is no file {path}", hint="check the path of the model file")
    if match is None:
        return [path]
    count = int(match["count"])
    if not 0 < count <= limits.MODEL_FILES_MAX:
        raise BadModelFile(f"{path.name} claims {count} parts")
    parts = [
        path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)
    ]
    for part in parts:
        if not part.is_file():
            raise BadModelFile(
                f"part {part.name} of this model is missing", hint="all parts must be in one folder"
            )
    return parts


def read_header(file: BinaryIO, size: int) -> tuple[bytes, Outline]:
    """Header bytes (padding included) and their outline; BadModelFile for anything damaged or cut short."""
    take = _HEADER_FIRST_BYTES
    while True:
        file.seek(0)
        data = file.read(min(take, size, limits.HEADER_BYTES_MAX))
        try:
            found = outline(data)
        except HeaderTruncated:
            if len(data) >= min(size, limits.HEADER_BYTES_MAX):
                raise
            take *= 4
            continue
        break
    if found.data_end > size or found.size > size:
        raise BadModelFile(
            f"file has {size} bytes, its tensors need {max(found.data_end, found.size)}", hint=_HINT
        )
    file.seek(0)
    return file.read(found.size), found


def read_file(path: Path, report: Callable[[int], None]) -> ManifestFile:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            header, found = read_header(file, size)
            digests = []
            for offset, length in chunk_extents(found):
                file.seek(offset)
                data = file.read(length)
                if len(data) != length:
                    raise BadModelFile(f"{path} became shorter while it was read", hint=_HINT)
                digests.append(cid.digest(data))
                report(length)
    except OSError as error:
        raise BadModelFile(f"cannot read {path}: {error.strerror or error}") from error
    except BadModelFile as error:
        raise BadModelFile(f"{path.name}: {error.message}", hint=error.hint, path=str(path)) from error
    return manifest_file(header, size, digests)


def read_manifest(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Manifest of complete files; reads every byte once."""
    total, done = sum(path.stat().st_size for path in paths), 0

    def report(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(min(done, total), total)

    return build([read_file(path, report) for path in paths])
