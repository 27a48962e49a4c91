"""Embedding lookup without llama.cpp: rows of the token table, dequantised and scaled as the family wants it.

With it the first stage takes rows like any other, and tokens never leave the head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from p2pnode.compute.architectures import architecture_of, refusal, token_scale
from p2pnode.compute.gguf_values import ModelIndex, TensorInfo
from p2pnode.compute.part import ReadAt
from p2pnode.compute.rewrite import vocabulary_size
from p2pnode.errors import ShapeMismatch

_TENSOR = "token_embd.weight"


def embedding_table(index: ModelIndex) -> TensorInfo:
    """The tensor whose rows `embed_rows` reads: `row_bytes` for each token."""
    vocabulary_size(index)
    return index.tensors[_TENSOR]


def embed_rows(index: ModelIndex, read: ReadAt, tokens: Sequence[int]) -> NDArray[np.float32]:
    """What the first layer gets for these tokens.

    Shapes:  result [len(tokens), n_embd] float32
    Raises:  ShapeMismatch for a token outside the vocabulary, ArchitectureUnsupported
    """
    row = architecture_of(index)
    table = embedding_table(index)
    rows, width = vocabulary_size(index), table.row_elements
    stored = np.empty((len(tokens), table.row_bytes), np.uint8)
    for at, token in enumerate(tokens):
        if not 0 <= token < rows:
            raise ShapeMismatch(
                f"token {token} of a vocabulary of {rows}", hint="tokenise with the same model"
            )
        data = read(table.file, table.offset + token * table.row_bytes, table.row_bytes)
        stored[at] = np.frombuffer(data, np.uint8)
    try:
        values = dequantize(stored, GGMLQuantizationType(table.type.number))
    except (NotImplementedError, ValueError) as error:
        raise refusal(row.name, f"its embedding is stored as {table.type.name}") from error
    result: NDArray[np.float32] = np.ascontiguousarray(values, np.float32).reshape(len(tokens), width)
    scale = token_scale(row, index)
    return result if scale == 1.0 else result * np.float32(scale)
