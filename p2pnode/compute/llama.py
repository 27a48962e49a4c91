"""llama.cpp as objects: a model, its vocabulary, and a context that decodes checked batches.

llama.cpp answers many errors with an abort, so every value is compared with what the model and the
context allow before a call; what reaches llama.cpp from here is in range.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.llama_abi import GGML_TYPE_F16, L, lib
from p2pnode.compute.virtual_file import CookieFile, PieceReader, cookies_supported, joined_file
from p2pnode.compute.watch import EvalCallback
from p2pnode.errors import (
    BadModelFile,
    ComputeError,
    ContextFull,
    EngineIncompatible,
    OutOfMemory,
    RequestError,
    ShapeMismatch,
)
from p2pnode.limits import (
    ENGINE_BATCH_ROWS_MAX,
    ENGINE_CONTEXT_TOKENS_MAX,
    ENGINE_SESSIONS_MAX,
    ENGINE_THREADS_MAX,
    PREFIX_BYTES_MAX,
)

_LOAD_MODES = {"auto": -1, "copy": 0, "mmap": 1, "mlock": 2, "mmap_mlock": 3, "direct": 4}
_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2, "tensor": 3}
_KV_TYPES = {
    "f32": 0,
    "f16": GGML_TYPE_F16,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "bf16": 30,
}
_FLASH = {"auto": -1, "off": 0, "on": 1}
_ROPE_SCALING = {"model": -1, "none": 0, "linear": 1, "yarn": 2, "longrope": 3}
_POOLING = {"model": -1, "none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
_ROPE_TYPES_FOUR_POSITIONS = (8, 40)
"""M-RoPE and interleaved M-RoPE: rows carry four positions each."""
_ROWS_DTYPES, _INPUTS = ("f32", "f16", "bf16", "q8_0"), ("tokens", "rows")
_OUTPUTS, _ROWS_OUT = ("sample", "rows", "embedding", "none"), ("all", "wanted")
_KV_QUANTISED = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")


def _quiet_log(level: int, text: bytes, _data: int) -> None:
    """Warnings and errors to stderr, which the node keeps the end of; the rest is noise."""
    if level in _LOG_LEVELS:
        os.write(2, text)


_LOG_LEVELS = (3, 4)
_log_callback = L.llama_log_callback(_quiet_log)
L.llama_log_set(_log_callback, None)


@dataclass(frozen=True, slots=True)
class TextFacts:
    """Special tokens of a vocabulary; -1 where there is none."""

    bos: int
    eos: int
    adds_bos: bool


class Model:
    """Weights in memory, or a vocabulary alone."""

    def __init__(self, spec: UnitSpec, progress: Callable[[float], bool] | None = None) -> None:
        params = L.llama_model_default_params()
        params.vocab_only = spec.vocab_only
        params.n_gpu_layers = spec.gpu_layers if L.llama_supports_gpu_offload() or spec.rpc_endpoints else 0
        params.main_gpu = spec.main_gpu
        params.split_mode = _SPLIT_MODES[spec.split_mode]
        params.load_mode = _LOAD_MODES[spec.load_mode]
        params.use_extra_bufts = spec.repack
        params.check_tensors = False
        if progress is not None:
            self._progress = L.llama_progress_callback(lambda done, _data: progress(done))
            params.progress_callback = self._progress
        self.devices = _devices(spec)
        if self.devices is not None:
            params.devices = ctypes.cast(self.devices, ctypes.c_void_p)
        self._descriptor: int | None = None
        self._pointer = self._load(spec, params)
        if not self._pointer:
            self._drop_file()
            raise BadModelFile(
                "llama.cpp could not load this model; its own words are in the engine's log",
                hint="the file may be damaged, or of an architecture this llama.cpp does not know",
            )
        self.vocab = L.llama_model_get_vocab(self._pointer)
        self.vocab_tokens = int(L.llama_vocab_n_tokens(self.vocab))
        self.columns = int(L.llama_model_n_embd_inp(self._pointer))
        self.columns_out = int(L.llama_model_n_embd_out(self._pointer))
        self.layers = int(L.llama_model_n_layer(self._pointer))
        self.size_bytes = int(L.llama_model_size(self._pointer))
        self.recurrent = bool(
            L.llama_model_is_recurrent(self._pointer) or L.llama_model_is_hybrid(self._pointer)
        )
        self.positions_per_row = (
            4 if L.llama_model_rope_type(self._pointer) in _ROPE_TYPES_FOUR_POSITIONS else 1
        )
        self.has_text = bool(L.llama_vocab_type(self.vocab))
        """False for a slice without vocabulary: token text calls would abort."""

    def _load(self, spec: UnitSpec, params: Any) -> int | None:
        if spec.model_path is not None:
            if not os.access(spec.model_path, os.R_OK):
                raise BadModelFile(f"cannot read {spec.model_path}")
            return L.llama_model_load_from_file(os.fsencode(spec.model_path), params)  # type: ignore[no-any-return]
        reader = PieceReader(spec.pieces)
        try:
            if cookies_supported() and spec.load_mode in ("auto", "copy", "mlock"):
                params.load_mode = _LOAD_MODES["mlock" if spec.load_mode == "mlock" else "copy"]
                with CookieFile(reader) as file:
                    return L.llama_model_load_from_file_ptr(file, params)  # type: ignore[no-any-return]
            path, self._descriptor = joined_file(reader)
            return L.llama_model_load_from_file(os.fsencode(path), params)  # type: ignore[no-any-return]
        finally:
            reader.close()

    def _drop_file(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def pointer(self) -> int:
        assert self._pointer, "model used after close"
        return self._pointer

    def close(self) -> None:
        if self._pointer:
            L.llama_model_free(self._pointer)
            self._pointer = None
        self._drop_file()

    # facts
    def metadata(self) -> dict[str, str]:
        """Scalar metadata as text (llama.cpp shortens arrays)."""
        values = {}
        for index in range(L.llama_model_meta_count(self.pointer)):
            key = _text(L.llama_model_meta_key_by_index, self.pointer, index)
            values[key] = _text(L.llama_model_meta_val_str_by_index, self.pointer, index)
        return values

    def description(self) -> str:
        return _text(L.llama_model_desc, self.pointer)

    def text_facts(self) -> TextFacts:
        if not self.has_text:
            return TextFacts(-1, -1, adds_bos=False)
        return TextFacts(
            int(L.llama_vocab_bos(self.vocab)),
            int(L.llama_vocab_eos(self.vocab)),
            adds_bos=bool(L.llama_vocab_get_add_bos(self.vocab)),
        )

    def chat_template(self) -> str | None:
        found = L.llama_model_chat_template(self.pointer, None)
        return found.decode("utf-8", "replace") if found else None

    # text
    def _need_text(self) -> None:
        if not self.has_text:
            raise RequestError("this unit has no vocabulary", hint="ask the unit that was loaded with one")

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        self._need_text()
        room = len(text) + 16
        for _ in range(2):
            buffer = (ctypes.c_int32 * room)()
            count = L.llama_tokenize(self.vocab, text, len(text), buffer, room, add_special, parse_special)
            if count >= 0:
                return list(buffer)[:count]
            room = -count
        raise RequestError("this text cannot be tokenised")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; not always whole UTF-8."""
        self._need_text()
        self.check_token(token)
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = L.llama_token_to_piece(self.vocab, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def detokenize(self, tokens: Sequence[int], *, remove_special: bool, unparse_special: bool) -> bytes:
        self._need_text()
        for token in tokens:
            self.check_token(token)
        ids = (ctypes.c_int32 * max(1, len(tokens)))(*tokens)
        room = 16 + 16 * len(tokens)
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = L.llama_detokenize(
                self.vocab, ids, len(tokens), buffer, room, remove_special, unparse_special
            )
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def is_eog(self, token: int) -> bool:
        return bool(L.llama_vocab_is_eog(self.vocab, token))

    def check_token(self, token: int) -> None:
        if not 0 <= token < self.vocab_tokens:
            raise ShapeMismatch(f"token {token}: the vocabulary has {self.vocab_tokens}")


def _text(call: Callable[..., int], *arguments: int) -> str:
    room = 256
    while True:
        buffer = ctypes.create_string_buffer(room)
        size = int(call(*arguments, buffer, room))
        if size < room:
            return buffer.value.decode("utf-8", "replace")
        room = size + 1


def _devices(spec: UnitSpec) -> Any:
    """A NULL-terminated array of RPC devices, or None for llama.cpp's own choice."""
    if not spec.rpc_endpoints:
        return None
    if not L.llama_supports_rpc():
        raise EngineIncompatible("this llama.cpp was built without RPC", hint="run: make setup")
    registry = lib.ggml_backend_reg_by_name(b"RPC")
    address = registry and lib.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_rpc_add_server")
    if not address:
        raise EngineIncompatible("this llama.cpp has no RPC back end", hint="run: make setup")
    add_server = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(address)
    found = []
    for endpoint in spec.rpc_endpoints:
        server = add_server(endpoint.encode())
        if not server:
            raise ComputeError(f"no llama.cpp RPC server answers at {endpoint}")
        lib.ggml_backend_register(server)
        found.append(lib.ggml_backend_reg_dev_get(server, 0))
    return (ctypes.c_void_p * (len(found) + 1))(*found, None)


def check_spec(spec: UnitSpec) -> None:
    """Refuse settings outside the limits or that llama.cpp would abort on."""
    bounds = (
        ("context_tokens", spec.context_tokens, 1, ENGINE_CONTEXT_TOKENS_MAX),
        ("batch_rows", spec.batch_rows, 1, ENGINE_BATCH_ROWS_MAX),
        (
            "sessions_max",
            spec.sessions_max,
            1,
            min(ENGINE_SESSIONS_MAX, int(L.llama_max_parallel_sequences())),
        ),
        ("outputs_max", spec.outputs_max, 0, ENGINE_BATCH_ROWS_MAX),
        ("threads", spec.threads, 0, ENGINE_THREADS_MAX),
        ("threads_batch", spec.threads_batch, 0, ENGINE_THREADS_MAX),
        ("gpu_layers", spec.gpu_layers, -1, 100_000),
        ("main_gpu", spec.main_gpu, 0, 64),
        ("rank", spec.rank, 0, spec.ranks - 1),
        ("prefix_bytes_max", spec.prefix_bytes_max, 0, 2 * PREFIX_BYTES_MAX),
    )
    for name, value, low, high in bounds:
        if not isinstance(value, int) or not low <= value <= high:
            raise RequestError(f"{name} is {value}, must be from {low} to {high}")
    if 0 < spec.outputs_max < spec.sessions_max:
        raise RequestError(f"outputs_max is {spec.outputs_max}, must be 0 or at least one for each session")
    choices = (
        ("load_mode", spec.load_mode, _LOAD_MODES), ("split_mode", spec.split_mode, _SPLIT_MODES),
        ("kv_type_k", spec.kv_type_k, _KV_TYPES), ("kv_type_v", spec.kv_type_v, _KV_TYPES),
        ("flash_attention", spec.flash_attention, _FLASH), ("rope_scaling", spec.rope_scaling, _ROPE_SCALING),
        ("pooling", spec.pooling, _POOLING), ("rows_dtype", spec.rows_dtype, _ROWS_DTYPES),
        ("input", spec.input, _INPUTS), ("output", spec.output, _OUTPUTS), ("rows_out", spec.rows_out, _ROWS_OUT),
    )  # fmt: skip
    for name, choice, known in choices:
        if not isinstance(choice, str) or choice not in known:
            raise RequestError(f"{name} is {choice!r}, must be one of {', '.join(known)}")
    for endpoint in spec.rpc_endpoints:
        if not endpoint.startswith("127.0.0.1:"):
            raise RequestError(f"llama.cpp's RPC is only spoken on loopback, not with {endpoint}")
    if not isinstance(spec.resident_bytes_max, int) or spec.resident_bytes_max < 0:
        raise RequestError("resident_bytes_max must be a number of bytes")
    if (spec.model_path is None) == (not spec.pieces):
        raise RequestError("a unit is either a file or pieces")
    if spec.output == "rows" and not spec.tap:
        raise RequestError("a unit whose output is rows needs the name of its tap")
    if spec.kv_type_v in _KV_QUANTISED and spec.flash_attention == "off":
        raise RequestError("a quantised value cache needs flash attention")


def _pointer(values: NDArray[Any], kind: type[Any]) -> Any:
    return values.ctypes.data_as(ctypes.POINTER(kind))


class Context:
    """A key-value memory and compute buffers for one model."""

    def __init__(self, model: Model, spec: UnitSpec, eval_callback: EvalCallback | None) -> None:
        params = L.llama_context_default_params()
        cpus = os.cpu_count() or 1
        self.batch_rows = min(spec.batch_rows, spec.context_tokens)
        self.outputs_max = self.batch_rows
        if not spec.tap and spec.output != "embedding":
            self.outputs_max = min(self.batch_rows, spec.outputs_max or spec.sessions_max + 8)
        params.n_ctx = spec.context_tokens
        params.n_batch = params.n_ubatch = self.batch_rows
        params.n_seq_max = spec.sessions_max
        params.n_outputs_max = self.outputs_max
        params.n_threads = spec.threads or cpus
        params.n_threads_batch = spec.threads_batch or spec.threads or cpus
        params.flash_attn_type = _FLASH[spec.flash_attention]
        params.type_k, params.type_v = _KV_TYPES[spec.kv_type_k], _KV_TYPES[spec.kv_type_v]
        params.rope_scaling_type = _ROPE_SCALING[spec.rope_scaling]
        params.rope_freq_base, params.rope_freq_scale = spec.rope_freq_base, spec.rope_freq_scale
        params.yarn_ext_factor, params.yarn_attn_factor = spec.yarn_ext_factor, spec.yarn_attn_factor
        params.yarn_beta_fast, params.yarn_beta_slow = spec.yarn_beta_fast, spec.yarn_beta_slow
        params.yarn_orig_ctx = spec.yarn_orig_context
        params.pooling_type = _POOLING[spec.pooling]
        params.embeddings = spec.output == "embedding"
        params.swa_full = spec.swa_full
        params.kv_unified = True
        params.no_perf = True
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

    def copy_prefix(self, source: int, target: int, count: int) -> None:
        L.llama_memory_seq_cp(self.memory, source, target, 0, count)

    def length(self, sequence: int) -> int:
        return int(L.llama_memory_seq_pos_max(self.memory, sequence)) + 1

    def state(self, sequence: int) -> bytearray:
        """The key-value state of one sequence."""
        size = L.llama_state_seq_get_size(self.pointer, sequence)
        blob = bytearray(size)
        target = (ctypes.c_uint8 * size).from_buffer(blob)
        if L.llama_state_seq_get_data(self.pointer, target, size, sequence) != size:
            raise ComputeError("llama.cpp gave a key-value state of another size than it said")
        return blob

    def set_state(self, sequence: int, blob: bytes | bytearray | memoryview) -> None:
        """Take a state that `kv_state.check` found to belong here."""
        source = (ctypes.c_uint8 * len(blob)).from_buffer_copy(blob)
        self.drop(sequence)
        if L.llama_state_seq_set_data(self.pointer, source, len(blob), sequence) != len(blob):
            self.drop(sequence)
            raise ContextFull("the key-value state does not fit into this context")

    def embedding(self, sequence: int, index: int) -> NDArray[np.float32]:
        """Pooled embedding of a sequence of the last batch [D], of row `index` where the model does not pool.

        Length 1; for a model that ranks, its scores.
        """
        if self.pooling == _POOLING["none"]:
            pointer = L.llama_get_embeddings_ith(self.pointer, index)
        else:
            pointer = L.llama_get_embeddings_seq(self.pointer, sequence)
        if not pointer:
            raise ComputeError("this model gives no embedding")
        ranks = self.pooling == _POOLING["rank"]
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
