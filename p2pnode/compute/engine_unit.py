"""A loaded unit: sessions, waiting frames, and batches of several sessions in one decode."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from p2pnode.compute.engine_gather import Gather
from p2pnode.compute.engine_lead import Lead, Part, find
from p2pnode.compute.engine_protocol import UnitInfo, UnitSpec
from p2pnode.compute.engine_sessions import Sessions
from p2pnode.compute.engine_step import Reply, Step
from p2pnode.compute.llama import Context, Model, check_spec
from p2pnode.compute.llama_adapters import Adapters
from p2pnode.compute.reduce import AllReduce
from p2pnode.compute.taps import Taps
from p2pnode.compute.token_table import TokenRows
from p2pnode.errors import (
    Busy,
    Cancelled,
    ContextFull,
    EngineIncompatible,
    P2PNodeError,
    RequestError,
    SessionLost,
    ShapeMismatch,
)
from p2pnode.frame import DType, Frame, Kind, pack_rows, pack_tokens, rows_f32, tokens

if TYPE_CHECKING:
    from p2pnode.compute.streamed import LayerStream

_ROWS_OF_DECODING = 8
"""Steps of more rows are prompts: they fill a batch by themselves."""
_DTYPES = {"f32": DType.F32, "f16": DType.F16, "bf16": DType.BF16, "q8_0": DType.Q8_0}


def _stream_of(spec: UnitSpec) -> LayerStream:
    from p2pnode.compute.streamed import LayerStream  # brings a GGUF reader that few engines need

    if spec.model_path is None or spec.tap or spec.reduce or spec.gpu_layers:
        raise RequestError("streamed mode is for a whole model in one file, computed by processors")
    return LayerStream(spec.model_path, spec.resident_bytes_max)


class Unit:
    """Model, context and everything that waits for them; driven by `run_batch`."""

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
        with self._stream.loading() if self._stream else nullcontext():
            self.model = Model(spec, progress)
        try:
            result_tap = spec.tap if spec.output == "rows" else None
            self._taps = Taps(result_tap, spec.reduce, stop_after_reduce=spec.output == "none")
            if not spec.vocab_only:
                callback = self._stream.callback if self._stream else self._taps.callback
                self.context = Context(self.model, spec, callback)
                if self._stream:
                    self._stream.start()
                self._adapters = Adapters(self.model, self.context)
                if spec.adapters:
                    self._adapters.set(spec.adapters)
            if spec.token_table is not None:
                self._table = TokenRows(spec.token_table)
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

    # facts
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

    @property
    def waiting(self) -> bool:
        if self._lead is not None and self._lead.follows:
            return self._lead.ready(self._waiting)
        return bool(self._waiting or self._claimed)

    @property
    def waiting_count(self) -> int:
        return len(self._waiting) + len(self._claimed)

    def may_grow(self) -> bool:
        """Whether the next batch would be better for sessions that are not waiting yet."""
        if (
            self._claimed
            or self.spec.rank > 0
            or any(step.remaining > _ROWS_OF_DECODING for step in self._waiting)
        ):
            return False
        return self.gather.missing({step.frame.session for step in self._waiting})

    def join_group(self, group: AllReduce) -> None:
        """The ways to the other ranks; replaces a group that broke."""
        if group.ranks != self.spec.ranks or not self.spec.reduce:
            group.close()
            raise RequestError(f"a group of {group.ranks} for a unit of {self.spec.ranks} ranks")
        if self.group is not None:
            self.group.close()
        self.group = self._taps.reducer = group
        self._lead = Lead(self.spec.rank, group)
        for session_id in self._freed_late:
            self.sessions.free(session_id)
        self._freed_late.clear()

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

    # sessions
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

    def free_session(self, session_id: int) -> Iterator[Reply]:
        """Forget a session; steps still waiting are answered as cancelled."""
        if self.spec.rank > 0 and self.group is not None and self.group.broken is None:
            self._freed_late.add(session_id)
            return
        if self.spec.ranks > 1 and any(step.frame.session == session_id for step in self._waiting):
            raise Busy("steps of this session are under way on all ranks", hint="free it after their answers")
        yield from self.cancel(session_id)
        self.sessions.free(session_id)
        self.gather.forget(session_id)
        if self._lead is not None:
            self._lead.order("free", session_id)

    def arrange(self, name: str, *numbers: int) -> int:
        """Keep, reuse or forget a prefix; followers do it when their leader did, between the same batches."""
        if self._lead is not None and self._lead.follows and self._lead.group.broken is None:
            return 0
        result = self._arrange(name, *numbers)
        if self._lead is not None:
            self._lead.order(name, *numbers)
        return result

    def _arrange(self, name: str, *numbers: int) -> int:
        if name in ("keep", "reuse"):
            self.settle(numbers[0])
        match name, numbers:
            case "keep", (session, count):
                return self.sessions.keep_prefix(session, count)
            case "reuse", (session, prefix, count):
                self.sessions.reuse_prefix(session, prefix, count)
            case "forget", (prefix,):
                self.sessions.forget_prefix(prefix)
            case "free", (session,):
                self.sessions.free(session)
                self._freed_late.discard(session)
            case _:
                raise RequestError(f"no arrangement {name} of {len(numbers)} numbers")
        return 0

    def cancel(self, session_id: int) -> Iterator[Reply]:
        """Answer the waiting steps of a session as cancelled; what it holds stays.

        Ranks of a group would disagree about what was still waiting: they compute everything.
        """
        self.settle(session_id)
        if self.spec.ranks > 1:
            return
        for queue in (self._waiting, self._claimed):
            for step in [step for step in queue if step.frame.session == session_id]:
                queue.remove(step)
                yield step.failed(Cancelled("the step was cancelled"))

    def cancel_all(self) -> Iterator[Reply]:
        for session_id in list(self._unasked):
            self._forget_unasked(session_id)
        while self._waiting or self._claimed:
            step = (self._waiting or self._claimed).popleft()
            yield step.failed(Cancelled("the unit was unloaded"))

    # steps
    def submit(
        self,
        call: int,
        frame: Frame,
        *,
        sample: bool,
        ahead: bool = False,
        then: Callable[[Reply], None] | None = None,
        go_on: Callable[[Step], None] | None = None,
        unasked: bool = False,
    ) -> Step:
        """Check a frame and let it wait; raises what is wrong with it.

        With `ahead` the pass over the sampled token begins at once, and waits for a frame that asks for it.
        An `unasked` frame is computed and held until it is claimed.
        """
        begun = self._unasked.get(frame.session)
        if begun is not None and sample and begun.is_over(frame) and self.claim(begun, call, ahead=ahead):
            return begun
        self._forget_unasked(frame.session)
        step = self._checked(call, frame, sample=sample, ahead=ahead)
        step.then, step.go_on, step.unasked = then, go_on, unasked
        if unasked:
            step.sample = False
            self._unasked[frame.session] = step
        self._waiting.append(step)
        return step

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

    # going ahead
    def _go_ahead(self, step: Step) -> None:
        """Begin the pass over the token that was just sampled: its asker only has to hear of it and to agree."""
        assert step.session is not None
        token, position = step.sampled[-1], step.session.length
        if token.is_eog or step.refused:
            return
        if step.go_on is not None:
            step.go_on(step)
            return
        alone = self.model.recurrent or self.spec.ranks > 1  # they cannot go back, or not without each other
        if alone or position >= self._context().session_tokens:
            return
        self.submit(
            0,
            Frame(
                Kind.TOKENS, DType.I32, 1, 1, step.frame.session, pack_tokens([token.token]),
                step.frame.epoch, position,
            ),
            sample=True,
            unasked=True,
        )  # fmt: skip

    def claim(self, begun: Step, call: int, *, ahead: bool) -> bool:
        """A pass begun ahead is asked for: its answer comes when it is there. False when its result is gone."""
        if begun.is_gone:
            return False
        del self._unasked[begun.frame.session]
        begun.call, begun.sample, begun.ahead, begun.unasked = call, True, ahead, False
        begun.arrived_ns = begun.began_ns = time.perf_counter_ns()
        if begun.row >= 0:
            self._claimed.append(begun)
        return True

    def _forget_unasked(self, session_id: int) -> bool:
        """Nobody will ask for it; whether its position is held in the session."""
        begun = self._unasked.pop(session_id, None)
        if begun is None:
            return False
        begun.is_gone = True
        if begun in self._waiting:
            self._waiting.remove(begun)
        return begun.done > 0

    def settle(self, session_id: int) -> None:
        """Let the session hold what was asked for and no more."""
        if self._forget_unasked(session_id):
            self.sessions.take_back(session_id, 1)

    def settle_all(self) -> None:
        """What was computed ahead is not what would be computed from now on."""
        for session_id in list(self._unasked):
            self.settle(session_id)

    def _answer_claimed(self) -> Iterator[Reply]:
        """Before another batch overwrites what they are sampled from."""
        while self._claimed:
            step = self._claimed.popleft()
            assert step.session is not None
            self._sample(step, step.row, 0, range(1))
            if step.ahead:
                self._go_ahead(step)
            yield self._reply(step)

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

    def run_batch(self) -> Iterator[Reply]:
        """One decode over as many waiting steps as fit; yields the answers of those that are complete."""
        if self._claimed:
            yield from self._answer_claimed()
            return
        if self._lead is not None and self._lead.follows:
            yield from self._run_announced(self._lead)
            return
        chosen, failed = self._choose()
        yield from failed
        if not chosen:
            return
        if self._lead is not None:
            try:
                self._lead.announce(chosen)
            except P2PNodeError as exc:
                yield from self._fail(chosen, exc)
                return
        yield from self._run(chosen)

    def _run_announced(self, lead: Lead) -> Iterator[Reply]:
        """What the leader runs now, of the frames it means."""
        announced = lead.take()
        if announced is None:
            assert lead.group.broken is not None
            for step in list(self._waiting):
                yield from self._refuse(step, lead.group.broken)
            return
        for name, *numbers in announced.orders:
            if name == "free":
                for step in [step for step in self._waiting if step.frame.session == numbers[0]]:
                    yield from self._refuse(step, Cancelled("the session is over"))
            with contextlib.suppress(P2PNodeError):  # as far as it can be done here it was done there
                self._arrange(name, *numbers)
        chosen: list[tuple[Step, int]] = []
        for part in announced.parts:
            step = self._announced_step(part)
            try:
                if step.session is None:
                    step.session = self.sessions.begin(step.frame, sample=False)
            except P2PNodeError as exc:
                yield from self._refuse(step, exc)
                return
            chosen.append((step, part.count))
        if chosen:
            yield from self._run(chosen)
        lead.done()

    def _announced_step(self, part: Part) -> Step:
        found = find(part, self._waiting)
        if found is not None:
            return found
        assert part.frame is not None
        frame = part.frame
        return self.submit(0, frame, sample=False, then=lambda reply: self._told(frame, reply))

    def _told(self, received: Frame, reply: Reply) -> None:
        if reply.frame is not None:
            self.relayed(received, reply.frame)

    def _choose(self) -> tuple[list[tuple[Step, int]], list[Reply]]:
        """Steps of distinct sessions with the rows each may run now: single rows first, then prompts."""
        context = self._context()
        room, outputs = context.batch_rows, context.outputs_max
        chosen: list[tuple[Step, int]] = []
        failed: list[Reply] = []
        alone = self.model.recurrent and self.spec.output == "rows"
        order = list(self._first_per_session())
        order.sort(key=lambda step: step.remaining > 1)
        most = self.gather.rows_max
        for step in order:
            if (
                not room
                or (alone and chosen)
                or (most is not None and len(chosen) >= most and step.remaining == 1)
            ):
                break
            if step.session is None:
                try:
                    step.session = self.sessions.begin(step.frame, sample=step.sample)
                    step.began_ns = time.perf_counter_ns()
                except P2PNodeError as exc:
                    failed += self._refuse(step, exc)
                    continue
            count = min(step.remaining, room)
            if self._pools and count < step.remaining:
                continue  # pooling sees one batch only
            if not self._all_rows:
                wanted = max(0, step.done + count - max(step.frame.wanted_first, step.done))
                count -= max(0, wanted - outputs)
                outputs -= min(wanted, outputs)
            if count:
                chosen.append((step, count))
                room -= count
        return chosen, failed

    def _first_per_session(self) -> Iterator[Step]:
        seen: set[int] = set()
        for step in self._waiting:
            if step.frame.session not in seen:
                seen.add(step.frame.session)
                yield step

    def _run(self, chosen: list[tuple[Step, int]]) -> Iterator[Reply]:
        total = sum(count for _, count in chosen)
        started = time.perf_counter_ns()
        try:
            fits = self._decode(chosen, total)
        except P2PNodeError as exc:
            yield from self._fail(chosen, exc)
            return
        spent = time.perf_counter_ns() - started
        if not fits or not self._tap_in_order(chosen, total):
            yield from self._split(chosen, fits=fits)
            return
        self.gather.ran([step.frame.session for step, _ in chosen], spent / 1e9)
        self.counters["decodes"] += 1
        self.counters["rows"] += total
        self.counters["compute_ns"] += spent
        self.counters["tap_ns"] += self._taps.spent_ns
        tapped = self._tapped()
        offset = 0
        for step, count in chosen:
            assert step.session is not None
            step.compute_ns += spent
            step.tap_ns += self._taps.spent_ns
            step.batched_rows += total
            if tapped is not None:
                step.out.append(tapped[offset : offset + count])
            if self._pools:
                step.out.append(self._context().embedding(step.session.sequence, offset + count - 1)[None])
            if step.sample:
                first = max(step.frame.wanted_first, step.done)
                self._sample(step, offset, step.done, range(first, step.done + count))
            step.done += count
            step.session.length += count
            step.row, offset = offset, offset + count
            if not step.remaining or step.refused:
                self._waiting.remove(step)
                if step.ahead:
                    self._go_ahead(step)  # before the node wakes up to hear of it
                if not step.unasked:
                    yield self._reply(step)

    def _decode(self, chosen: list[tuple[Step, int]], total: int) -> bool:
        context = self._context()
        for begun in [begun for begun in self._unasked.values() if begun.row >= 0]:
            self.settle(begun.frame.session)  # nobody asked in time, and its result is overwritten now
        offset = 0
        for step, count in chosen:
            self._place(step, offset, count)
            offset += count
        parts = [step.rows[step.done : step.done + count] for step, count in chosen if step.rows is not None]
        rows = None
        if parts:
            rows = np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))
        self._taps.start()
        fits = context.decode(total, rows)
        self._taps.finish()
        return fits

    def _place(self, step: Step, offset: int, count: int) -> None:
        """Rows of a step into the batch from `offset` on."""
        context, session = self._context(), step.session
        assert session is not None
        if count == 1:  # a decoded token: an array operation less is a microsecond less
            context.positions[offset] = session.length
            context.sequences[offset] = session.sequence
            context.wanted[offset] = self._all_rows or step.done >= step.frame.wanted_first
            if step.ids is not None:
                context.tokens[offset] = step.ids[step.done]
            return
        end, rows = offset + count, np.arange(count)
        context.positions[offset:end] = session.length + rows
        context.sequences[offset:end] = session.sequence
        context.wanted[offset:end] = self._all_rows or step.done + rows >= step.frame.wanted_first
        if step.ids is not None:
            context.tokens[offset:end] = step.ids[step.done : step.done + count]

    def _tap_in_order(self, chosen: list[tuple[Step, int]], total: int) -> bool:
        """Several sessions split into several micro-batches come back in an order we do not know."""
        if self.spec.output != "rows":
            return True
        if sum(len(part) for part in self._taps.rows) != total:
            raise EngineIncompatible(
                f"the tap {self.spec.tap!r} gave {sum(map(len, self._taps.rows))} of {total} rows",
                hint="this llama.cpp names its tensors differently",
            )
        return len(chosen) == 1 or len(self._taps.rows) == 1

    def _tapped(self) -> NDArray[np.float32] | None:
        parts = self._taps.rows
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _split(self, chosen: list[tuple[Step, int]], *, fits: bool) -> Iterator[Reply]:
        """Run the steps of a batch that did not work one by one; only a lone one is out of room."""
        for step, _ in chosen:
            assert step.session is not None
            if not self.sessions.undo(step.session):
                lost = SessionLost("the session was lost with a batch that did not fit")
                yield from self._refuse(step, lost)
        if len(chosen) > 1:
            for pair in chosen:
                if pair[0] in self._waiting:
                    yield from self._run([pair])
            return
        full = ContextFull(
            f"the sessions of this unit hold all its {self.spec.context_tokens} positions",
            hint="wait for a session to finish, or load the unit with more context_tokens",
        )
        assert not fits
        yield from self._fail(chosen, full)

    def _fail(self, chosen: list[tuple[Step, int]], exc: P2PNodeError) -> Iterator[Reply]:
        for step, _ in chosen:
            if step.session is not None:
                self.sessions.undo(step.session)
            yield from self._refuse(step, exc)

    def _refuse(self, step: Step, exc: P2PNodeError) -> list[Reply]:
        """A step that nobody asked for ends without a word."""
        self._waiting.remove(step)
        if not step.unasked:
            return [step.failed(exc)]
        self._forget_unasked(step.frame.session)
        return []

    def _sample(self, step: Step, offset: int, first: int, rows: range) -> None:
        """Sample rows of the step's frame, of which row `first` lies at `offset` in the last batch."""
        assert step.session is not None
        started = time.perf_counter_ns()
        for row in rows:
            assert step.session.sampler is not None
            chosen = step.session.sampler.sample(self._context(), offset + row - first)
            step.sampled.append(chosen)
            nth = row - step.frame.wanted_first
            if chosen.is_eog or (nth < len(step.draft) and step.draft[nth] != chosen.token):
                step.refused = row + 1 < step.frame.rows
                break
        step.sample_ns += time.perf_counter_ns() - started
        self.counters["sampled"] += len(step.sampled)
        self.counters["sample_ns"] += step.sample_ns

    def _reply(self, step: Step) -> Reply:
        if step.sample:
            return Reply(step.call, sampled=tuple(step.sampled), timings=step.timings())
        return Reply(step.call, frame=self._result(step), timings=step.timings(), then=step.then)

    def _result(self, step: Step) -> Frame:
        frame = step.frame
        rows = step.out[0] if len(step.out) == 1 else np.concatenate(step.out) if step.out else None
        position, wanted = frame.position_first, frame.wanted_first
        if rows is not None and self._pools:
            position, wanted = 0, 0
        elif rows is not None and self.spec.rows_out == "wanted":
            rows, position, wanted = rows[wanted:], position + wanted, 0
        dtype = DType.F32 if self._pools else _DTYPES[self.spec.rows_dtype]
        return Frame(
            Kind.ROWS,
            dtype,
            0 if rows is None else len(rows),
            self.model.columns_out if rows is None else rows.shape[1],
            frame.session,
            b"" if rows is None else pack_rows(rows, dtype),
            frame.epoch,
            position,
            wanted if rows is not None else 0,
            frame.sequence,
            frame.request,
            frame.flags,
            frame.meta,
        )
