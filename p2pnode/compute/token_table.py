"""Token embeddings read row by row from the model file, so that a first stage is like any other."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from p2pnode.compute.engine_protocol import TokenTable
from p2pnode.compute.llama_abi import GGML_TYPE_F32, lib
from p2pnode.errors import BadModelFile, ShapeMismatch

_TRAITS_TO_FLOAT = 40
"""Offset of `to_float` in `struct ggml_type_traits`: name 0, block 8, interleave 16, size 24, quantised 32."""
_GGML_TYPES_END = 43
_ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class TokenRows:
    """Rows of `token_embd` as float32, dequantised by ggml's own routine."""

    def __init__(self, table: TokenTable) -> None:
        if not 0 <= table.ggml_type < _GGML_TYPES_END or not lib.ggml_blck_size(table.ggml_type):
            raise BadModelFile(f"token embeddings of unknown tensor type {table.ggml_type}")
        block = int(lib.ggml_blck_size(table.ggml_type))
        if table.columns <= 0 or table.columns % block:
            raise BadModelFile(f"token embeddings of {table.columns} columns in blocks of {block}")
        self._table = table
        self._row_bytes = int(lib.ggml_row_size(table.ggml_type, table.columns))
        self._file = os.open(table.path, os.O_RDONLY | os.O_CLOEXEC)
        if table.offset + table.rows * self._row_bytes > os.fstat(self._file).st_size:
            self.close()
            raise BadModelFile(f"{table.path} ends inside the token embeddings: truncated?")
        self._convert = None
        if table.ggml_type != GGML_TYPE_F32:
            traits = lib.ggml_get_type_traits(table.ggml_type)
            address = ctypes.c_void_p.from_address(traits + _TRAITS_TO_FLOAT).value
            if not address:
                raise BadModelFile(f"ggml cannot read tensor type {table.ggml_type}")
            self._convert = _ToFloat(address)

    def lookup(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """[S, D] for token ids [S]."""
        table = self._table
        out = np.empty((len(tokens), table.columns), np.float32)
        for index, token in enumerate(tokens):
            if not 0 <= token < table.rows:
                raise ShapeMismatch(f"token {token}: the vocabulary has {table.rows}")
            data = os.pread(self._file, self._row_bytes, table.offset + token * self._row_bytes)
            if len(data) != self._row_bytes:
                raise BadModelFile(f"{table.path} became shorter")
            if self._convert is None:
                out[index] = np.frombuffer(data, "<f4")
            else:
                self._convert(data, out[index].ctypes.data, table.columns)
        if table.scale != 1.0:
            out *= np.float32(table.scale)
        return out

    def close(self) -> None:
        os.close(self._file)
