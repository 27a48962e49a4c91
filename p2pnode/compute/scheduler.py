"""The head's scheduler: which sessions run, and each session's walk from prompt to last token.

Batching happens in the engines, which join whatever frames wait into one decode; so every session here
is a simple loop, and fairness is a matter of admission and of how much prompt may be under way at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from p2pnode import limits
from p2pnode.compute.engine_protocol import Sampled
from p2pnode.compute.prefix_cache import Reuse
from p2pnode.compute.route import Feed, Route
from p2pnode.compute.text import TextAssembler
from p2pnode.errors import Busy, ContextFull, SessionLost
from p2pnode.facade import FinishReason, PrefillProgress, SamplingParams, TextDelta, TokenLogprob

Clock = Callable[[], float]


class Cells:
    """KV cells and sequences of one route, given out first come first served; the queue is bounded."""

    def __init__(self, *, cells: int, sessions: int) -> None:
        self.cells_total = cells
        self.cells_free = cells
        self.sessions_free = sessions
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def queued(self) -> int:
        return len(self._queue)

    async def take(self, cells: int) -> None:
        """Wait for room; raises ContextFull when it can never fit and Busy when the queue is full."""
        if cells > self.cells_total:
            raise ContextFull(f"{cells} tokens are wanted, this plan has room for {self.cells_total}")
        if not self._queue and self._fits(cells):
            self._grant(cells)
            return
        if len(self._queue) >= limits.SESSIONS_QUEUED_MAX:
            raise Busy(f"{len(self._queue)} requests are waiting already; try again in a moment")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((cells, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(cells)
            else:
                self._queue = deque(item for item in self._queue if item[1] is not turn)
                self._wake()
            raise

    def give_back(self, cells: int) -> None:
        self.cells_free += cells
        self.sessions_free += 1
        self._wake()

    def _fits(self, cells: int) -> bool:
        return cells <= self.cells_free and self.sessions_free > 0

    def _grant(self, cells: int) -> None:
        self.cells_free -= cells
        self.sessions_free -= 1

    def _wake(self) -> None:
        while self._queue and self._fits(self._queue[0][0]):
            cells, turn = self._queue.popleft()
            if not turn.done():
                self._grant(cells)
                turn.set_result(None)


@dataclass(slots=True)
class Session:
    """One running generation: everything needed to say how it is and to carry it elsewhere."""

    session: int
    prompt: Sequence[int]
    params: SamplingParams
    max_tokens: int
    epoch: int = 0
    generated: list[int] = field(default_factory=list)
    prefilled: int = 0
    """Rows computed of the prompt (of all that is known, after a loss); not those that were cached."""
    reuse: Reuse | None = None
    """What a cache has of the prompt: used once, by the first route."""
    cached: int = 0
    exact: int = 0
    """Positions from the first one on that were computed in whole chunks."""
    prefill_s: float = 0.0
    decode_s: float = 0.0
    reason: FinishReason | None = None
    stop_sequence: str | None = None
    stop: Sequence[str] = ()
    assembler: TextAssembler | None = None
    home: tuple[object, int] | None = None
    """Engine and unit that hold the sampler: a new route with the same home goes on with its state."""
    last_token_s: float = 0.0
    pause_at: int = 0
    """After so many tokens `at_pause` is awaited before more are fed: a unit is paid and signed for. 0 for never."""
    at_pause: Callable[[], Awaitable[None]] | None = None

    @property
    def position(self) -> int:
        return len(self.prompt) + len(self.generated)

    @property
    def wants_more(self) -> bool:
        """Whether a token will be fed at once after the one that comes next, as far as one can know."""
        then = len(self.generated) + 1
        return then < self.max_tokens and then != self.pause_at


async def generate(
    route: Route, session: Session, *, clock: Clock
) -> AsyncGenerator[TextDelta | PrefillProgress, None]:
    """Run one session to its end, or go on with one that lost its route; what it came to stands in `session`."""
    is_moved = session.home is None or session.home != route.home
    if is_moved:
        await route.open(session.session, session.params, session.prompt)
        session.home = route.home
    assembler = session.assembler = session.assembler or TextAssembler(session.stop)
    session.prefilled = 0
    started_s = clock()
    sampled: Sampled | None = None
    async with aclosing(_fill(route, session, sample_again=is_moved)) as prefill:
        async for progress, result in prefill:
            sampled = result
            yield progress
    session.prefill_s += clock() - started_s
    started_s = clock() - session.decode_s
    while True:
        assert sampled is not None
        session.generated.append(sampled.token)
        session.last_token_s = clock()
        if sampled.is_eog:
            session.reason = "stop"
        else:
            text = assembler.feed(sampled.piece)
            logprobs = _logprobs(sampled)
            if text or logprobs:
                yield TextDelta(text, len(session.generated), logprobs)
            if assembler.stopped is not None:
                session.reason, session.stop_sequence = "stop", assembler.stopped
            elif len(session.generated) >= session.max_tokens:
                session.reason = "length"
        session.decode_s = clock() - started_s
        if session.reason is not None:
            break
        if session.at_pause is not None and len(session.generated) == session.pause_at:
            await session.at_pause()
        sampled = await route.feed(
            Feed(
                session.session,
                session.epoch,
                session.position - 1,
                [sampled.token],
                sample=True,
                ahead=session.wants_more,
                is_alone=True,
            )
        )
    if rest := assembler.finish():
        yield TextDelta(rest, len(session.generated))


def _feeds(session: Session, first: int, *, sample_again: bool) -> Iterator[Feed]:
    """What brings a route from a position to where the session stands, in the batches that brought the first one there.

    Kernels round differently for other batch shapes, and a text must depend neither on how many devices computed
    it nor on what happened to them: a prompt comes in chunks of one size, what was chosen comes row by row. A
    sampler that is new chooses everything once more: so its random numbers, penalties and grammar stand where
    those of the lost one stood.
    """
    size, prompt = limits.PREFILL_CHUNK_TOKENS, session.prompt
    batches = [prompt[i : i + size] for i in range(first, len(prompt), size)]
    batches += [[token] for token in session.generated]
    position = first
    for left, batch in zip(range(len(batches) - 1, -1, -1), batches, strict=True):
        is_chosen_after = position + len(batch) >= len(prompt)
        is_last_chunk = left == 0
        sample = is_last_chunk or (sample_again and is_chosen_after)
        yield Feed(
            session.session, session.epoch, position, batch, sample=sample, is_last_chunk=is_last_chunk,
            ahead=is_last_chunk and session.wants_more,
        )  # fmt: skip
        position += len(batch)


async def _fill(
    route: Route, session: Session, *, sample_again: bool
) -> AsyncGenerator[tuple[PrefillProgress, Sampled | None], None]:
    """From what a cache has, if every stage turns out to have it; else all of it."""
    begun = await _reuse(route, session)
    feeds = _feeds(session, session.cached, sample_again=sample_again)
    try:
        async with aclosing(_feed_all(route, session, feeds)) as results:
            async for result in results:
                yield result
    except SessionLost:
        if not begun:
            raise
        session.cached = session.exact = session.prefilled = 0
        feeds = _feeds(session, 0, sample_again=sample_again)
        async with aclosing(_feed_all(route, session, feeds)) as results:
            async for result in results:
                yield result
    if (
        session.exact == session.cached
    ):  # no row before this prompt's own chunks was computed in other batches
        size = limits.PREFILL_CHUNK_TOKENS
        session.exact += (len(session.prompt) - session.cached) // size * size


async def _reuse(route: Route, session: Session) -> bool:
    """Begin with what is kept; whether it could be asked for, which a far stage may still deny."""
    reuse, session.reuse = session.reuse, None
    session.cached = session.exact = 0
    if reuse is None:
        return False
    try:
        await route.reuse(session.session, reuse.prefix, reuse.count)
    except SessionLost:
        return False
    session.cached, session.exact = reuse.count, reuse.exact
    return True


async def _feed_all(
    route: Route, session: Session, feeds: Iterator[Feed]
) -> AsyncGenerator[tuple[PrefillProgress, Sampled | None], None]:
    """Feeds under way side by side, so that every stage of a ring works; what the last one chose is news."""
    chunks_max = max(limits.PREFILL_CHUNKS_IN_FLIGHT, route.stages + 1)
    total, cached = session.position, session.cached
    under_way: deque[tuple[int, asyncio.Task[Sampled | None]]] = deque()

    def has_room(rows: int) -> bool:
        waiting = rows + sum(count for count, _ in under_way)
        return len(under_way) < chunks_max or waiting <= limits.REFILL_ROWS_IN_FLIGHT

    async def take() -> tuple[PrefillProgress, Sampled | None]:
        count, task = under_way.popleft()
        result = await task
        session.prefilled += count
        return PrefillProgress(cached + session.prefilled, total, cached), result

    try:
        for feed in feeds:
            while not has_room(len(feed.tokens)):
                yield await take()
            under_way.append((len(feed.tokens), asyncio.ensure_future(route.feed(feed))))
        while under_way:
            yield await take()
    finally:
        for _, task in under_way:
            task.cancel()
        await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)


def _logprobs(sampled: Sampled) -> tuple[TokenLogprob, ...]:
    found = []
    for token in sampled.tokens:
        if token.logprob is not None:
            top = tuple((piece.decode("utf-8", "replace"), logprob, piece) for _, logprob, piece in token.top)
            found.append(
                TokenLogprob(token.piece.decode("utf-8", "replace"), token.logprob, token.piece, top)
            )
    return tuple(found)
