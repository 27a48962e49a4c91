"""One request from accepted to finished: choose a plan, record, run, survive a lost stage, settle."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from p2pnode import limits
from p2pnode.compute.scheduler import Session, generate
from p2pnode.errors import ContextFull, P2PNodeError, RequestError
from p2pnode.facade import Finished, GenerateEvent, GenerateRequest, PrefillProgress, TextDelta
from p2pnode.node.routing import Active

Choose = Callable[[GenerateRequest], Awaitable[Active]]


@dataclass(slots=True)
class Running:
    """A request while it runs, for `ps` and the live view."""

    request_id: str
    request: GenerateRequest
    session: Session
    active: Active
    started_s: float
    recoveries: int = 0

    def view(self) -> dict[str, Any]:
        seconds = max(self.session.decode_s, 1e-9)
        return {
            "request_id": self.request_id,
            "model": self.active.model.name,
            "mode": self.active.mode,
            "plan_id": self.active.plan_id,
            "caller": self.request.caller,
            "stages": self.active.stages,
            "prompt_tokens": len(self.session.prompt),
            "prefilled_tokens": self.session.prefilled,
            "completion_tokens": len(self.session.generated),
            "tokens_per_s": round(len(self.session.generated) / seconds, 2)
            if self.session.decode_s
            else None,
            "age_s": round(time.monotonic() - self.started_s, 3),
            "recoveries": self.recoveries,
        }


class RequestBook:
    """What a request leaves in the record; `node.books` implements it over the log."""

    async def accepted(self, running: Running) -> None:
        raise NotImplementedError

    async def finished(self, running: Running, text: str) -> int:
        """What it cost, in micro-units."""
        raise NotImplementedError

    async def failed(self, running: Running, error: P2PNodeError) -> None:
        raise NotImplementedError

    async def recovered(
        self, running: Running, lost: P2PNodeError, times_ms: tuple[int, int, int, int]
    ) -> None:
        raise NotImplementedError


class Requests:
    """All running requests of this head."""

    def __init__(
        self, *, choose: Choose, choose_again: Choose, book: RequestBook, new_id: Callable[[], str]
    ) -> None:
        self._choose = choose
        self._choose_again = choose_again
        self._book = book
        self._new_id = new_id
        self._sessions = itertools.count(1)
        self.running: dict[str, Running] = {}

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """Runs to the end or raises; closing the iterator early frees every stage."""
        active = await self._choose(request)
        prompt = await self._tokens(active, request)
        budget = self._budget(active, request, len(prompt))
        await active.cells.take(len(prompt) + budget)
        session = Session(next(self._sessions), prompt, request.sampling, budget)
        request_id = request.request_id or self._new_id()
        running = Running(request_id, request, session, active, time.monotonic())
        cells = active.cells
        try:
            await self._book.accepted(running)
            self.running[request_id] = running
            async for event in self._run(running):
                yield event
        finally:
            self.running.pop(request_id, None)
            cells.give_back(len(prompt) + budget)

    async def _run(self, running: Running) -> AsyncIterator[GenerateEvent]:
        shown: list[str] = []
        session = running.session
        try:
            async for event in self._survive(running):
                if text := getattr(event, "text", ""):
                    shown.append(text)
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

    async def _survive(self, running: Running) -> AsyncIterator[GenerateEvent]:
        """The same stream of text whatever happens to the stages, as long as this head lives."""
        session, stop = running.session, running.request.stop
        generator = cast(
            AsyncGenerator[TextDelta | PrefillProgress, None],
            generate(running.active.route, session, stop=stop, clock=time.perf_counter),
        )
        try:
            async for event in generator:
                yield event
        finally:
            await generator.aclose()
            await self._free(running)

    async def _free(self, running: Running) -> None:
        try:
            await asyncio.shield(running.active.route.free(running.session.session))
        except P2PNodeError:
            return  # whoever held it is gone

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
