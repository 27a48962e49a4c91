"""What a GGUF header holds: typed metadata entries, the tensor index, and how both are written.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from p2pnode import limits
from p2pnode.compute.ggml_types import TensorType
from p2pnode.errors import BadModelFile

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT_DEFAULT = 32

Scalar = int | float | bool | str
Value = Scalar | list[int] | list[float] | list[bool] | list[str]


class ValueType(IntEnum):
    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


FORMATS: dict[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One metadata entry: `raw` is the value exactly as it stands in the file, so copying changes nothing."""

    key: str
    type: ValueType
    raw: bytes = field(repr=False)
    offset: int = field(default=-1, compare=False)
    """Where `raw` lies in the first file of the model; -1 for a value that was made."""

    @property
    def is_array(self) -> bool:
        return self.type is ValueType.ARRAY

    @property
    def element_type(self) -> ValueType:
        """Type of the elements of an array, or of the value itself."""
        return ValueType(int.from_bytes(self.raw[:4], "little")) if self.is_array else self.type

    @property
    def count(self) -> int:
        """Number of elements; 1 for a scalar."""
        return int.from_bytes(self.raw[4:12], "little") if self.is_array else 1

    def value(self) -> Value:
        """The value as Python sees it; text that is not UTF-8 keeps its bytes as surrogates."""
        if not self.is_array:
            value: Scalar = _decode(self.type, self.raw, 1)[0]
            return value
        return _decode(self.element_type, self.raw[12:], self.count)

    def text_at(self, number: int) -> str:
        """One element of an array of texts, without making the others; empty where there is none."""
        if self.element_type is not ValueType.STRING or not self.is_array or not 0 <= number < self.count:
            return ""
        raw, position = self.raw, 12
        for _ in range(number):
            position += 8 + int.from_bytes(raw[position : position + 8], "little")
        return str(_decode(ValueType.STRING, raw[position:], 1)[0])

    def encode(self) -> bytes:
        return _encode_text(self.key) + struct.pack("<I", self.type) + self.raw


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """`shape` in ggml's order (innermost first); `offset` counts from the start of file number `file`."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    file: int
    offset: int
    size: int

    @property
    def row_elements(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return self.row_elements // self.type.block_elements * self.type.block_bytes

    @property
    def row_count(self) -> int:
        return self.size // self.row_bytes if self.row_bytes else 0


def _unsigned(value: object) -> bool:
    """Whether a value fits llama.cpp's own 32-bit hyperparameters; flags of layers may be booleans."""
    return isinstance(value, int) and 0 <= value < 1 << 32


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """What one model is made of, over one file or several."""

    metadata: Mapping[str, Entry]
    tensors: Mapping[str, TensorInfo]
    file_sizes: tuple[int, ...]
    header_sizes: tuple[int, ...]
    """Bytes before the tensor data of each file, padding included."""
    alignment: int = ALIGNMENT_DEFAULT

    def get(self, key: str, default: Any = None) -> Any:
        entry = self.metadata.get(key)
        return default if entry is None else entry.value()

    @property
    def architecture(self) -> str:
        name = self.get("general.architecture")
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_.-]{1,64}", name):
            raise BadModelFile(
                "the file does not say which architecture it is",
                hint="it may be an adapter or a projector, not a model",
            )
        return name

    def parameter(self, key: str, default: Any = None) -> Any:
        """Value of `{architecture}.{key}`."""
        return self.get(f"{self.architecture}.{key}", default)

    def parameter_int(self, key: str, default: int | None = None) -> int:
        """An unsigned integer parameter; BadModelFile when absent without a default, or anything else."""
        value = self.parameter(key, default)
        if not _unsigned(value):
            raise self._wrong(key, "missing" if value is None else "not an unsigned integer")
        return int(value)

    def parameter_ints(self, key: str, default: int | None = None) -> list[int]:
        """A parameter of every layer, given as one value or as an array."""
        value = self.parameter(key, default)
        if not isinstance(value, list):
            return [self.parameter_int(key, default)] * self.layer_count
        if len(value) < self.layer_count or not all(_unsigned(each) for each in value):
            raise self._wrong(key, f"not {self.layer_count} unsigned integers")
        return [int(each) for each in value[: self.layer_count]]

    def parameter_float(self, key: str, default: float) -> float:
        value = self.parameter(key, default)
        if not isinstance(value, float | int) or not math.isfinite(value):
            raise self._wrong(key, "not a number")
        return float(value)

    def _wrong(self, key: str, what: str) -> BadModelFile:
        return BadModelFile(
            f"{self.architecture}.{key} is {what}", hint="convert the model again with a current converter"
        )

    @property
    def layer_count(self) -> int:
        count = self.parameter_int("block_count")
        if not 0 < count <= limits.MODEL_LAYERS_MAX:
            raise BadModelFile(
                f"the model says it has {count} layers",
                hint=f"between 1 and {limits.MODEL_LAYERS_MAX} can be",
            )
        return count

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.size for tensor in self.tensors.values())

    def without_vocabulary(self) -> ModelIndex:
        """All there is to know about tensors, in a hundredth of the memory where the vocabulary is large."""
        kept = {
            key: entry
            for key, entry in self.metadata.items()
            if not (key.startswith("tokenizer.") and len(entry.raw) > limits.HEADER_OMIT_BYTES_MIN)
        }
        return replace(self, metadata=kept)


def _decode(kind: ValueType, raw: bytes, count: int) -> list[Any]:
    if kind is not ValueType.STRING:
        return list(struct.unpack(f"<{count}{FORMATS[kind]}", raw))
    values, position = [], 0
    for _ in range(count):
        length = int.from_bytes(raw[position : position + 8], "little")
        position += 8
        values.append(raw[position : position + length].decode("utf-8", "surrogateescape"))
        position += length
    return values


def _encode_text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def scalar(key: str, kind: ValueType, value: Scalar) -> Entry:
    """A new scalar entry."""
    raw = _encode_text(str(value)) if kind is ValueType.STRING else struct.pack("<" + FORMATS[kind], value)
    return Entry(key, kind, raw)


def array(key: str, kind: ValueType, values: Sequence[Any]) -> Entry:
    """A new array entry."""
    head = struct.pack("<IQ", kind, len(values))
    if kind is ValueType.STRING:
        return Entry(key, ValueType.ARRAY, head + b"".join(_encode_text(value) for value in values))
    return Entry(key, ValueType.ARRAY, head + struct.pack(f"<{len(values)}{FORMATS[kind]}", *values))


def align_up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def header_bytes(
    metadata: Iterable[Entry], tensors: Sequence[tuple[str, Sequence[int], TensorType, int]], alignment: int
) -> tuple[bytes, list[int]]:
    """A new version 3 header, padded, and the offset of each tensor (name, shape, type, size) in the file."""
    entries = list(metadata)
    out = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(entries))]
    out += [entry.encode() for entry in entries]
    offsets, offset = [], 0
    for name, shape, kind, size in tensors:
        out.append(
            _encode_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind.number, offset)
        )
        offsets.append(offset)
        offset = align_up(offset + size, alignment)
    data = b"".join(out)
    data += bytes(align_up(len(data), alignment) - len(data))
    return data, [len(data) + offset for offset in offsets]
