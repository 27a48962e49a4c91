"""Tensor frames: what crosses between stages, and nothing else (specs/06-tensors.md).

A frame is a fixed 64-byte header, a small msgpack map and a payload of rows or token ids. Bodies stay
views of the buffers they came in or go out with; every bound is checked before anything is allocated.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import msgpack

from p2pnode.errors import LocalProtocolError, RemoteProtocolError
from p2pnode.limits import FRAME_COLUMNS_MAX, FRAME_META_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, FRAME_ROWS_MAX

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"P2PF"
VERSION = 1
HEADER_BYTES = 64
POSITION_MAX = 2**31 - 1
Q8_BLOCK = 32
"""Values per scale in q8_0 rows, as in GGUF."""
F16_MAX = 65504.0
"""Larger values saturate: an infinity would poison every later layer."""

_LAYOUT = struct.Struct("<4sBBBBIIQIIIIQIII")
_CRC_OFFSET = HEADER_BYTES - 4
assert _LAYOUT.size == _CRC_OFFSET


class Kind(IntEnum):
    """What a frame carries."""

    ROWS = 1
    TOKENS = 2
    RESULT = 3
    ERROR = 4
    FREE = 5
    """A session is over: sent along the line, in order with the frames before it."""
    KEEP = 6
    """Lay the first `position_first` positions of a session aside, as the prefix of the session's number."""
    REUSE = 7
    """A session begins with the first `position_first` positions of the prefix `request`."""
    FORGET = 8
    """The prefix of the session's number is wanted no more."""


CONTROLS = frozenset({Kind.FREE, Kind.KEEP, Kind.REUSE, Kind.FORGET})
"""What a stage does without computing, and passes on."""
NOTICES = CONTROLS | {Kind.ERROR}
"""Frames without rows."""


class DType(IntEnum):
    """How one value of the payload is stored."""

    F32 = 1
    F16 = 2
    BF16 = 3
    Q8_0 = 4
    I32 = 5


_VALUE_BYTES = {DType.F32: 4, DType.F16: 2, DType.BF16: 2, DType.I32: 4}
FLAG_LAST = 1
"""The last frame of its chunked prompt."""
FLAGS_KNOWN = FLAG_LAST


@dataclass(frozen=True, slots=True)
class Frame:
    """One step of one session: `rows` positions from `position_first` on.

    A stage drops what it holds at and after `position_first`, then computes; so a frame can be sent again.
    Rows `[wanted_first, rows)` are the ones whose result is wanted at the end of the line.
    """

    kind: Kind
    dtype: DType
    rows: int
    columns: int
    session: int
    payload: memoryview | bytes | bytearray = b""
    epoch: int = 0
    position_first: int = 0
    wanted_first: int = 0
    sequence: int = 0
    request: int = 0
    flags: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def wanted(self) -> int:
        """How many rows of this frame have a result at the end."""
        return self.rows - self.wanted_first


@dataclass(frozen=True, slots=True)
class Header:
    """A header that was checked: its sizes may be allocated."""

    frame: Frame
    payload_bytes: int
    meta_bytes: int
    body_crc: int

    @property
    def body_bytes(self) -> int:
        return self.meta_bytes + self.payload_bytes


def row_bytes(dtype: DType, columns: int) -> int:
    """Size of one row in the payload."""
    if dtype is DType.Q8_0:
        return columns // Q8_BLOCK * (Q8_BLOCK + 2)
    return columns * _VALUE_BYTES[dtype]


def _shape_fault(frame: Frame, payload_bytes: int) -> str | None:
    if frame.rows > FRAME_ROWS_MAX:
        return f"{frame.rows} rows, at most {FRAME_ROWS_MAX}"
    if frame.columns > FRAME_COLUMNS_MAX:
        return f"{frame.columns} columns, at most {FRAME_COLUMNS_MAX}"
    if payload_bytes > FRAME_PAYLOAD_BYTES_MAX:
        return f"a payload of {payload_bytes} bytes, at most {FRAME_PAYLOAD_BYTES_MAX}"
    if frame.position_first + frame.rows > POSITION_MAX:
        return "positions past 2^31"
    if frame.wanted_first > frame.rows:
        return f"wanted rows from {frame.wanted_first} of {frame.rows}"
    if frame.flags & ~FLAGS_KNOWN:
        return f"unknown flags {frame.flags:#x}"
    if frame.kind in NOTICES:
        return None if not (frame.rows or frame.columns or payload_bytes) else "a notice with a payload"
    if frame.kind in (Kind.TOKENS, Kind.RESULT) and (frame.dtype is not DType.I32 or frame.columns != 1):
        return "token ids that are not one column of i32"
    if frame.kind is Kind.ROWS and (frame.dtype is DType.I32 or not frame.columns):
        return "rows without real values"
    if frame.dtype is DType.Q8_0 and frame.columns % Q8_BLOCK:
        return f"q8_0 rows of {frame.columns} columns, not a multiple of {Q8_BLOCK}"
    if payload_bytes != frame.rows * row_bytes(frame.dtype, frame.columns):
        return f"{payload_bytes} bytes for {frame.rows} rows of {frame.columns} columns"
    return None


def encode(frame: Frame) -> list[memoryview]:
    """Header and body as views to be sent in this order; the payload is not copied."""
    payload = memoryview(frame.payload).cast("B")
    fault = _shape_fault(frame, payload.nbytes)
    if fault is None and not _fits(frame):
        fault = "a field outside its range"
    if fault is not None:
        raise LocalProtocolError(f"cannot send a frame with {fault}")
    meta = msgpack.packb(dict(frame.meta)) if frame.meta else b""
    if len(meta) > FRAME_META_BYTES_MAX:
        raise LocalProtocolError(f"frame meta of {len(meta)} bytes, at most {FRAME_META_BYTES_MAX}")
    head = _LAYOUT.pack(
        MAGIC, VERSION, frame.kind, frame.dtype, frame.flags, frame.rows, frame.columns, frame.session,
        frame.epoch, frame.position_first, frame.wanted_first, frame.sequence, frame.request, payload.nbytes, len(meta),
        zlib.crc32(payload, zlib.crc32(meta)),
    )  # fmt: skip
    first = head + zlib.crc32(head).to_bytes(4, "little") + meta
    return [memoryview(first), payload] if payload.nbytes else [memoryview(first)]


def _fits(frame: Frame) -> bool:
    words = (frame.rows, frame.columns, frame.epoch, frame.position_first, frame.wanted_first, frame.sequence)
    return all(0 <= word < 2**32 for word in words) and all(
        0 <= n < 2**64 for n in (frame.session, frame.request)
    )


def decode_header(data: bytes | bytearray | memoryview) -> Header:
    """Check the 64 bytes before a body; raises RemoteProtocolError."""
    if len(data) != HEADER_BYTES:
        raise RemoteProtocolError(f"a frame header of {len(data)} bytes, not {HEADER_BYTES}")
    (
        magic, version, kind, dtype, flags, rows, columns, session, epoch,
        position_first, wanted_first, sequence, request, payload_bytes, meta_bytes, body_crc,
    ) = _LAYOUT.unpack_from(data)  # fmt: skip
    if magic != MAGIC:
        raise RemoteProtocolError("not a tensor frame: wrong magic")
    if version != VERSION:
        raise RemoteProtocolError(f"tensor frame version {version}, this build speaks {VERSION}")
    if zlib.crc32(memoryview(data)[:_CRC_OFFSET]) != int.from_bytes(data[_CRC_OFFSET:], "little"):
        raise RemoteProtocolError("the checksum of a frame header does not match")
    if kind not in Kind._value2member_map_ or dtype not in DType._value2member_map_:
        raise RemoteProtocolError(f"a frame of unknown kind {kind} or dtype {dtype}")
    frame = Frame(
        kind=Kind(kind), dtype=DType(dtype), rows=rows, columns=columns, session=session, epoch=epoch,
        position_first=position_first, wanted_first=wanted_first, sequence=sequence, request=request,
        flags=flags,
    )  # fmt: skip
    fault = _shape_fault(frame, payload_bytes)
    if fault is None and meta_bytes > FRAME_META_BYTES_MAX:
        fault = f"meta of {meta_bytes} bytes, at most {FRAME_META_BYTES_MAX}"
    if fault is not None:
        raise RemoteProtocolError(f"a frame with {fault}")
    return Header(frame, payload_bytes, meta_bytes, body_crc)


def decode(header: Header, body: bytes | bytearray | memoryview) -> Frame:
    """Join a checked header with its body; the payload stays a view of `body`."""
    if len(body) != header.body_bytes:
        raise RemoteProtocolError(f"a frame body of {len(body)} bytes, not {header.body_bytes}")
    if zlib.crc32(body) != header.body_crc:
        raise RemoteProtocolError("the checksum of a frame body does not match")
    view = memoryview(body)
    meta = _decode_meta(view[: header.meta_bytes])
    head = header.frame
    return Frame(
        head.kind, head.dtype, head.rows, head.columns, head.session, view[header.meta_bytes :], head.epoch,
        head.position_first, head.wanted_first, head.sequence, head.request, head.flags, meta,
    )  # fmt: skip


def _decode_meta(data: memoryview) -> dict[str, Any]:
    if not len(data):
        return {}
    try:
        meta = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as exc:
        raise RemoteProtocolError(f"frame meta is not msgpack: {exc}") from None
    if not isinstance(meta, dict) or not all(isinstance(key, str) for key in meta):
        raise RemoteProtocolError("frame meta is not a map with text keys")
    return meta


class FrameReader:
    """Frames out of anything that can give an exact number of bytes."""

    def __init__(self, read_exactly: Callable[[int], Awaitable[bytes | bytearray | memoryview]]) -> None:
        self._read_exactly = read_exactly

    async def read(self) -> Frame:
        """The next frame; what `read_exactly` raises passes through."""
        header = decode_header(await self._read_exactly(HEADER_BYTES))
        body = await self._read_exactly(header.body_bytes) if header.body_bytes else b""
        return decode(header, body)


# --- arrays ----------------------------------------------------------------------------------------
def rows_f32(frame: Frame) -> NDArray[np.float32]:
    """Rows as [S, D] float32: a view for f32, else converted."""
    import numpy as np

    assert frame.kind is Kind.ROWS
    shape = (frame.rows, frame.columns)
    match frame.dtype:
        case DType.F32:
            return np.frombuffer(frame.payload, "<f4").reshape(shape)
        case DType.F16:
            return np.frombuffer(frame.payload, "<f2").reshape(shape).astype(np.float32)
        case DType.BF16:
            wide = np.frombuffer(frame.payload, "<u2").astype(np.uint32)
            return (wide << 16).view(np.float32).reshape(shape)
        case _:
            blocks = np.frombuffer(frame.payload, np.uint8).reshape(-1, Q8_BLOCK + 2)
            scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
            values: NDArray[np.float32] = scales * blocks[:, 2:].view(np.int8)
            return values.reshape(shape)


def pack_rows(rows: NDArray[np.float32], dtype: DType) -> memoryview:
    """A payload from [S, D] float32; f32 is not copied when contiguous."""
    import numpy as np

    match dtype:
        case DType.F32:
            out: NDArray[Any] = np.ascontiguousarray(rows, "<f4")
        case DType.F16:
            out = np.clip(rows, -F16_MAX, F16_MAX).astype("<f2")
        case DType.BF16:
            bits = np.ascontiguousarray(rows, "<f4").view(np.uint32)
            out = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        case DType.Q8_0:
            out = _pack_q8(np.ascontiguousarray(rows, np.float32).reshape(-1, Q8_BLOCK))
        case _:
            raise LocalProtocolError("rows are not token ids")
    return out.reshape(-1).view(np.uint8).data


def _pack_q8(blocks: NDArray[np.float32]) -> NDArray[np.uint8]:
    import numpy as np

    scales = np.minimum(np.abs(blocks).max(axis=1, keepdims=True) / 127.0, F16_MAX).astype("<f2")
    steps = scales.astype(np.float32)
    inverse = np.divide(1.0, steps, out=np.zeros_like(steps), where=steps > 0)
    quants = np.clip(np.rint(blocks * inverse), -127, 127).astype(np.int8)
    return np.concatenate([scales.view(np.uint8), quants.view(np.uint8)], axis=1)


def tokens(frame: Frame) -> list[int]:
    """Token ids of a TOKENS or RESULT frame."""
    assert frame.kind in (Kind.TOKENS, Kind.RESULT)
    return list(memoryview(frame.payload).cast("B").cast("i"))


def pack_tokens(ids: list[int]) -> bytes:
    """A payload of token ids."""
    return struct.pack(f"<{len(ids)}i", *ids)
