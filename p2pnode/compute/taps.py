"""Taps: stop llama.cpp at a named tensor, read it, and for partial sums write the whole sum back.

The result tap ends the computation after its tensor: what would follow (norm, output matrix) belongs to
another stage. A Python error cannot cross llama.cpp's frames, so it is kept and raised after the decode.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from p2pnode.compute.llama_abi import (
    GGML_TYPE_F32,
    KNOWN_VERSION,
    lib,
    tensor_name,
    tensor_shape,
    tensor_type,
)
from p2pnode.compute.watch import watch
from p2pnode.errors import EngineIncompatible


class Reducer(Protocol):
    """Sums a partial result over all ranks, in place, the same bits on each of them."""

    def reduce(self, values: NDArray[np.float32]) -> None: ...


class Taps:
    """The eval callback of one context.

    `reduce` names partial sums in order of computation: a weight (`blk.N....`), whose product is meant, or a
    tensor by its own name. With `stop_after_reduce` nothing behind the last of them is computed.
    """

    def __init__(self, result: str | None, reduce: Sequence[str], *, stop_after_reduce: bool = False) -> None:
        self._result = result.encode() if result else None
        weights = frozenset(name.encode() for name in reduce if name.startswith("blk."))
        names = frozenset(name.encode() for name in reduce) - weights
        if self._result:
            names |= {self._result}
        self._expected = len(reduce)
        self._stop_after = len(reduce) if stop_after_reduce else -1
        self._reduced = 0
        self._buffers: dict[tuple[int, int], NDArray[np.float32]] = {}
        self.reducer: Reducer | None = None
        self.rows: list[NDArray[np.float32]] = []
        """What the result tap read in this decode, one array per micro-batch."""
        self.spent_ns = 0
        self.error: BaseException | None = None
        self.callback = watch(names, weights, self._take) if names or weights else None

    def start(self) -> None:
        """Forget the last decode."""
        self.rows = []
        self.spent_ns = self._reduced = 0
        self.error = None

    def finish(self) -> None:
        """Raise what went wrong inside llama.cpp, and whatever was not found there."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self._reduced != self._expected:
            raise EngineIncompatible(
                f"{self._reduced} of {self._expected} partial sums were found in llama.cpp's graph",
                hint=f"this llama.cpp builds this architecture differently: {KNOWN_VERSION}",
            )

    def check(self, rows: int) -> None:
        """Raise when the result tap did not read so many of them."""
        read = sum(map(len, self.rows))
        if self._result is not None and read != rows:
            raise EngineIncompatible(
                f"the tap {self._result.decode()!r} gave {read} of {rows} rows",
                hint=f"this llama.cpp names its tensors differently: {KNOWN_VERSION}",
            )

    def _take(self, tensor: int) -> bool:
        """A tapped tensor is computed; whether to go on."""
        started = time.perf_counter_ns()
        try:
            if tensor_name(tensor) == self._result:
                self.rows.append(self._read(tensor, None))
                return False
            self._reduce_in_place(tensor)
            self._reduced += 1
        except BaseException as exc:
            self.error = exc
            return False
        finally:
            self.spent_ns += time.perf_counter_ns() - started
        return self._reduced != self._stop_after

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
        assert self.reducer is not None, "a shard without a channel to its other ranks"
        columns, rows, _, _ = tensor_shape(tensor)
        buffer = self._buffers.get((rows, columns))
        if buffer is None:
            if len(self._buffers) > 8:
                self._buffers.clear()
            buffer = self._buffers[rows, columns] = np.empty((rows, columns), np.float32)
        self._read(tensor, buffer)
        self.reducer.reduce(buffer)
        lib.ggml_backend_tensor_set(tensor, buffer.ctypes.data, 0, buffer.nbytes)
