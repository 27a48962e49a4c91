"""Manifests as bytes: made of a model's files, written in one canonical form, read from anywhere. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from p2pnode import limits
from p2pnode.errors import BadModelFile
from p2pnode.models import cid
from p2pnode.models.header import Omission, kept, outline, slim, spread
from p2pnode.models.manifest import Manifest, ManifestFile, chunk_extents

FORMAT_VERSION = 1


def manifest_file(header: bytes, size: int, digests: Sequence[bytes]) -> ManifestFile:
    """Describe one file from its full header and the digests of its chunks."""
    found = outline(header)
    assert len(header) == found.size
    assert len(digests) == len(chunk_extents(found))
    bare = kept(slim(header, found), found.omissions)
    return ManifestFile(size, found.size, bare, found.omissions, b"".join(digests))


def encode(files: Sequence[ManifestFile]) -> bytes:
    """Canonical bytes: msgpack arrays only, so there is one order."""
    body = [
        FORMAT_VERSION,
        limits.CHUNK_BYTES,
        [
            [f.size, f.header_size, [[h.fix, h.first, h.end] for h in f.omissions], f.kept, f.digests]
            for f in files
        ],
    ]
    return bytes(msgpack.packb(body, use_bin_type=True))


def build(files: Sequence[ManifestFile]) -> Manifest:
    assert 0 < len(files) <= limits.MODEL_FILES_MAX
    manifest = Manifest(tuple(files), encode(files))
    if len(manifest.tensors) != sum(len(found.tensors) for found in manifest.outlines):
        raise BadModelFile("two files of this model hold a tensor of the same name")
    return manifest


def decode(data: bytes) -> Manifest:
    """Read a manifest from anywhere; BadModelFile unless it is exactly what `encode` would write."""
    if len(data) > limits.MANIFEST_BYTES_MAX:
        raise BadModelFile(f"manifest of {len(data)} bytes, at most {limits.MANIFEST_BYTES_MAX} are allowed")
    try:
        body = msgpack.unpackb(data, raw=False, use_list=True, max_ext_len=0, max_map_len=0)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise BadModelFile("manifest is not valid msgpack") from error
    if not (isinstance(body, list) and len(body) == 3 and isinstance(body[2], list)):
        raise BadModelFile("manifest has the wrong shape")
    if body[0] != FORMAT_VERSION or body[1] != limits.CHUNK_BYTES:
        raise BadModelFile(f"manifest version {body[0]!r} with chunks of {body[1]!r} bytes is not supported")
    if not 0 < len(body[2]) <= limits.MODEL_FILES_MAX:
        raise BadModelFile(f"manifest lists {len(body[2])} files")
    files = [_decode_file(entry) for entry in body[2]]
    manifest = build(files)
    if manifest.encoded != data:
        raise BadModelFile("manifest is not in canonical form")
    return manifest


def _decode_file(entry: Any) -> ManifestFile:
    match entry:
        case [int(size), int(header_size), list(holes), bytes(bare), bytes(digests)]:
            pass
        case _:
            raise BadModelFile("manifest file entry has the wrong shape")
    if not 0 < header_size <= limits.HEADER_BYTES_MAX or not header_size <= size < 2**62:
        raise BadModelFile(f"manifest claims a header of {header_size} bytes in a file of {size}")
    omissions = tuple(_decode_hole(hole) for hole in holes)
    header = spread(bare, omissions, header_size)
    found = outline(header)
    if found.size != header_size or found.data_end > size:
        raise BadModelFile("manifest sizes do not fit its header")
    for hole in omissions:
        if header[hole.fix : hole.fix + 4] != b"\0\0\0\0" or hole.first != hole.fix + 12:
            raise BadModelFile("manifest omits bytes that are no array")
    if len(digests) != len(chunk_extents(found)) * cid.DIGEST_BYTES:
        raise BadModelFile(
            f"manifest has {len(digests)} bytes of digests for {len(chunk_extents(found))} chunks"
        )
    return ManifestFile(size, header_size, bare, omissions, digests)


def _decode_hole(hole: Any) -> Omission:
    match hole:
        case [int(fix), int(first), int(end)]:
            return Omission(fix, first, end)
        case _:
            raise BadModelFile("manifest omission has the wrong shape")
