"""llama.cpp by ctypes, as little as a comparison of logits needs: one file, one context, taps."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np

from p2pnode.compute.gguf import ModelIndex, join, parse
from p2pnode.compute.part import Cut, ReadAt, VirtualFile

_NE, _SOURCE, _NAME, _NAME_BYTES = 16, 152, 256, 64
_lib = llama._lib
_lib.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
_lib.ggml_backend_tensor_get.restype = None
_lib.ggml_backend_tensor_set.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
_lib.ggml_backend_tensor_set.restype = None
_lib.ggml_nbytes.argtypes = [ctypes.c_void_p]
_lib.ggml_nbytes.restype = ctypes.c_size_t

Reduce = Callable[[str, np.ndarray], np.ndarray]
log_lines: list[str] = []


@llama.llama_log_callback
def _log(level: int, text: bytes, user: object) -> None:
    if level in (3, 4):
        log_lines.append(text.decode(errors="replace"))


llama.llama_log_set(_log, None)
llama.llama_backend_init()


def _name(tensor: int) -> str:
    return ctypes.string_at(tensor + _NAME, _NAME_BYTES).split(b"\0", 1)[0].decode()


def _source_name(tensor: int) -> str:
    source = ctypes.c_uint64.from_address(tensor + _SOURCE).value
    return _name(source) if source else ""


def _rows(tensor: int) -> np.ndarray:
    sizes = (ctypes.c_int64 * 4).from_address(tensor + _NE)
    out = np.empty(_lib.ggml_nbytes(tensor) // 4, np.float32)
    _lib.ggml_backend_tensor_get(tensor, out.ctypes.data, 0, out.nbytes)
    return out.reshape(-1, sizes[0])


class Engine:
    """One loaded file. `decode` returns logits or tapped rows, one per token."""

    def __init__(
        self,
        data: bytes,
        *,
        tap: str | None = None,
        row_scale: float = 1.0,
        positions: int = 1,
        reduce_names: Sequence[str] = (),
        reduce: Reduce | None = None,
        context: int = 256,
        sequences: int = 4,
    ) -> None:
        self._tap, self._scale, self._positions = tap, row_scale, positions
        self._reduce_weights = frozenset(name for name in reduce_names if name.startswith("blk."))
        self._reduce_names, self._reduce = frozenset(reduce_names) - self._reduce_weights, reduce
        self._rows: list[np.ndarray] = []
        descriptor = os.memfd_create("toy")
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(data)
            parameters = llama.llama_model_default_params()
            parameters.n_gpu_layers = 0
            log_lines.clear()
            self._model = llama.llama_model_load_from_file(f"/proc/self/fd/{descriptor}".encode(), parameters)
        finally:
            os.close(descriptor)
        assert self._model, "".join(log_lines)
        options = llama.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, 64, 64
        options.n_threads = options.n_threads_batch = 1
        options.n_seq_max, options.kv_unified, options.swa_full = sequences, True, True
        options.flash_attn_type = 1
        if tap is not None or reduce is not None:
            self._callback = llama.ggml_backend_sched_eval_callback(self._on_tensor)
            options.cb_eval = self._callback
        self._context = llama.llama_init_from_model(self._model, options)
        assert self._context, "".join(log_lines)
        self.width = llama.llama_model_n_embd(self._model)
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))

    def _on_tensor(self, tensor: int, ask: bool, user: object) -> bool:
        name = _name(tensor)
        if ask:
            return (
                name == self._tap
                or name in self._reduce_names
                or _source_name(tensor) in self._reduce_weights
            )
        rows = _rows(tensor)
        if name != self._tap:
            assert self._reduce is not None
            total = np.ascontiguousarray(self._reduce(name, rows), np.float32)
            _lib.ggml_backend_tensor_set(tensor, total.ctypes.data, 0, total.nbytes)
            return True
        self._rows.append(rows.copy())
        return False

    def decode(
        self,
        positions: Sequence[int],
        *,
        tokens: Sequence[int] | None = None,
        rows: np.ndarray | None = None,
        sequences: Sequence[int] | None = None,
    ) -> np.ndarray:
        count = len(positions)
        batch = llama.llama_batch()
        batch.n_tokens = count
        keep: list[object] = []

        def pointer(data: ctypes.Array, kind: type) -> object:  # type: ignore[type-arg]
            keep.append(data)
            return ctypes.cast(data, ctypes.POINTER(kind))

        places = list(positions)
        if tokens is not None:
            batch.token = pointer((ctypes.c_int32 * count)(*tokens), ctypes.c_int32)
        else:
            assert rows is not None
            scaled = np.ascontiguousarray(rows / np.float32(self._scale), np.float32)
            keep.append(scaled)
            batch.embd = scaled.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            if self._positions == 4:
                places = places * 3 + [0] * count
        batch.pos = pointer((ctypes.c_int32 * len(places))(*places), ctypes.c_int32)
        batch.n_seq_id = pointer((ctypes.c_int32 * count)(*[1] * count), ctypes.c_int32)
        ids = [(ctypes.c_int32 * 1)(each) for each in sequences or [0] * count]
        keep.append(ids)
        batch.seq_id = pointer(
            (ctypes.POINTER(ctypes.c_int32) * count)(
                *[ctypes.cast(x, ctypes.POINTER(ctypes.c_int32)) for x in ids]
            ),
            ctypes.POINTER(ctypes.c_int32),
        )
        batch.logits = pointer((ctypes.c_int8 * count)(*[1] * count), ctypes.c_int8)
        self._rows.clear()
        code = llama.llama_decode(self._context, batch)
        assert code == 0, f"llama_decode answered {code}"
        if self._tap is not None:
            return np.concatenate(self._rows)
        values = llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(values, shape=(count, self.vocabulary)).copy()

    def forget(self, sequence: int, first: int) -> bool:
        """Drop what is at and after a position."""
        memory = llama.llama_get_memory(self._context)
        return bool(llama.llama_memory_seq_rm(memory, sequence, first, -1))

    def adapt(self, data: bytes, scale: float = 1.0) -> None:
        """Switch a LoRA adapter on."""
        descriptor = os.memfd_create("adapter")
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(data)
            log_lines.clear()
            adapter = llama.llama_adapter_lora_init(self._model, f"/proc/self/fd/{descriptor}".encode())
        finally:
            os.close(descriptor)
        assert adapter, "".join(log_lines)
        adapters = (llama.llama_adapter_lora_p_ctypes * 1)(adapter)
        assert llama.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(scale)) == 0

    def close(self) -> None:
        if self._context:
            llama.llama_free(self._context)
            llama.llama_model_free(self._model)
            self._context = None


def index_of(data: bytes) -> ModelIndex:
    return join([parse(data)])


def reader_of(*files: bytes) -> ReadAt:
    def read(file: int, offset: int, size: int) -> bytes:
        data = files[file][offset : offset + size]
        assert len(data) == size
        return data

    return read


def materialise(cut: VirtualFile, *files: bytes) -> bytes:
    """The cut as real bytes."""
    return b"".join(cut.reader(reader_of(*files)).chunks())


def engine_for(cut: Cut, *files: bytes, reduce: Reduce | None = None, context: int = 256) -> Engine:
    facts = cut.facts
    return Engine(
        materialise(cut, *files),
        tap=facts.tap,
        row_scale=facts.row_scale,
        positions=facts.positions,
        reduce_names=facts.reduce,
        reduce=reduce,
        context=context,
    )


def read_file(path: Path) -> bytes:
    return path.read_bytes()
