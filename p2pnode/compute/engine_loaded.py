"""A loaded unit: model, context, sessions, and what a frame must be to be computed by it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from p2pnode.compute.engine_gather import Gather
from p2pnode.compute.engine_lead import Lead
from p2pnode.compute.engine_protocol import UnitInfo, UnitSpec
from p2pnode.compute.engine_sessions import Sessions
from p2pnode.compute.engine_step import Step
from p2pnode.compute.llama_adapters import Adapters
from p2pnode.compute.llama_context import Context
from p2pnode.compute.llama_model import Model
from p2pnode.compute.llama_spec import check_spec
from p2pnode.compute.reduce import AllReduce
from p2pnode.compute.tap_test import try_taps
from p2pnode.compute.taps import Taps
from p2pnode.compute.token_table import TokenRows
from p2pnode.compute.untouched import untouched_given_back
from p2pnode.errors import (
    ContextFull,
    RequestError,
    ShapeMismatch,
)
from p2pnode.frame import Frame, Kind, rows_f32, tokens

if TYPE_CHECKING:
    from p2pnode.compute.streamed import LayerStream


def _stream_of(spec: UnitSpec) -> LayerStream:
    from p2pnode.compute.streamed import LayerStream  # brings a GGUF reader that few engines need

    if spec.model_path is None or spec.tap or spec.reduce or spec.gpu_layers:
        raise RequestError("streamed mode is for a whole model in one file, computed by processors")
    return LayerStream(spec.model_path, spec.resident_bytes_max)


class LoadedUnit:
    """What a spec becomes; it computes nothing by itself."""

    def __init__(
        self,
        unit_id: int,
        spec: UnitSpec,
        progress: Callable[[float], bool] | None = None,
    ) -> None:
        started = time.perf_counter()
        check_spec(spec)
        self.unit_id = unit_id
        self.spec = spec
        self.context: Context | None = None
        self.group: AllReduce | None = None
        self._lead: Lead | None = None
        self._table_of_sessions: Sessions | None = None
        self._table: TokenRows | None = None
        self._stream: LayerStream | None = None
        if spec.resident_bytes_max:
            self._stream = _stream_of(spec)
            spec = self.spec = replace(spec, load_mode="mmap", repack=False)
        if self._stream is None:
            self.model = Model(spec, progress)
        else:
            with self._stream.loading() as trimmer:
                self.model = Model(spec, trimmer.told(progress))
        self.spec = replace(spec, pieces=())  # a vocabulary in its header takes megabytes
        try:
            self._prepare(spec)
        except BaseException:
            self.close()
            raise
        self.load_s = time.perf_counter() - started
        self.fingerprint = f"{spec.fingerprint}|{spec.kv_type_k}|{spec.kv_type_v}|{self.model.layers}"
        self._pools = spec.output == "embedding"
        stateless = spec.stateless or self._pools
        self._all_rows = bool(spec.tap) or self._pools
        """Every row goes on to another stage; else only wanted ones leave the last layer."""
        self._table_of_sessions = (
            Sessions(
                self.model,
                self.context,
                spec.sessions_max,
                self.fingerprint,
                stateless=stateless,
                prefix_bytes_max=0 if stateless else spec.prefix_bytes_max,
            )
            if self.context is not None
            else None
        )
        self._waiting: deque[Step] = deque()
        self._unasked: dict[int, Step] = {}
        """Passes begun ahead, by session: waiting for their batch, or computed and held in the last one."""
        self._claimed: deque[Step] = deque()
        """Held ones that were asked for meanwhile: they only have to be sampled."""
        self._freed_late: set[int] = set()
        """Sessions that a follower's node ended; its leader says when."""
        self.relayed: Callable[[Frame, Frame], None] = lambda _received, _sent: None
        """Hears of frames that no node carried."""
        self.gather = Gather()
        self.counters = dict.fromkeys(("decodes", "rows", "sampled", "compute_ns", "tap_ns", "sample_ns"), 0)

    def _prepare(self, spec: UnitSpec) -> None:
        """What computes beside the weights: taps, a context with its adapters, a table of token rows."""
        result_tap = spec.tap if spec.output == "rows" else None
        self._taps = Taps(result_tap, spec.reduce, stop_after_reduce=spec.output == "none")
        if not spec.vocab_only:
            callback = self._stream.callback if self._stream else self._taps.callback
            with untouched_given_back():
                self.context = Context(self.model, spec, callback)
            if self._stream:
                self._stream.start()
            self._adapters = Adapters(self.model, self.context)
            if spec.adapters:
                self._adapters.set(spec.adapters)
            if spec.control_vectors:
                self._adapters.add_control_vectors(spec.control_vectors)
        if spec.token_table is not None:
            self._table = TokenRows(spec.token_table)
        if self.context is not None and self._taps.callback is not None:
            takes_rows = spec.input == "rows" or self._table is not None
            try_taps(self._taps, self.context, self.model.columns if takes_rows else None)

    def info(self) -> UnitInfo:
        model, context = self.model, self.context
        metadata = model.metadata()
        vocab = model.text_facts()
        return UnitInfo(
            unit_id=self.unit_id,
            description=model.description(),
            architecture=metadata.get("general.architecture", ""),
            layers=model.layers,
            columns=model.columns,
            vocab_tokens=model.vocab_tokens,
            context_tokens=self.spec.context_tokens if context else 0,
            session_tokens=context.session_tokens if context else 0,
            sessions_max=self.spec.sessions_max,
            batch_rows=context.batch_rows if context else 0,
            model_bytes=model.size_bytes,
            rollback=not model.recurrent,
            load_s=self.load_s,
            bos=vocab.bos,
            eos=vocab.eos,
            adds_bos=vocab.adds_bos,
            chat_template=model.chat_template(),
            fingerprint=self.fingerprint,
            metadata={key: value for key, value in metadata.items() if len(value) <= 4096},
        )

    def stats(self) -> dict[str, Any]:
        return {
            **self.counters,
            "waiting": len(self._waiting),
            "sessions": len(self.sessions) if self.context else 0,
            "positions": self.sessions.positions if self.context else 0,
        }

    def close(self) -> None:
        if self.group is not None:
            self.group.close()
            self.group = None
        if self._table_of_sessions is not None:
            self._table_of_sessions.close()
        if self._table is not None:
            self._table.close()
            self._table = None
        if self.context is not None:
            self.context.close()
            self.context = None
        self.model.close()

    @property
    def sessions(self) -> Sessions:
        if self._table_of_sessions is None:
            raise RequestError("this unit is a vocabulary: it computes nothing")
        return self._table_of_sessions

    @property
    def adapters(self) -> Adapters:
        self._context()
        return self._adapters

    def _context(self) -> Context:
        if self.context is None:
            raise RequestError("this unit is a vocabulary: it computes nothing")
        return self.context

    def _checked(self, call: int, frame: Frame, *, sample: bool, ahead: bool) -> Step:
        context = self._context()
        if self.spec.reduce and self.group is None:
            raise RequestError("this shard has no way to its other ranks yet")
        if not frame.rows:
            raise ShapeMismatch("a step without rows")
        if frame.position_first < 0 or not 0 <= frame.wanted_first <= frame.rows:
            raise ShapeMismatch(
                f"rows at {frame.position_first}, wanted from {frame.wanted_first} of {frame.rows}"
            )
        if sample and self.spec.output != "sample":
            raise RequestError("this unit gives rows, it cannot sample")
        if self._pools and frame.rows > context.batch_rows:
            raise ContextFull(
                f"{frame.rows} tokens to embed, this unit was loaded for {context.batch_rows} at once"
            )
        if sample and frame.wanted > context.outputs_max:
            raise ShapeMismatch(f"{frame.wanted} rows wanted at once, at most {context.outputs_max}")
        ids, rows = self._input(frame)
        draft = frame.meta.get("draft", ())
        if not isinstance(draft, list | tuple) or not all(isinstance(token, int) for token in draft):
            raise ShapeMismatch("a draft that is not a list of token ids")
        return Step(call, frame, sample, ids, rows, draft, time.perf_counter_ns(), ahead=ahead)

    def _input(self, frame: Frame) -> tuple[list[int] | None, NDArray[np.float32] | None]:
        if frame.kind is Kind.TOKENS:
            ids = tokens(frame)
            if len(ids) != frame.rows:
                raise ShapeMismatch(f"{len(ids)} token ids in a frame of {frame.rows} rows")
            if self._table is not None:
                return None, self._scaled(self._table.lookup(ids))
            if self.spec.input != "tokens":
                raise ShapeMismatch("this unit takes rows, not token ids")
            if min(ids) < 0 or max(ids) >= self.model.vocab_tokens:
                raise ShapeMismatch(f"token ids outside the vocabulary of {self.model.vocab_tokens}")
            return ids, None
        if frame.kind is not Kind.ROWS or self.spec.input != "rows":
            raise ShapeMismatch("this unit takes token ids, not rows")
        if frame.columns != self.model.columns:
            raise ShapeMismatch(f"rows of {frame.columns} columns for a model {self.model.columns} wide")
        rows = self._scaled(rows_f32(frame))
        if not np.isfinite(rows).all():
            raise ShapeMismatch("rows with values that are not finite")
        return None, rows

    def _scaled(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        scale = self.spec.input_scale
        # Divided, not multiplied: llama.cpp multiplies by the inverse again, and the pair should cancel best.
        return rows if scale == 1.0 else rows / np.float32(1.0 / scale)
