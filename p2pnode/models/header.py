"""Outline of a GGUF header: where the values and tensors lie, bounded and strict.

Only what identity, transfer and listing need: scalars, short strings, and the byte extents of tensors and
of tokenizer arrays. The compute side reads the full metadata itself.
Source: the GGUF specification of ggml (docs/gguf.md), versions 2 and 3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from p2pnode import limits
from p2pnode.errors import BadModelFile

MAGIC = b"GGUF"
ALIGNMENT_DEFAULT = 32
_ALIGNMENT_MAX = 65_536
_STRING, _ARRAY, _UINT8 = 8, 9, 0
_SCALARS: dict[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_BLOCKS: dict[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip
"""ggml type number -> values and bytes of a block (ggml.c, type_traits)."""
_STRING_KEPT_BYTES_MAX = 4096


def block_of(ggml_type: int) -> tuple[int, int]:
    """Values and bytes of a block of a type that an outline has let pass."""
    return _BLOCKS[ggml_type]


@dataclass(frozen=True, slots=True)
class TensorExtent:
    """Bytes of one tensor, counted from the start of its file."""

    name: str
    offset: int
    size: int
    ggml_type: int
    shape: tuple[int, ...] = ()
    """ggml order: the contiguous dimension first."""


@dataclass(frozen=True, slots=True)
class Omission:
    """A long tokenizer array: `fix` is where its element type and count stand, [first, end) its content."""

    fix: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Outline:
    """What a header says, without its long arrays."""

    size: int
    """Bytes before the tensor data, padding included."""
    scalars: dict[str, str | int | float | bool]
    array_lengths: dict[str, int]
    tensors: tuple[TensorExtent, ...]
    """In order of offset."""
    omissions: tuple[Omission, ...]
    data_end: int
    """End of the last tensor: the smallest size the file may have."""


class HeaderTruncated(BadModelFile):
    """The bytes end inside the header: read more, or refuse the file."""

    code = "bad_model_file"


class _Cursor:
    """Reads forward over bytes; every read is checked."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > limits.HEADER_BYTES_MAX:
            raise BadModelFile(f"GGUF header is longer than {limits.HEADER_BYTES_MAX} bytes")
        if end > len(self.data):
            raise HeaderTruncated(
                f"GGUF header ends at byte {len(self.data)}, inside a value", hint=_HINT_TRUNCATED
            )
        chunk = self.data[self.position : end]
        self.position = end
        return chunk

    def number(self, form: str) -> int:
        value = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return int(value)

    def text(self, size_max: int) -> str:
        size = self.number("<Q")
        if size > size_max:
            raise BadModelFile(f"GGUF name of {size} bytes, at most {size_max} are allowed")
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadModelFile("GGUF name is not UTF-8") from error


_HINT_TRUNCATED = "the file is not complete; download or copy it again"
_KEY_BYTES_MAX = 65_535


def _skip_string(cursor: _Cursor) -> None:
    cursor.take(cursor.number("<Q"))


def _skip_array(cursor: _Cursor, depth: int) -> tuple[int, int]:
    """Move past an array; element type and count."""
    if depth > limits.METADATA_ARRAY_DEPTH_MAX:
        raise BadModelFile("GGUF arrays are nested too deep")
    kind, count = cursor.number("<I"), cursor.number("<Q")
    if kind in _SCALARS:
        cursor.take(count * struct.calcsize(_SCALARS[kind]))
        return kind, count
    if kind not in (_STRING, _ARRAY):
        raise BadModelFile(f"GGUF value type {kind} does not exist")
    if count > limits.HEADER_BYTES_MAX // 8:
        raise BadModelFile(f"GGUF array claims {count} elements")
    for _ in range(count):
        if kind == _STRING:
            _skip_string(cursor)
        else:
            _skip_array(cursor, depth + 1)
    return kind, count


@dataclass(slots=True)
class _Values:
    scalars: dict[str, str | int | float | bool]
    array_lengths: dict[str, int]
    omissions: list[Omission]


def _read_value(cursor: _Cursor, values: _Values, key: str) -> None:
    kind = cursor.number("<I")
    if kind in _SCALARS:
        values.scalars[key] = struct.unpack(_SCALARS[kind], cursor.take(struct.calcsize(_SCALARS[kind])))[0]
    elif kind == _STRING:
        raw = cursor.take(cursor.number("<Q"))
        if len(raw) <= _STRING_KEPT_BYTES_MAX:
            values.scalars[key] = raw.decode("utf-8", "replace")
    elif kind == _ARRAY:
        start = cursor.position
        element, count = _skip_array(cursor, 1)
        first, end = start + 12, cursor.position
        # An array of bytes is what an omitted one is turned into: never omit it twice.
        values.array_lengths[key] = count
        if key.startswith("tokenizer.") and end - first >= limits.HEADER_OMIT_BYTES_MIN and element != _UINT8:
            values.omissions.append(Omission(start, first, end))
    else:
        raise BadModelFile(f"GGUF value type {kind} does not exist")


def _read_values(cursor: _Cursor, count: int) -> _Values:
    values = _Values({}, {}, [])
    seen: set[str] = set()
    for _ in range(count):
        key = cursor.text(_KEY_BYTES_MAX)
        if key in seen:
            raise BadModelFile(f"GGUF key {key!r} occurs twice")
        seen.add(key)
        _read_value(cursor, values, key)
    return values


def _read_tensor(cursor: _Cursor) -> TensorExtent:
    """One row of the tensor table; the offset is still counted from the start of the data."""
    name = cursor.text(limits.TENSOR_NAME_BYTES_MAX)
    dimension_count = cursor.number("<I")
    if not 1 <= dimension_count <= limits.TENSOR_DIMENSIONS_MAX:
        raise BadModelFile(f"tensor {name!r} has {dimension_count} dimensions")
    dimensions = [cursor.number("<Q") for _ in range(dimension_count)]
    ggml_type, offset = cursor.number("<I"), cursor.number("<Q")
    if ggml_type not in _BLOCKS:
        raise BadModelFile(f"tensor {name!r} has type {ggml_type}, which this build does not know")
    block_values, block_bytes = _BLOCKS[ggml_type]
    elements = math.prod(dimensions)
    if elements == 0 or dimensions[0] % block_values:
        raise BadModelFile(f"tensor {name!r} of shape {dimensions} cannot have type {ggml_type}")
    return TensorExtent(name, offset, elements // block_values * block_bytes, ggml_type, tuple(dimensions))


def _place(tensors: list[TensorExtent], data_start: int, alignment: int) -> tuple[TensorExtent, ...]:
    """Absolute offsets in file order; refuses overlaps."""
    placed = sorted((replace(t, offset=data_start + t.offset) for t in tensors), key=lambda t: t.offset)
    end = data_start
    for tensor in placed:
        if tensor.offset < end or tensor.offset % alignment:
            raise BadModelFile(
                f"tensor {tensor.name!r} overlaps another or is not aligned to {alignment} bytes"
            )
        end = tensor.offset + tensor.size
    if end > 2**62:
        raise BadModelFile("tensors claim more bytes than any file has")
    return tuple(placed)


def outline(data: bytes) -> Outline:
    """Read a header; HeaderTruncated when `data` ends too early, BadModelFile when it cannot be GGUF."""
    if data[:4] != MAGIC:
        raise BadModelFile("this is not a GGUF file", hint="p2pnode runs models in GGUF format")
    cursor = _Cursor(data)
    cursor.take(4)
    version = cursor.number("<I")
    if version not in (2, 3):
        raise BadModelFile(
            f"GGUF version {version} is not supported", hint="convert the file with a current llama.cpp"
        )
    tensor_count, value_count = cursor.number("<Q"), cursor.number("<Q")
    if tensor_count > limits.TENSORS_MAX or value_count > limits.METADATA_ENTRIES_MAX:
        raise BadModelFile(f"GGUF header claims {tensor_count} tensors and {value_count} values")
    values = _read_values(cursor, value_count)
    alignment = values.scalars.get("general.alignment", ALIGNMENT_DEFAULT)
    if not isinstance(alignment, int) or not 8 <= alignment <= _ALIGNMENT_MAX or alignment % 8:
        raise BadModelFile(f"GGUF alignment {alignment!r} is not possible")
    tensors = [_read_tensor(cursor) for _ in range(tensor_count)]
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise BadModelFile("two tensors have the same name")
    size = -(-cursor.position // alignment) * alignment
    placed = _place(tensors, size, alignment)
    data_end = placed[-1].offset + placed[-1].size if placed else cursor.position
    return Outline(size, values.scalars, values.array_lengths, placed, tuple(values.omissions), data_end)


def slim(header: bytes, found: Outline) -> bytes:
    """The same header with every long tokenizer array turned into zero bytes of the same length.

    Nothing moves: the element type becomes UINT8 and the count the array's length in bytes, so any GGUF
    reader still finds all other values and every tensor.
    """
    result = bytearray(header)
    for hole in found.omissions:
        result[hole.fix : hole.first] = struct.pack("<IQ", _UINT8, hole.end - hole.first)
        result[hole.first : hole.end] = bytes(hole.end - hole.first)
    return bytes(result)


def kept(header: bytes, omissions: Sequence[Omission]) -> bytes:
    """Header bytes outside the omitted arrays."""
    parts, position = [], 0
    for hole in omissions:
        parts.append(header[position : hole.first])
        position = hole.end
    parts.append(header[position:])
    return b"".join(parts)


def spread(kept: bytes, omissions: Sequence[Omission], header_size: int) -> bytes:
    """Header of full length, zeros where arrays were left out."""
    header, position, taken = bytearray(), 0, 0
    for hole in omissions:
        if not position <= hole.fix < hole.first < hole.end <= header_size:
            raise BadModelFile("manifest omissions overlap or lie outside the header")
        step = hole.first - position
        header += kept[taken : taken + step]
        header += bytes(hole.end - hole.first)
        taken, position = taken + step, hole.end
        if len(header) != position:
            raise BadModelFile("manifest header is shorter than it claims")
    header += kept[taken:]
    if len(header) != header_size:
        raise BadModelFile("manifest header is not as long as it claims")
    return bytes(header)
