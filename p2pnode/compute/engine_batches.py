"""Batches of a unit: frames of several sessions in one decode, and what becomes of each of them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from p2pnode.compute.engine_loaded import LoadedUnit
from p2pnode.compute.engine_step import Reply, Step
from p2pnode.errors import (
    ContextFull,
    P2PNodeError,
    SessionLost,
)
from p2pnode.frame import DType, Frame, Kind, pack_rows

_DTYPES = {"f32": DType.F32, "f16": DType.F16, "bf16": DType.BF16, "q8_0": DType.Q8_0}


class Batches(LoadedUnit, ABC):
    """Chooses among what waits, runs it, samples and answers."""

    @abstractmethod
    def _go_ahead(self, step: Step) -> None:
        """A token was sampled that will most likely be fed next."""

    @abstractmethod
    def _forget_unasked(self, session_id: int) -> bool:
        """Nobody will ask for what was begun ahead; whether its position is held in the session."""

    @abstractmethod
    def settle(self, session_id: int) -> None:
        """Let the session hold what was asked for and no more."""

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
        self._taps.check(total)
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
            position = step.frame.position_first + row
            chosen = step.session.sampler.sample_at(position, self._context(), offset + row - first)
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
