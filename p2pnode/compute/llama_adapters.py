"""LoRA adapters and control vectors of a context, changed between two steps."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

import numpy as np

from p2pnode.compute.engine_protocol import Adapter
from p2pnode.compute.llama_abi import L
from p2pnode.compute.llama_context import Context
from p2pnode.compute.llama_model import Model
from p2pnode.errors import BadModelFile, ComputeError, RequestError, ShapeMismatch
from p2pnode.limits import ADAPTERS_MAX


class Adapters:
    """Loaded adapter files stay until the unit goes; which of them act, and how strongly, can change."""

    def __init__(self, model: Model, context: Context) -> None:
        self._model = model
        self._context = context
        self._loaded: dict[str, int] = {}

    def set(self, adapters: Sequence[Adapter]) -> None:
        """Exactly these from now on."""
        if len(adapters) > ADAPTERS_MAX:
            raise RequestError(f"{len(adapters)} adapters, at most {ADAPTERS_MAX}")
        pointers = [self._load(adapter.path) for adapter in adapters]
        array = (ctypes.POINTER(ctypes.c_void_p) * max(1, len(pointers)))(
            *(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_void_p)) for pointer in pointers)
        )
        scales = (ctypes.c_float * max(1, len(pointers)))(*(adapter.scale for adapter in adapters))
        if L.llama_set_adapters_lora(self._context.pointer, array, len(pointers), scales):
            raise ComputeError("llama.cpp did not take the adapters")

    def _load(self, path: str) -> int:
        found = self._loaded.get(path)
        if found is None:
            if not os.access(path, os.R_OK):
                raise BadModelFile(f"cannot read the adapter {path}")
            pointer = L.llama_adapter_lora_init(self._model.pointer, os.fsencode(path))
            if not pointer:
                raise BadModelFile(
                    f"{path} is not an adapter for this part of this model",
                    hint="an adapter has to be cut like the model",
                )
            found = self._loaded[path] = ctypes.cast(pointer, ctypes.c_void_p).value or 0
        return found

    def add_control_vectors(self, vectors: Sequence[Adapter]) -> None:
        """The scaled sum of files of float32 rows, one for each layer from 1 on."""
        size = (self._model.layers - 1) * self._model.columns
        total = np.zeros(size, np.float32)
        for vector in vectors:
            try:
                values = np.fromfile(vector.path, np.float32)
            except OSError:
                raise BadModelFile(f"cannot read the control vector {vector.path}") from None
            if values.size != size:
                raise ShapeMismatch(f"a control vector of {values.size} values, {size} are needed")
            total += values * np.float32(vector.scale)
        self.set_control_vector(memoryview(total.tobytes()), 1, self._model.layers)

    def set_control_vector(self, data: memoryview, layer_first: int, layer_end: int) -> None:
        """float32 for layers 1, 2, ... one row each; acts on [layer_first, layer_end). Empty data ends it."""
        context, width = self._context.pointer, self._model.columns
        if not data.nbytes:
            L.llama_set_adapter_cvec(context, None, 0, width, 0, 0)
            return
        count = data.nbytes // 4
        if data.nbytes % 4 or count % width or count // width >= self._model.layers:
            raise ShapeMismatch(
                f"a control vector of {data.nbytes} bytes for {self._model.layers} layers of {width}"
            )
        if not 1 <= layer_first < layer_end <= self._model.layers:
            raise ShapeMismatch(f"a control vector for layers [{layer_first}, {layer_end})")
        values = (ctypes.c_float * count).from_buffer_copy(data)
        if L.llama_set_adapter_cvec(context, values, count, width, layer_first, layer_end - 1):
            raise ComputeError("llama.cpp did not take the control vector")
