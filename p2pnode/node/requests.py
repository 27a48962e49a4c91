"""One request from accepted to finished: choose a plan, record, run, survive a lost stage, settle."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from p2pnode import limits
from p2pnode.compute.prefix_cache import Reuse
from p2pnode.compute.scheduler import Cells, Session, generate
from p2pnode.errors import (
    ContextFull,
    EngineUnavailable,
    P2PNodeError,
    RequestError,
    StageLost,
    TransportError,
)
from p2pnode.facade import Finished, GenerateEvent, GenerateRequest, PrefillProgress, TextDelta
from p2pnode.frame import POSITION_MAX
from p2pnode.node.active import Active
from p2pnode.node.request_spans import RequestSpans, traced
from p2pnode.node.running import Recovery, Running, Served, Standing
from p2pnode.tracing import OFF, Tracing

SURVIVABLE = (StageLost, EngineUnavailable, TransportError)
"""Conditions that say something about devices, not about the request."""


Choose = Callable[[GenerateRequest], Awaitable[Active]]
ChooseAgain = Callable[[Running, P2PNodeError], Awaitable[Active]]


class RequestBook(Protocol):
    """What a request leaves in the record."""

    async def accepted(self, running: Served) -> None: ...

    async def unit(self, running: Running) -> None:
        """A unit of a long answer is there: it is paid and signed for before the next begins."""
        ...

    async def finished(self, running: Served, text: str) -> int:
        """What it cost, in micro-units."""
        ...

    async def failed(self, running: Served, error: P2PNodeError) -> None: ...

    async def lost(self, running: Running, error: P2PNodeError) -> None: ...

    async def recovered(self, running: Running, times_ms: tuple[int, int, int, int]) -> None:
        """Milliseconds after the last token: noticed, planned anew, refilled, next token."""
        ...


class Requests:
    """All running requests of this head."""

    def __init__(
        self,
        *,
        choose: Choose,
        choose_again: ChooseAgain,
        book: RequestBook,
        new_id: Callable[[], str],
        seeded: Callable[[GenerateRequest], GenerateRequest],
        finished: Callable[[Running], None],
        tracing: Tracing = OFF,
    ) -> None:
        self._choose = choose
        self._choose_again = choose_again
        self._book = book
        self._new_id = new_id
        self._seeded = seeded
        self._finished = finished
        self._tracing = tracing
        self._sessions = itertools.count(1)
        self.running: dict[str, Served] = {}

    def new_session(self) -> int:
        """A number that no other work of this head on any plan has."""
        return next(self._sessions)

    def on_plans(self) -> dict[str, Running]:
        """Those that this node's own plans compute."""
        return {name: one for name, one in self.running.items() if isinstance(one, Running)}

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """Runs to the end or raises; closing the iterator early frees every stage."""
        return traced(self._tracing, request, lambda spans: self._generate(request, spans))

    async def _generate(
        self, request: GenerateRequest, spans: RequestSpans
    ) -> AsyncGenerator[GenerateEvent, None]:
        with spans.step("load"):
            active = await self._choose(request)
        active.used_s = time.monotonic()
        try:
            prompt = await self._tokens(active, request)
        except P2PNodeError as error:
            if not isinstance(error, EngineUnavailable) and active.is_usable:
                raise
            # It died since the last request, or gave way to another plan; this one waits for what comes instead.
            with spans.step("load"):
                active = await self._choose(request)
            prompt = await self._tokens(active, request)
        budget = self._budget(active, request, len(prompt))
        params = self._seeded(request).sampling  # chance of its own, yet the same again after a loss
        session = Session(self.new_session(), prompt, params, budget, stop=tuple(request.stop))
        request_id = request.request_id or self._new_id()
        running = Running(request_id, request, session, active, time.monotonic(), spans=spans)
        session.pause_at = limits.OUTPUT_TOKENS_PER_UNIT
        session.at_pause = lambda: self._unit(running)
        taken: list[Cells] = []
        try:
            with spans.step("queue"):
                await self._take(running, taken)
            await self._book.accepted(running)
            spans.accepted(request_id, active.mode, active.plan_id)
            self.running[request_id] = running
            # Closed here and not when garbage is collected: the cells below are free once the stages are.
            async with aclosing(self._run(running, self._survive(running, taken))) as events:
                async for event in events:
                    yield event
        finally:
            self.running.pop(request_id, None)
            running.active.used_s = time.monotonic()
            for cells in taken:
                cells.give_back(len(prompt) + budget)

    async def _take(self, running: Running, taken: list[Cells]) -> None:
        await running.active.cells.take(len(running.session.prompt) + running.session.max_tokens)
        taken.append(running.active.cells)

    def _begin(self, running: Running) -> Reuse | None:
        """What is kept of this prompt; an answer that can be repeated takes only what changes no number."""
        request, session, prefixes = running.request, running.session, running.active.prefixes
        if prefixes is None or request.cache_prompt is False:
            return None
        repeatable = request.sampling.temperature <= 0 or request.sampling.seed is not None
        session.reuse = prefixes.find(session.prompt, exact=repeatable and not request.cache_prompt)
        return session.reuse

    async def _keep(self, running: Running, reuse: Reuse | None) -> None:
        """After a whole answer: the next request may begin where this one ended."""
        active, session = running.active, running.session
        if active.prefixes is None or active.lost is not None or running.request.cache_prompt is False:
            return
        try:
            if reuse is not None and not session.cached and not running.recoveries:
                await active.prefixes.missed(reuse)
            await active.prefixes.keep(session)
        except P2PNodeError:
            return  # whoever should have kept it is gone; the answer is whole all the same

    def relay(
        self,
        request: GenerateRequest,
        standing: Standing,
        prompt_tokens: int,
        ask: Callable[[Served], AsyncGenerator[GenerateEvent, None]],
    ) -> AsyncIterator[GenerateEvent]:
        """A request that something else computes whole: recorded, shown and settled like any other.

        `ask` writes into the session what there is to know of it; `prompt_tokens` is a guess until it does.
        """
        return traced(self._tracing, request, lambda _: self._relay(request, standing, prompt_tokens, ask))

    async def _relay(
        self,
        request: GenerateRequest,
        standing: Standing,
        prompt_tokens: int,
        ask: Callable[[Served], AsyncGenerator[GenerateEvent, None]],
    ) -> AsyncGenerator[GenerateEvent, None]:
        session = Session(self.new_session(), range(prompt_tokens), request.sampling, request.max_tokens)
        request_id = request.request_id or self._new_id()
        served = Served(request_id, request, session, standing, time.monotonic())
        await self._book.accepted(served)
        self.running[request_id] = served
        try:
            async with aclosing(self._run(served, ask(served))) as events:
                async for event in events:
                    yield event
        finally:
            self.running.pop(request_id, None)

    async def _run(
        self, running: Served, source: AsyncGenerator[GenerateEvent, None]
    ) -> AsyncGenerator[GenerateEvent, None]:
        shown: list[str] = []
        session = running.session
        try:
            async with aclosing(source) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        shown.append(event.text)
                    yield event
        except P2PNodeError as error:
            session.reason = "error"
            await self._book.failed(running, error)
            raise
        except (GeneratorExit, asyncio.CancelledError):
            session.reason = "cancelled"
            await asyncio.shield(self._book.finished(running, "".join(shown)))
            raise
        cost = await self._book.finished(running, "".join(shown))
        if isinstance(running, Running):
            self._finished(running)
        assert session.reason is not None
        yield Finished(
            reason=session.reason,
            prompt_tokens=len(session.prompt),
            completion_tokens=len(session.generated),
            cached_tokens=session.cached,
            mode=running.active.mode,
            stages=running.active.stages,
            prefill_s=session.prefill_s,
            decode_s=session.decode_s,
            request_id=running.request_id,
            cost_microunits=cost,
            stop_sequence=session.stop_sequence,
        )

    async def _survive(self, running: Running, taken: list[Cells]) -> AsyncGenerator[GenerateEvent, None]:
        """The same stream of text whatever happens to the stages, as long as this head lives."""
        session = running.session
        reuse = self._begin(running)
        try:
            while True:
                running.begin_work()
                generator = generate(running.active.route, session, clock=time.perf_counter)
                try:
                    await self._announce(running)
                    async for event in generator:
                        recovery = running.recovery
                        if recovery is not None and isinstance(event, PrefillProgress):
                            recovery.refilled()
                            continue
                        if recovery is not None:
                            running.recovery = None
                            times_ms = recovery.times_ms()
                            await self._book.recovered(running, times_ms)
                            running.spans.refilled(times_ms)
                        yield event
                    await self._keep(running, reuse)
                    return
                except P2PNodeError as error:
                    # Of a plan that is gone, a unit says that it is not there; that is no fault of the request.
                    if not isinstance(error, SURVIVABLE) and running.active.is_usable:
                        raise
                    trouble = error
                finally:
                    await generator.aclose()
                    running.count_work()  # by those who did it, before others take over
                running.recovery = recovery = Recovery(session.last_token_s)
                await self._move(running, trouble, taken)
                recovery.replanned()
        finally:
            await self._free(running, running.active)

    async def _unit(self, running: Running) -> None:
        running.session.pause_at += limits.OUTPUT_TOKENS_PER_UNIT
        running.count_work()
        await self._book.unit(running)

    async def _announce(self, running: Running) -> None:
        """What was receipted already counts like the prompt: a new plan's devices are asked for what comes now."""
        announce, session = running.active.announce, running.session
        if announce is not None:
            units = len(session.generated) // limits.OUTPUT_TOKENS_PER_UNIT
            before = len(session.prompt) + units * limits.OUTPUT_TOKENS_PER_UNIT
            reach = await announce(running.request_id, session.session, before, running.spans.traceparent)
            running.is_counted = running.is_counted or reach < POSITION_MAX

    async def _move(self, running: Running, error: P2PNodeError, taken: list[Cells]) -> None:
        """Another plan under the same session; the sampler stays where it is when its engine lives."""
        if running.generated_before < len(running.session.generated):
            running.generated_before, running.fruitless = len(running.session.generated), 0
        if running.fruitless >= limits.RECOVERIES_MAX:
            raise error
        running.fruitless += 1
        running.recoveries += 1
        running.session.epoch += 1
        await self._book.lost(running, error)
        before = running.active
        try:
            running.active = await self._choose_again(running, error)
        except P2PNodeError as again:
            raise StageLost(f"{error.message}; going on was not possible: {again.message}") from error
        if running.active is not before:
            if running.active.route.home != before.route.home:
                await self._free(running, before)  # nobody will sample there again
            await self._take(running, taken)

    async def _free(self, running: Running, active: Active) -> None:
        try:
            await asyncio.shield(active.route.free(running.session.session))
        except P2PNodeError:
            return  # whoever held it is gone, and with it what it held

    async def _tokens(self, active: Active, request: GenerateRequest) -> list[int]:
        if not isinstance(request.prompt, str):
            return list(request.prompt)
        if len(request.prompt) > limits.PROMPT_CHARACTERS_MAX:
            raise ContextFull(
                f"the prompt has {len(request.prompt)} characters, at most {limits.PROMPT_CHARACTERS_MAX}"
            )
        tokens = await active.engine.client.tokenize(
            active.vocabulary_unit, request.prompt, add_special=True, parse_special=request.parse_special
        )
        if not tokens:
            raise RequestError("the prompt is empty")
        return tokens

    def _budget(self, active: Active, request: GenerateRequest, prompt_tokens: int) -> int:
        """How many tokens may come: what was asked, cut to what the context has room for."""
        room = min(active.session_tokens, active.cells.cells_total) - prompt_tokens
        if room < 1:
            raise ContextFull(
                f"the prompt has {prompt_tokens} tokens, this model's context here {active.session_tokens}",
                hint="shorten the prompt, or plan with a longer context",
            )
        if request.max_tokens < 1:
            raise RequestError("max_tokens must be at least 1")
        return min(request.max_tokens, room)
