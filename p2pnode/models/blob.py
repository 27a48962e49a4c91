"""Messages of `/p2pnode/blob/1`, without I/O.

A frame is one byte of kind, four bytes of length (big-endian) and that many bytes. The asking side sends
requests one after the other on a stream; every request is answered by item frames and then END or ERROR.
Format: specs/04-blobs.md.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from p2pnode import limits
from p2pnode.errors import RemoteProtocolError
from p2pnode.models import cid

PROTOCOL: Final = "/p2pnode/blob/1"
FRAME_HEAD_BYTES: Final = 5

GET_MANIFEST: Final = 1
GET_HAVE: Final = 2
GET_CHUNKS: Final = 3
GET_TILES: Final = 4
MANIFEST: Final = 0x81
HAVE: Final = 0x82
CHUNK: Final = 0x83
END: Final = 0x8E
ERROR: Final = 0x8F

_CHUNK_INDEX_BYTES: Final = 4
_REPLY_BYTES_MAX: Final = {
    MANIFEST: limits.MANIFEST_BYTES_MAX,
    HAVE: limits.MANIFEST_BYTES_MAX // cid.DIGEST_BYTES // 8,
    CHUNK: limits.CHUNK_BYTES + _CHUNK_INDEX_BYTES,
    END: 0,
    ERROR: 4096,
}


@dataclass(frozen=True, slots=True)
class GetManifest:
    """By digest, or by name when the digest is empty."""

    digest: bytes = b""
    name: str = ""


@dataclass(frozen=True, slots=True)
class GetHave:
    """Which chunks of this model does the holder have?"""

    digest: bytes


@dataclass(frozen=True, slots=True)
class GetChunks:
    """Chunks of a model as ascending runs (first, count)."""

    digest: bytes
    runs: tuple[tuple[int, int], ...]

    @property
    def chunk_count(self) -> int:
        return sum(count for _, count in self.runs)

    def indexes(self) -> list[int]:
        return [index for first, count in self.runs for index in range(first, first + count)]


@dataclass(frozen=True, slots=True)
class GetTiles:
    """Which tiles of this shard table of this model does the holder have? One that holds the model can make it."""

    model: bytes
    table: bytes


Request = GetManifest | GetHave | GetChunks | GetTiles


def runs_of(indexes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ascending indexes as runs (first, count)."""
    runs: list[tuple[int, int]] = []
    for index in indexes:
        if runs and index == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return tuple(runs)


def frame(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack(">BI", kind, len(payload)) + payload


def encode_request(request: Request) -> bytes:
    """A whole request frame."""
    if isinstance(request, GetManifest):
        return frame(GET_MANIFEST, _pack([request.digest, request.name]))
    if isinstance(request, GetHave):
        return frame(GET_HAVE, _pack([request.digest]))
    if isinstance(request, GetTiles):
        return frame(GET_TILES, _pack([request.model, request.table]))
    assert len(request.runs) <= limits.BLOB_RUNS_MAX
    return frame(GET_CHUNKS, _pack([request.digest, [list(run) for run in request.runs]]))


def request_head(head: bytes) -> tuple[int, int]:
    """Kind and payload length of a request; RemoteProtocolError before anything is allocated."""
    kind, size = struct.unpack(">BI", head)
    if kind not in (GET_MANIFEST, GET_HAVE, GET_CHUNKS, GET_TILES):
        raise RemoteProtocolError(f"blob request of unknown kind {kind}")
    if size > limits.BLOB_REQUEST_BYTES_MAX:
        raise RemoteProtocolError(
            f"blob request of {size} bytes, at most {limits.BLOB_REQUEST_BYTES_MAX} are allowed"
        )
    return kind, size


def decode_request(kind: int, payload: bytes) -> Request:
    body = _unpack(payload)
    match kind, body:
        case (1, [bytes(digest), str(name)]) if len(digest) in (0, cid.DIGEST_BYTES) and bool(digest) != bool(
            name
        ):
            if len(name) <= limits.MODEL_NAME_CHARS_MAX:
                return GetManifest(digest, name)
        case (2, [bytes(digest)]) if len(digest) == cid.DIGEST_BYTES:
            return GetHave(digest)
        case (3, [bytes(digest), list(runs)]) if len(digest) == cid.DIGEST_BYTES:
            return GetChunks(digest, _decode_runs(runs))
        case (4, [bytes(model), bytes(table)]) if len(model) == len(table) == cid.DIGEST_BYTES:
            return GetTiles(model, table)
        case _:
            pass
    raise RemoteProtocolError(f"blob request of kind {kind} has the wrong shape")


def _decode_runs(runs: list[Any]) -> tuple[tuple[int, int], ...]:
    if not 0 < len(runs) <= limits.BLOB_RUNS_MAX:
        raise RemoteProtocolError(f"blob request with {len(runs)} runs")
    result: list[tuple[int, int]] = []
    end, total = 0, 0
    for run in runs:
        match run:
            case [int(first), int(count)] if end <= first and 0 < count <= limits.BLOB_CHUNKS_PER_REQUEST_MAX:
                end, total = first + count, total + count
                result.append((first, count))
            case _:
                raise RemoteProtocolError("blob request runs must ascend and not be empty")
    if total > limits.BLOB_CHUNKS_PER_REQUEST_MAX:
        raise RemoteProtocolError(
            f"blob request for {total} chunks, at most {limits.BLOB_CHUNKS_PER_REQUEST_MAX}"
        )
    return tuple(result)


def reply_head(head: bytes) -> tuple[int, int]:
    """Kind and payload length of a reply frame; RemoteProtocolError before anything is allocated."""
    kind, size = struct.unpack(">BI", head)
    size_max = _REPLY_BYTES_MAX.get(kind)
    if size_max is None:
        raise RemoteProtocolError(f"blob reply of unknown kind {kind}")
    if size > size_max:
        raise RemoteProtocolError(f"blob reply of {size} bytes, at most {size_max} are allowed")
    return kind, size


def chunk_head(index: int, size: int) -> bytes:
    """Everything of a CHUNK frame that comes before the chunk's bytes."""
    return struct.pack(">BII", CHUNK, size + _CHUNK_INDEX_BYTES, index)


def decode_chunk(payload: bytes) -> tuple[int, memoryview]:
    if len(payload) < _CHUNK_INDEX_BYTES:
        raise RemoteProtocolError("blob chunk without an index")
    return int.from_bytes(payload[:_CHUNK_INDEX_BYTES], "big"), memoryview(payload)[_CHUNK_INDEX_BYTES:]


def encode_error(code: str, message: str) -> bytes:
    return frame(ERROR, _pack([code[:64], message[:400]]))


def decode_error(payload: bytes) -> tuple[str, str]:
    match _unpack(payload):
        case [str(code), str(message)] if len(code) <= 64:
            return code, message
        case _:
            raise RemoteProtocolError("blob error has the wrong shape")


def _pack(body: list[Any]) -> bytes:
    return bytes(msgpack.packb(body, use_bin_type=True))


def _unpack(payload: bytes) -> Any:
    try:
        return msgpack.unpackb(payload, raw=False, max_ext_len=0, max_map_len=0)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise RemoteProtocolError("blob message is not valid msgpack") from error
