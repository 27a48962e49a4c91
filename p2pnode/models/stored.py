"""Models as the store shows them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from p2pnode import limits
from p2pnode.errors import BadModelFile
from p2pnode.models.manifest import Manifest
from p2pnode.units import ContentId

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

DEMO_NAME = "p2pnode-demo"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+@-]*")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One name in the store."""

    name: str
    content_id: ContentId
    manifest: Manifest
    imported: bool
    """True when complete files lie outside the store, in `paths`."""
    have_bytes: int
    """Verified bytes on this disk."""

    @property
    def is_complete(self) -> bool:
        return self.imported or self.have_bytes >= self.manifest.chunk_bytes


@dataclass(frozen=True, slots=True)
class Holdings:
    """What of a model is on this disk, short enough to be told to others often."""

    layers: tuple[tuple[int, int], ...]
    """Ranges [first, end) of layers that are there whole."""
    ends: bool
    """Everything that belongs to no layer: embedding, output, norms."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Where wanted bytes lie on this disk."""

    path: Path
    offset: int
    size: int


def check_name(name: str) -> str:
    """A usable model name; BadModelFile otherwise."""
    if not _NAME.fullmatch(name) or len(name) > limits.MODEL_NAME_CHARS_MAX:
        raise BadModelFile(f"{name[:80]!r} is no model name", hint="use letters, digits and . _ : / + @ -")
    return name
