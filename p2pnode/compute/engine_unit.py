"""A unit as the engine's loop drives it: frames come in, go ahead, are led or follow, and end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from p2pnode.compute.engine_batches import Batches
from p2pnode.compute.engine_lead import Lead, Part, find
from p2pnode.compute.engine_step import Reply, Step
from p2pnode.compute.notices import error_frame
from p2pnode.compute.reduce import AllReduce
from p2pnode.errors import (
    Busy,
    Cancelled,
    P2PNodeError,
    RequestError,
    StageLost,
)
from p2pnode.frame import DType, Frame, Kind, pack_tokens

_ROWS_OF_DECODING = 8
"""Steps of more rows are prompts: they fill a batch by themselves."""


class Unit(Batches):
    """Everything that waits for a model; driven by `run_batch`."""

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

    # sessions
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

    # batches
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
        """What the leader runs now, of the frames it means. One that makes no sense leads no longer."""
        announced = lead.take()
        if announced is None:
            yield from self._refuse_all(lead)
            return
        for name, *numbers in announced.orders:
            if name == "free":
                for step in [step for step in self._waiting if step.frame.session == numbers[0]]:
                    yield from self._refuse(step, Cancelled("the session is over"))
            with contextlib.suppress(P2PNodeError):  # as far as it can be done here it was done there
                self._arrange(name, *numbers)
        try:
            chosen = self._announced(announced.parts)
        except P2PNodeError as exc:
            lead.group.give_up(exc)
            for part in announced.parts:
                if part.frame is not None:
                    self._told_of_failure(part.frame, exc)
            yield from self._refuse_all(lead)
            return
        if chosen:
            yield from self._run(chosen)
        lead.done()

    def _refuse_all(self, lead: Lead) -> Iterator[Reply]:
        assert lead.group.broken is not None
        for step in list(self._waiting):
            yield from self._refuse(step, lead.group.broken)

    def _announced(self, parts: Sequence[Part]) -> list[tuple[Step, int]]:
        """Checked as if a node had asked for it; what comes from another device may be anything."""
        if len({part.session for part in parts}) != len(parts):
            raise StageLost("the leader runs a session twice in one batch")
        if sum(part.count for part in parts) > self._context().batch_rows:
            raise StageLost("the leader runs more rows than a batch of this rank has")
        chosen: list[tuple[Step, int]] = []
        for part in parts:
            step = self._announced_step(part)
            if part.count > step.remaining:
                raise StageLost("the leader runs rows that are done")
            if step.session is None:
                step.session = self.sessions.begin(step.frame, sample=False)
            chosen.append((step, part.count))
        return chosen

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
        elif reply.error is not None:
            self._told_of_failure(received, reply.error)

    def _told_of_failure(self, received: Frame, error: P2PNodeError) -> None:
        """No node waits for a step that came by a lane, and the leader does: for this rank's sums, with patience."""
        if not isinstance(error, Cancelled):
            self.relayed(received, error_frame(received, error))
