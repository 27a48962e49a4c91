"""Taps: stop llama.cpp at a named tensor, read it, and for partial sums write the whole sum back.

The result tap ends the computation after its tensor: what would follow (norm, output matrix) belongs to
another stage. A Python error cannot cross llama.cpp's frames, so it is kept and raised after the decode.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from p2pnode.compute.llama_abi import (
    GGML_TYPE_F32,
    L,
    lib,
    source_name,
    tensor_name,
    tensor_shape,
    tensor_type,
)
from p2pnode.errors import EngineIncompatible


class Reducer(Protocol):
    """Sums a partial result over all ranks, in place, the same bits on each of them."""

    def reduce(self, values: NDArray[np.float32]) -> None: ...


class Taps:
    """The eval callback of one context."""

    def __init__(self, result: str | None, reduce: Sequence[str], reducer: Reducer | None) -> None:
        self._result = result.encode() if result else None
        self._weights = frozenset(name.encode() for name in reduce if name.startswith("blk."))
        """Weights whose product is a partial sum: some graphs give that product no name."""
        self._names = frozenset(name.encode() for name in reduce if not name.startswith("blk."))
        self._names |= {self._result} if self._result else set()
        self._reducer = reducer
        self._buffers: dict[tuple[int, int], NDArray[np.float32]] = {}
        self.rows: list[NDArray[np.float32]] = []
        """What the result tap read in this decode, one array per micro-batch."""
        self.spent_ns = 0
        self.calls = 0
        self.error: BaseException | None = None
        self.callback = (
            L.ggml_backend_sched_eval_callback(self._call) if self._names or self._weights else None
        )

    def start(self) -> None:
        """Forget the last decode."""
        self.rows = []
        self.spent_ns = self.calls = 0
        self.error = None

    def finish(self) -> None:
        """Raise what went wrong inside llama.cpp."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def _call(self, tensor: int, ask: bool, _data: Any) -> bool:
        if ask:
            named = tensor_name(tensor) in self._names
            return named or (bool(self._weights) and source_name(tensor) in self._weights)
        started = time.perf_counter_ns()
        try:
            name = tensor_name(tensor)
            if name == self._result:
                self.rows.append(self._read(tensor, None))
                return False
            self._reduce_in_place(tensor)
        except BaseException as exc:
            self.error = exc
            return False
        finally:
            self.calls += 1
            self.spent_ns += time.perf_counter_ns() - started
        return True

    def _read(self, tensor: int, target: NDArray[np.float32] | None) -> NDArray[np.float32]:
        columns, rows, depth, _ = tensor_shape(tensor)
        if tensor_type(tensor) != GGML_TYPE_F32 or depth != 1:
            raise EngineIncompatible(f"the tapped tensor {tensor_name(tensor)!r} is not a float32 matrix")
        if target is None:
            target = np.empty((rows, columns), np.float32)
        if lib.ggml_nbytes(tensor) != target.nbytes:
            raise EngineIncompatible(f"the tapped tensor {tensor_name(tensor)!r} is not contiguous")
        lib.ggml_backend_tensor_get(tensor, target.ctypes.data, 0, target.nbytes)
        return target

    def _reduce_in_place(self, tensor: int) -> None:
        assert self._reducer is not None, "a shard without a channel to its other ranks"
        columns, rows, _, _ = tensor_shape(tensor)
        buffer = self._buffers.get((rows, columns))
        if buffer is None:
            if len(self._buffers) > 8:
                self._buffers.clear()
            buffer = self._buffers[rows, columns] = np.empty((rows, columns), np.float32)
        self._read(tensor, buffer)
        self._reducer.reduce(buffer)
        lib.ggml_backend_tensor_set(tensor, buffer.ctypes.data, 0, buffer.nbytes)
