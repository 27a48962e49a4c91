"""The one thread that writes: takes jobs from the event loop, commits them in groups, answers on the loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic

from p2pnode.errors import LogBusy, LogFailed
from p2pnode.events.codec import Record
from p2pnode.events.committer import Committer
from p2pnode.events.log import State
from p2pnode.limits import LOG_BATCH_EVENTS_MAX, LOG_QUEUE_MAX

Job = Callable[[Committer[State]], Any]
_WAKE_S_MAX: Final = 5.0
"""The thread looks at the clock at least so often, so that a clock that was set forward is noticed."""


@dataclass(frozen=True, slots=True)
class _Queued(Generic[State]):
    job: Job[State]
    future: asyncio.Future[Any] | None
    decides: bool = False
    """It looks at the state, so it waits while that is rebuilt."""


@dataclass(frozen=True, slots=True)
class Committed(Generic[State]):
    """What became true with one commit."""

    size: int
    state: State
    upper: tuple[bytes, ...] | None
    """The unfinished upper tiles, when they changed."""
    records: tuple[Record, ...]
    checkpoint: str | None


class Writer(Generic[State]):
    """Owns the committer from `start` on; no one else may touch it."""

    def __init__(
        self,
        committer: Committer[State],
        on_commit: Callable[[Committed[State]], None],
        on_failure: Callable[[LogFailed], None],
        on_rebuilt: Callable[[State], None],
        finish: Callable[[], None],
    ) -> None:
        self._committer = committer
        self._on_commit, self._on_failure, self._on_rebuilt = on_commit, on_failure, on_rebuilt
        self._finish = finish
        self._wake = threading.Condition()
        self._queue: deque[_Queued[State]] = deque()
        self._waiting: deque[_Queued[State]] = deque()
        """Decisions that came while what they look at is rebuilt."""
        self._is_closing = False
        self._failure: LogFailed | None = None
        self.last_checkpoint: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="p2pnode-log", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> LogFailed | None:
        return self._failure

    def call(self, job: Job[State], *, decides: bool = False) -> asyncio.Future[Any]:
        """Queue a job; the future is resolved on the running loop, after the commit. What `decides` waits for the
        state to be whole."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._wake:
            self._check_open()
            if len(self._queue) + len(self._waiting) >= LOG_QUEUE_MAX:
                raise LogBusy(f"{LOG_QUEUE_MAX} submissions wait for the log already")
            self._loop = loop
            self._queue.append(_Queued(job, future, decides))
            self._wake.notify()
        return future

    def leave(self, job: Job[State]) -> None:
        """Queue a job nobody waits for; it is committed no later than any job queued after it."""
        with self._wake:
            self._check_open()
            self._queue.append(_Queued(job, None))
            self._wake.notify()

    def close(self) -> None:
        """Finish what is queued and end the thread. Blocks."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join()

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._is_closing:
            raise _closed()

    def _run(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                self._commit(batch)
                if self._may_rebuild:
                    self._rebuild()
            left = list(self._waiting)
            self._answer(lambda: _resolve_all(left, [_closed()] * len(left)))
            self._commit([_Queued(_seal_and_snapshot, None)])
        except LogFailed as failure:
            self._fail(failure)
        except Exception as error:  # a bug: better a stopped node than callers who wait for ever
            self._fail(LogFailed(f"the log's writer failed: {error!r}"))
        finally:
            self._finish()

    @property
    def _may_rebuild(self) -> bool:
        """Whether there is something to rebuild, and a loop to tell of it."""
        return self._committer.rebuild is not None and self._loop is not None

    def _rebuild(self) -> None:
        """One slice; after the last one the decisions that waited are first in the queue."""
        copy = self._committer.rebuild_step()
        if copy is None:
            return
        self._answer(lambda: self._on_rebuilt(copy))
        with self._wake:
            self._queue.extendleft(reversed(self._waiting))
            self._waiting.clear()
        self._commit([])  # keeps a snapshot of the new state, when all is sealed

    def _next_batch(self) -> list[_Queued[State]] | None:
        """Jobs to commit together; none at all when only the clock is to be looked at; None at the end."""
        with self._wake:
            if not self._queue and not self._is_closing and not self._may_rebuild:
                self._wake.wait(self._wait_s())
            if not self._queue and self._is_closing:
                return None
            rebuild = self._committer.rebuild
            may_decide = rebuild is None or rebuild.may_decide
            batch: list[_Queued[State]] = []
            while self._queue and len(batch) < LOG_BATCH_EVENTS_MAX:
                queued = self._queue.popleft()
                (batch if may_decide or not queued.decides else self._waiting).append(queued)
            return batch

    def _wait_s(self) -> float | None:
        due_ms = self._committer.assembler.seal_due_ms
        if due_ms is None:
            return None
        return min(max(due_ms - self._committer.now_ms(), 1) / 1000, _WAKE_S_MAX)

    def _commit(self, batch: list[_Queued[State]]) -> None:
        try:
            results, draft = self._committer.run([queued.job for queued in batch])
        except Exception:
            with self._wake:
                self._queue.extendleft(reversed(batch))
            raise
        if draft.blocks:
            self.last_checkpoint = draft.blocks[-1].checkpoint
        assembler = self._committer.assembler
        committed = Committed(
            assembler.size,
            assembler.state,
            assembler.edge.upper() if draft.tiles else None,
            tuple(entry.record for entry in draft.entries),
            draft.blocks[-1].checkpoint if draft.blocks else None,
        )

        def answer() -> None:
            self._on_commit(committed)
            _resolve_all(batch, results)

        self._answer(answer)

    def _fail(self, failure: LogFailed) -> None:
        with self._wake:
            self._failure = failure
            waiting = [*self._waiting, *self._queue]
            self._waiting.clear()
            self._queue.clear()

        def answer() -> None:
            self._on_failure(failure)
            _resolve_all(waiting, [failure] * len(waiting))

        self._answer(answer)

    def _answer(self, callback: Callable[[], None]) -> None:
        """On the loop; here when there is none yet or no more."""
        loop = self._loop
        if loop is None or loop.is_closed():
            callback()
            return
        try:
            loop.call_soon_threadsafe(callback)
        except RuntimeError:  # closed since
            callback()


def _closed() -> LogFailed:
    return LogFailed("the log is closed", hint="")


def _seal_and_snapshot(committer: Committer[Any]) -> None:
    committer.seal()
    committer.snapshot()


def _resolve_all(batch: list[_Queued[State]], results: list[Any]) -> None:
    for queued, result in zip(batch, results, strict=True):
        future = queued.future
        if future is None or future.done() or future.get_loop().is_closed():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
