"""A model of llama.cpp as an object: its weights and its vocabulary.

llama.cpp answers many errors with an abort, so every value is compared with what the model allows before a call;
what reaches llama.cpp from here is in range.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.huge_pages import filled_in_huge_pages
from p2pnode.compute.llama_abi import L, lib
from p2pnode.compute.llama_spec import LOAD_MODES, SPLIT_MODES
from p2pnode.compute.virtual_file import CookieFile, PieceReader, cookies_supported, joined_file
from p2pnode.errors import BadModelFile, ComputeError, EngineIncompatible, RequestError, ShapeMismatch

_ROPE_TYPES_FOUR_POSITIONS = (8, 40)
"""M-RoPE and interleaved M-RoPE: rows carry four positions each."""


def _quiet_log(level: int, text: bytes, _data: int) -> None:
    """Warnings and errors to stderr, which the node keeps the end of; the rest is noise."""
    if level in _LOG_LEVELS:
        os.write(2, text)
    if level == _ERROR:
        _errors.append(text)


_LOG_LEVELS = (3, 4)
_ERROR = 4
_errors: deque[bytes] = deque(maxlen=16)
_WORDS_MAX = 300
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
        params.split_mode = SPLIT_MODES[spec.split_mode]
        params.load_mode = LOAD_MODES[spec.load_mode]
        params.use_extra_bufts = spec.repack
        params.check_tensors = False
        if (progress := filled_in_huge_pages(progress)) is not None:
            self._progress = L.llama_progress_callback(lambda done, _data: progress(done))
            params.progress_callback = self._progress
        self.devices = _devices(spec)
        if self.devices is not None:
            params.devices = ctypes.cast(self.devices, ctypes.c_void_p)
        self._descriptor: int | None = None
        _errors.clear()
        self._pointer: int | None = self._load(spec, params)
        if not self._pointer:
            self._drop_file()
            raise _not_loaded(spec)
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

    def _load(self, spec: UnitSpec, params: Any) -> Any:
        """llama.cpp's pointer, null when it could not load."""
        if spec.model_path is not None:
            if not os.access(spec.model_path, os.R_OK):
                raise BadModelFile(f"cannot read {spec.model_path}")
            return L.llama_model_load_from_file(os.fsencode(spec.model_path), params)
        reader = PieceReader(spec.pieces)
        try:
            if cookies_supported() and spec.load_mode in ("auto", "copy", "mlock"):
                params.load_mode = LOAD_MODES["mlock" if spec.load_mode == "mlock" else "copy"]
                with CookieFile(reader) as file:
                    return L.llama_model_load_from_file_ptr(file, params)
            path, self._descriptor = joined_file(reader)
            return L.llama_model_load_from_file(os.fsencode(path), params)
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


def _not_loaded(spec: UnitSpec) -> BadModelFile:
    """With llama.cpp's own reason, of which it says the cause first."""
    words = next((text.decode("utf-8", "replace").strip() for text in _errors), "it does not say why")
    words = words.rpartition("error loading model: ")[2][:_WORDS_MAX]
    hint = "the file may be damaged, or of an architecture this llama.cpp does not know"
    if spec.split_mode == "tensor":
        hint = "not every architecture is divided by rows: try rpc_split=layer"
    return BadModelFile(f"llama.cpp could not load this model: {words}", hint=hint)


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
