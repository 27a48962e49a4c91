"""GGUF files: their metadata with exact types and the index of their tensors, never the tensors themselves.

`open_model` is the only function that touches files; the rest is in `gguf_values` and `gguf_reader`.
"""

from __future__ import annotations

import mmap
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from p2pnode import limits
from p2pnode.compute.ggml_types import TensorType
from p2pnode.compute.gguf_reader import Buffer, ModelFile, join, parse
from p2pnode.compute.gguf_values import (
    Entry,
    ModelIndex,
    TensorInfo,
    ValueType,
    align_up,
    array,
    header_bytes,
    scalar,
)
from p2pnode.errors import BadModelFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "Entry",
    "ModelFile",
    "ModelIndex",
    "TensorInfo",
    "TensorType",
    "ValueType",
    "align_up",
    "array",
    "header_bytes",
    "join",
    "open_model",
    "parse",
    "scalar",
    "split_paths",
]

_SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


def split_paths(path: Path) -> list[Path]:
    """All files of the split that `path` belongs to, or `path` alone."""
    match = _SPLIT_NAME.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 0 < count <= limits.GGUF_SPLIT_FILES_MAX:
        raise BadModelFile(
            f"{path.name} says it is one of {count} files", hint="give the file its original name"
        )
    return [
        path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)
    ]


@contextmanager
def _mapped(path: Path) -> Iterator[Buffer]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except FileNotFoundError:
        raise BadModelFile(
            f"{path.name} is not there", hint="put all files of the model into one folder"
        ) from None
    except (OSError, ValueError) as error:
        raise BadModelFile(
            f"{path.name} cannot be read: {error}", hint="check the path and its permissions"
        ) from error


def open_model(path: Path) -> tuple[ModelIndex, list[Path]]:
    """Index of the model at `path` (any file of a split) and the files it lies in."""
    paths = split_paths(path)
    files = []
    for number, each in enumerate(paths):
        with _mapped(each) as data:
            files.append(parse(data, file=number))
    return join(files), paths
