"""A context of llama.cpp as an object: a key-value memory that decodes checked batches.

As in `llama_model`, what reaches llama.cpp from here is in range: it would abort.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pnode.compute.engine_protocol import Buffer, UnitSpec
from p2pnode.compute.llama_abi import L
from p2pnode.compute.llama_model import Model
from p2pnode.compute.llama_spec import FLASH, KV_TYPES, POOLING, ROPE_SCALING
from p2pnode.compute.watch import EvalCallback
from p2pnode.errors import ComputeError, ContextFull, OutOfMemory
from p2pnode.heap import own_pages


def _pointer(values: NDArray[Any], kind: type[Any]) -> Any:
    return values.ctypes.data_as(ctypes.POINTER(kind))


def _parameters(spec: UnitSpec, batch_rows: int, outputs_max: int) -> Any:
    params = L.llama_context_default_params()
    cpus = os.cpu_count() or 1
    params.n_ctx = spec.context_tokens
    params.n_batch = params.n_ubatch = batch_rows
    params.n_seq_max = spec.sessions_max
    params.n_outputs_max = outputs_max
    params.n_threads = spec.threads or cpus
    params.n_threads_batch = spec.threads_batch or spec.threads or cpus
    params.flash_attn_type = FLASH[spec.flash_attention]
    params.type_k, params.type_v = KV_TYPES[spec.kv_type_k], KV_TYPES[spec.kv_type_v]
    params.rope_scaling_type = ROPE_SCALING[spec.rope_scaling]
    params.rope_freq_base, params.rope_freq_scale = spec.rope_freq_base, spec.rope_freq_scale
    params.yarn_ext_factor, params.yarn_attn_factor = spec.yarn_ext_factor, spec.yarn_attn_factor
    params.yarn_beta_fast, params.yarn_beta_slow = spec.yarn_beta_fast, spec.yarn_beta_slow
    params.yarn_orig_ctx = spec.yarn_orig_context
    params.pooling_type = POOLING[spec.pooling]
    params.embeddings = spec.output == "embedding"
    params.swa_full = spec.swa_full
    params.kv_unified = True
    params.no_perf = True
    return params


class Context:
    """A key-value memory and compute buffers for one model."""

    def __init__(self, model: Model, spec: UnitSpec, eval_callback: EvalCallback | None) -> None:
        self.batch_rows = min(spec.batch_rows, spec.context_tokens)
        self.outputs_max = self.batch_rows
        if not spec.tap and spec.output != "embedding":
            self.outputs_max = min(self.batch_rows, spec.outputs_max or spec.sessions_max + 8)
        params = _parameters(spec, self.batch_rows, self.outputs_max)
        if eval_callback is not None:
            params.cb_eval = eval_callback.function
            params.cb_eval_user_data = eval_callback.data
        self._callback = eval_callback
        self._model = model
        self._pointer = L.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            raise OutOfMemory(
                "llama.cpp could not make a context: not enough memory, or settings this model does not allow",
                hint="lower context_tokens or sessions_max",
            )
        self.memory = L.llama_get_memory(self._pointer)
        self.session_tokens = int(L.llama_n_ctx_seq(self._pointer))
        self.pooling = int(L.llama_pooling_type(self._pointer))
        rows = self.batch_rows
        self.tokens = np.zeros(rows, np.int32)
        self.positions = np.zeros(rows * model.positions_per_row, np.int32)
        self.sequences = np.zeros(rows, np.int32)
        self.wanted = np.zeros(rows, np.int8)
        self._sequence_counts = np.ones(rows, np.int32)
        stride, base = self.sequences.itemsize, self.sequences.ctypes.data
        self._sequence_pointers = (ctypes.POINTER(ctypes.c_int32) * rows)(
            *(ctypes.cast(base + index * stride, ctypes.POINTER(ctypes.c_int32)) for index in range(rows))
        )
        self._ids = _pointer(self.tokens, ctypes.c_int32)
        self._batch = L.llama_batch()  # filled once: pointers cost microseconds each, every token
        self._batch.pos = _pointer(self.positions, ctypes.c_int32)
        self._batch.n_seq_id = _pointer(self._sequence_counts, ctypes.c_int32)
        self._batch.seq_id = ctypes.cast(
            self._sequence_pointers, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))
        )
        self._batch.logits = _pointer(self.wanted, ctypes.c_int8)

    @property
    def pointer(self) -> int:
        assert self._pointer, "context used after close"
        return int(self._pointer)

    def close(self) -> None:
        if self._pointer:
            L.llama_free(self._pointer)
            self._pointer = None

    def decode(self, count: int, rows: NDArray[np.float32] | None) -> bool:
        """Run the first `count` entries of the batch arrays; False when the memory has no room.

        With `rows` [S, D] these are the input, else `tokens`.
        """
        assert 0 < count <= self.batch_rows
        batch = self._batch
        batch.n_tokens = count
        if rows is None:
            batch.token, batch.embd = self._ids, None
        else:
            assert rows.shape == (count, self._model.columns)
            assert rows.dtype == np.float32
            assert rows.flags.c_contiguous
            batch.token, batch.embd = None, _pointer(rows, ctypes.c_float)
            if self._model.positions_per_row == 4:
                first = self.positions[:count].copy()
                self.positions[: 4 * count] = np.concatenate([first, first, first, np.zeros_like(first)])
        result = L.llama_decode(self.pointer, batch)
        if result == 1:
            return False
        if result:
            raise ComputeError(f"llama.cpp could not compute a batch of {count} rows (code {result})")
        return True

    # memory
    def drop_from(self, sequence: int, position: int) -> bool:
        """Forget positions from `position` on; False when this memory cannot."""
        return bool(L.llama_memory_seq_rm(self.memory, sequence, position, -1))

    def drop(self, sequence: int) -> None:
        L.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    def forget_all(self) -> None:
        """As it was when it was made; what is behind the positions is never read."""
        L.llama_memory_clear(self.memory, False)

    def copy_prefix(self, source: int, target: int, count: int) -> None:
        L.llama_memory_seq_cp(self.memory, source, target, 0, count)

    def length(self, sequence: int) -> int:
        return int(L.llama_memory_seq_pos_max(self.memory, sequence)) + 1

    def state(self, sequence: int) -> memoryview:
        """The key-value state of one sequence."""
        size = L.llama_state_seq_get_size(self.pointer, sequence)
        blob = own_pages(size)
        target = (ctypes.c_uint8 * size).from_buffer(blob)
        if L.llama_state_seq_get_data(self.pointer, target, size, sequence) != size:
            raise ComputeError("llama.cpp gave a key-value state of another size than it said")
        return blob

    def set_state(self, sequence: int, blob: Buffer) -> None:
        """Take a state that `kv_state.check` found to belong here."""
        size = len(blob)
        source = np.frombuffer(blob, np.uint8).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        self.drop(sequence)
        if L.llama_state_seq_set_data(self.pointer, source, size, sequence) != size:
            self.drop(sequence)
            raise ContextFull("the key-value state does not fit into this context")

    def embedding(self, sequence: int, index: int) -> NDArray[np.float32]:
        """Pooled embedding of a sequence of the last batch [D], of row `index` where the model does not pool.

        Length 1; for a model that ranks, its scores.
        """
        if self.pooling == POOLING["none"]:
            pointer = L.llama_get_embeddings_ith(self.pointer, index)
        else:
            pointer = L.llama_get_embeddings_seq(self.pointer, sequence)
        if not pointer:
            raise ComputeError("this model gives no embedding")
        ranks = self.pooling == POOLING["rank"]
        width = int(L.llama_model_n_cls_out(self._model.pointer)) if ranks else self._model.columns_out
        values: NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(width,)).copy()
        if ranks:
            return values
        norm = float(np.sqrt(np.dot(values, values)))
        if norm > 0:
            values /= np.float32(norm)
        return values

    def logits(self, index: int) -> NDArray[np.float32]:
        """Row `index` of the last batch [V], a view until the next decode."""
        pointer = L.llama_get_logits_ith(self.pointer, index)
        assert pointer, "logits asked for a row that was not wanted"
        return np.ctypeslib.as_array(pointer, shape=(self._model.vocab_tokens,))
