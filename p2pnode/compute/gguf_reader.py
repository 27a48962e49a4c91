"""Parse GGUF headers that may come from a stranger.

A number is compared with `limits` and with what is left of the file before it is believed.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from p2pnode import limits
from p2pnode.compute.ggml_types import TENSOR_TYPES, TensorType
from p2pnode.compute.gguf_values import (
    ALIGNMENT_DEFAULT,
    FORMATS,
    MAGIC,
    Entry,
    ModelIndex,
    TensorInfo,
    ValueType,
    align_up,
)
from p2pnode.errors import BadModelFile

Buffer = bytes | memoryview | mmap.mmap


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One parsed file; several make a `ModelIndex` by `join`."""

    metadata: dict[str, Entry]
    tensors: dict[str, TensorInfo]
    file_size: int
    header_size: int
    alignment: int


class _Reader:
    """A position in the header that can never pass its end."""

    __slots__ = ("_data", "_end", "position")

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data)
        self._end = min(len(self._data), limits.GGUF_HEADER_BYTES_MAX)
        self.position = 0

    def release(self) -> None:
        self._data.release()

    def take(self, size: int) -> bytes:
        start = self.position
        if size > self._end - start:
            raise BadModelFile(
                "the file ends inside its header",
                hint="it is truncated or corrupted: fetch it again",
                offset=start,
            )
        self.position = start + size
        return bytes(self._data[start : start + size])

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self, size_max: int, what: str) -> bytes:
        size = self.unsigned(8)
        if size > size_max:
            raise _corrupted(f"{what} of {size} bytes", self.position)
        return self.take(size)

    def skip_texts(self, count: int) -> None:
        """Pass over strings without making them: vocabularies have hundreds of thousands."""
        data, end, position = self._data, self._end, self.position
        for _ in range(count):
            if end - position < 8:
                break
            size = int.from_bytes(data[position : position + 8], "little")
            if size > limits.GGUF_STRING_BYTES_MAX:
                raise _corrupted(f"a string of {size} bytes", position)
            position += 8 + size
            if position > end:
                break
        else:
            self.position = position
            return
        self.position = end
        self.take(1)


def _corrupted(what: str, offset: int) -> BadModelFile:
    return BadModelFile(
        f"the file is corrupted: {what} cannot be",
        hint="fetch it again; its source may be broken too",
        offset=offset,
    )


def _read_kind(reader: _Reader) -> ValueType:
    number = reader.unsigned(4)
    if number > ValueType.FLOAT64:
        raise _corrupted(f"a value of type {number}", reader.position - 4)
    return ValueType(number)


def _read_entry(reader: _Reader) -> Entry:
    key_bytes = reader.text(limits.GGUF_KEY_BYTES_MAX, "a key")
    try:
        key = key_bytes.decode("utf-8")
    except UnicodeDecodeError:
        raise _corrupted("a key that is not text", reader.position) from None
    if not key:
        raise _corrupted("an empty key", reader.position)
    kind = _read_kind(reader)
    start = reader.position
    if kind is ValueType.STRING:
        reader.skip_texts(1)
    elif kind is ValueType.ARRAY:
        element = _read_kind(reader)
        count = reader.unsigned(8)
        if count > limits.GGUF_ARRAY_COUNT_MAX:
            raise _corrupted(f"an array of {count} elements", start)
        if element is ValueType.ARRAY:
            raise _corrupted("an array of arrays", start)
        if element is ValueType.STRING:
            reader.skip_texts(count)
        else:
            reader.take(count * struct.calcsize(FORMATS[element]))
    else:
        reader.take(struct.calcsize(FORMATS[kind]))
    size = reader.position - start
    reader.position = start
    return Entry(key, kind, reader.take(size), start)


def _read_tensor(reader: _Reader) -> tuple[str, tuple[int, ...], TensorType, int]:
    start = reader.position
    try:
        name = reader.text(limits.GGUF_TENSOR_NAME_BYTES_MAX, "a tensor name").decode("utf-8")
    except UnicodeDecodeError:
        raise _corrupted("a tensor name that is not text", start) from None
    dimensions = reader.unsigned(4)
    if dimensions > 4:
        raise _corrupted(f"a tensor of {dimensions} dimensions", start)
    shape = tuple(reader.unsigned(8) for _ in range(dimensions))
    number = reader.unsigned(4)
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        raise BadModelFile(
            f"tensor {name} has the unknown type {number}",
            hint="the file is corrupted, or made for a newer llama.cpp than this one",
        )
    elements = 1
    for size in shape:
        elements *= size
        if size > limits.TENSOR_ROW_ELEMENTS_MAX or elements > 2**62:
            raise _corrupted(f"tensor {name} of shape {shape}", start)
    if shape and shape[0] % kind.block_elements:
        raise _corrupted(f"tensor {name} of rows of {shape[0]} {kind.name} elements", start)
    return name, shape, kind, reader.unsigned(8)


def _read_preamble(reader: _Reader) -> tuple[int, int]:
    """Magic, version and counts: (tensor count, metadata count)."""
    magic = reader.take(4) if len(reader._data) >= 4 else b""
    if magic != MAGIC:
        raise BadModelFile(
            "this is not a GGUF file",
            hint="choose a .gguf file; other formats can be converted with llama.cpp's convert_hf_to_gguf.py",
        )
    version = reader.unsigned(4)
    if version & 0xFFFF == 0:
        raise BadModelFile(
            "the file is big-endian", hint="convert the model again on a little-endian machine"
        )
    if version not in (2, 3):
        raise BadModelFile(
            f"the file has GGUF version {version}; 2 and 3 can be read",
            hint="convert the model again with a current converter",
        )
    tensor_count, metadata_count = reader.unsigned(8), reader.unsigned(8)
    if tensor_count > limits.GGUF_TENSOR_COUNT_MAX:
        raise _corrupted(f"{tensor_count} tensors", 8)
    if metadata_count > limits.GGUF_METADATA_COUNT_MAX:
        raise _corrupted(f"{metadata_count} metadata entries", 16)
    return tensor_count, metadata_count


def _alignment(metadata: Mapping[str, Entry]) -> int:
    entry = metadata.get("general.alignment")
    if entry is None:
        return ALIGNMENT_DEFAULT
    value = int.from_bytes(entry.raw, "little") if entry.type is ValueType.UINT32 else 0
    if not 0 < value <= limits.GGUF_ALIGNMENT_BYTES_MAX or value & (value - 1):
        raise _corrupted("this alignment of tensors", 0)
    return value


def parse(data: Buffer, file_size: int | None = None, *, file: int = 0) -> ModelFile:
    """The header at the start of `data`; `file_size` is given when `data` holds the header alone.

    Raises: BadModelFile, before allocating anything a number in the file asks for
    """
    reader = _Reader(data)
    try:
        return _parse(reader, len(data) if file_size is None else file_size, file)
    finally:
        reader.release()


def _parse(reader: _Reader, file_size: int, file: int) -> ModelFile:
    tensor_count, metadata_count = _read_preamble(reader)
    metadata: dict[str, Entry] = {}
    for _ in range(metadata_count):
        entry = _read_entry(reader)
        if entry.key in metadata:
            raise _corrupted(f"the key {entry.key} twice", reader.position)
        metadata[entry.key] = entry
    alignment = _alignment(metadata)
    found: dict[str, tuple[tuple[int, ...], TensorType, int]] = {}
    for _ in range(tensor_count):
        name, shape, kind, offset = _read_tensor(reader)
        if name in found:
            raise _corrupted(f"the tensor {name} twice", reader.position)
        found[name] = (shape, kind, offset)
    header_size = align_up(reader.position, alignment)
    tensors = {}
    for name, (shape, kind, offset) in found.items():
        elements = 1
        for size in shape:
            elements *= size
        size = elements // kind.block_elements * kind.block_bytes
        if offset % alignment:
            raise _corrupted(f"tensor {name} at the unaligned offset {offset}", header_size)
        if header_size + offset + size > file_size:
            raise BadModelFile(
                f"tensor {name} ends at byte {header_size + offset + size}, the file at {file_size}",
                hint="the file is truncated: fetch it again",
            )
        tensors[name] = TensorInfo(name, shape, kind, file, header_size + offset, size)
    _refuse_overlaps(tensors.values())
    return ModelFile(metadata, tensors, file_size, header_size, alignment)


def _refuse_overlaps(tensors: Iterable[TensorInfo]) -> None:
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size)):
        if tensor.offset < end:
            raise _corrupted(f"tensor {tensor.name} overlapping another one", tensor.offset)
        end = tensor.offset + tensor.size


def join(files: Sequence[ModelFile]) -> ModelIndex:
    """One model from the files of a split (in order), or from the only one."""
    if not files:
        raise BadModelFile("no file was given", hint="name the first file of the model")
    first = files[0]
    count = first.metadata["split.count"].value() if "split.count" in first.metadata else len(files)
    if len(files) > 1 or count not in (0, 1):
        _check_split(files, count)
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            if name in tensors:
                raise _corrupted(f"the tensor {name} in two files", 0)
            tensors[name] = tensor
    metadata = {key: entry for key, entry in first.metadata.items() if not key.startswith("split.")}
    return ModelIndex(
        metadata,
        tensors,
        tuple(file.file_size for file in files),
        tuple(file.header_size for file in files),
        first.alignment,
    )


def _check_split(files: Sequence[ModelFile], count: object) -> None:
    if count != len(files):
        raise BadModelFile(
            f"the model is split into {count} files, {len(files)} are here",
            hint="put all its files into one folder",
        )
    for number, file in enumerate(files):
        entry = file.metadata.get("split.no")
        if entry is None or entry.value() != number:
            raise BadModelFile(
                f"file {number + 1} of the split is not what its name says",
                hint="fetch the model's files again",
            )
        assert all(tensor.file == number for tensor in file.tensors.values()), "parse files with their number"
    total = files[0].metadata.get("split.tensors.count")
    found = sum(len(file.tensors) for file in files)
    if total is not None and total.value() != found:
        raise BadModelFile(
            f"the split should hold {total.value()} tensors and holds {found}",
            hint="fetch the model's files again",
        )
