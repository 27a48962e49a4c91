"""Tensors of a new file: where their bytes come from."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod

from p2pnode.compute.ggml_types import F32, TensorType
from p2pnode.compute.gguf_values import TensorInfo
from p2pnode.compute.part import Inline, Piece, Source, Zeros
from p2pnode.errors import BadModelFile


@dataclass(frozen=True, slots=True)
class NewTensor:
    name: str
    shape: tuple[int, ...]
    type: TensorType
    piece: Piece
    origin: str | None = None
    """The original's tensor whose bytes it needs."""

    @property
    def size(self) -> int:
        return prod(self.shape) // self.type.block_elements * self.type.block_bytes


def original(tensor: TensorInfo, name: str | None = None) -> NewTensor:
    """The tensor as it is, perhaps under another name."""
    source = Source(tensor.file, tensor.offset, tensor.size)
    return NewTensor(name or tensor.name, tensor.shape, tensor.type, source, tensor.name)


def zeros(name: str, shape: tuple[int, ...], kind: TensorType) -> NewTensor:
    size = prod(shape) // kind.block_elements * kind.block_bytes
    return NewTensor(name, shape, kind, Zeros(size))


def ones(name: str, shape: tuple[int, ...]) -> NewTensor:
    return NewTensor(name, shape, F32, Inline(struct.pack("<f", 1.0) * prod(shape)))


def rows(tensor: TensorInfo, name: str, first: int, end: int) -> NewTensor:
    """Rows [first, end) of a matrix, or of each matrix of a stack; elements of a vector."""
    if len(tensor.shape) == 1:
        return columns(tensor, name, first, end)
    _check_range(tensor, first, end, tensor.shape[1], 1)
    unit = tensor.row_bytes
    shape = (tensor.shape[0], end - first, *tensor.shape[2:])
    source = Source(
        tensor.file,
        tensor.offset + first * unit,
        (end - first) * unit,
        count=prod(tensor.shape[2:]),
        stride=tensor.shape[1] * unit,
    )
    return NewTensor(name, shape, tensor.type, source, tensor.name)


def columns(tensor: TensorInfo, name: str, first: int, end: int) -> NewTensor:
    """Elements [first, end) of every row; both fall on blocks of the tensor's type."""
    kind = tensor.type
    _check_range(tensor, first, end, tensor.row_elements, kind.block_elements)
    source = Source(
        tensor.file,
        tensor.offset + first // kind.block_elements * kind.block_bytes,
        (end - first) // kind.block_elements * kind.block_bytes,
        count=tensor.row_count,
        stride=tensor.row_bytes,
    )
    return NewTensor(name, (end - first, *tensor.shape[1:]), kind, source, tensor.name)


def _check_range(tensor: TensorInfo, first: int, end: int, size: int, unit: int) -> None:
    if not 0 <= first < end <= size or first % unit or end % unit:
        raise BadModelFile(
            f"tensor {tensor.name} of shape {tensor.shape} cannot be cut to [{first}, {end})",
            hint="its sizes contradict the model's parameters: fetch it again",
        )
