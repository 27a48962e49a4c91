"""Requests that a member of this or another mesh serves whole: both records tell of them, each under its own name."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import replace

from p2pnode import commands as c
from p2pnode.errors import (
    AdmissionError,
    Busy,
    EngineUnavailable,
    ModelIncomplete,
    P2PNodeError,
    StageLost,
    TransportError,
)
from p2pnode.events import types as facts
from p2pnode.facade import (
    Finished,
    GenerateEvent,
    GenerateRequest,
    JsonObject,
    Loading,
    PrefillProgress,
    TextDelta,
)
from p2pnode.node.ledger import Ledger
from p2pnode.node.loading import Loads
from p2pnode.tracing import OFF, Tracing
from p2pnode.units import PeerId

Ask = Callable[[PeerId, GenerateRequest], AsyncIterator[GenerateEvent]]
Here = Callable[[GenerateRequest], AsyncIterator[GenerateEvent]]

MOVABLE = (StageLost, EngineUnavailable, TransportError, Busy, ModelIncomplete, AdmissionError)
"""Conditions that say something about a member, not about the request: another may do better."""
_SEEDS = 2**31


class Seen:
    """What the caller has of an answer: whoever computes it again must come to the same words first."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._error: P2PNodeError | None = None

    @property
    def pieces(self) -> int:
        return len(self._shown)

    @property
    def text(self) -> str:
        return "".join(self._shown)

    def moved(self, error: P2PNodeError) -> None:
        """The answer is computed again because of this."""
        self._error = error

    async def rest(self, events: AsyncGenerator[GenerateEvent, None]) -> AsyncGenerator[GenerateEvent, None]:
        """The events without the text that was seen; StageLost when the text is another one."""
        ahead = self.text
        async with aclosing(events):
            async for event in events:
                if isinstance(event, TextDelta) and ahead:
                    if not (event.text.startswith(ahead) or ahead.startswith(event.text)):
                        raise self._another()
                    known, ahead = len(ahead), ahead[len(event.text) :]
                    if len(event.text) <= known:
                        continue
                    event = replace(event, text=event.text[known:])
                if isinstance(event, PrefillProgress) and self._shown:
                    continue  # the caller saw that long ago
                if isinstance(event, TextDelta):
                    self._shown.append(event.text)
                if isinstance(event, Finished) and ahead:
                    raise self._another()
                yield event
                if isinstance(event, Finished):
                    return

    def _another(self) -> StageLost:
        lost = self._error.message if self._error is not None else "the device went away"
        return StageLost(f"{lost}; another device came to other words, so the answer cannot go on")


def repeatable(request: GenerateRequest) -> GenerateRequest:
    """With a seed where chance decides, so that a second device can come to the same words."""
    if request.sampling.temperature <= 0 or request.sampling.seed is not None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=secrets.randbelow(_SEEDS)))


def _of_mesh(stages: Sequence[JsonObject], mesh: str) -> Sequence[JsonObject]:
    """Who computed it, with the mesh where that is another one."""
    if not mesh:
        return stages
    return [{**stage, "mesh": mesh, "name": f"{stage.get('name', '')} of {mesh}"} for stage in stages]


async def closable(events: AsyncIterator[GenerateEvent]) -> AsyncGenerator[GenerateEvent, None]:
    """Ends what computes here together with its reader."""
    try:
        async for event in events:
            yield event
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


class Forwarding:
    """Asks a member, and records here what was asked and what came back."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        ask: Ask,
        loads: Loads,
        new_id: Callable[[], str],
        tracing: Tracing = OFF,
    ) -> None:
        self._ledger, self._ask, self._loads, self._new_id = ledger, ask, loads, new_id
        self._tracing = tracing

    async def generate(
        self,
        peers: Sequence[PeerId],
        model: str,
        request: GenerateRequest,
        *,
        name: str,
        here: Here | None = None,
        mesh: tuple[str, str] = ("", ""),
    ) -> AsyncGenerator[GenerateEvent, None]:
        """A member's events, the last one with the request's name in this record.

        A member that goes away in the middle is replaced by the next of `peers`, in the end by `here`, which compute
        the same answer again: the caller's stream goes on after what it has seen. `model` is what the record calls
        it, `name` what people here do; `mesh` is id and name of the other mesh that the members are of.
        """
        request = repeatable(replace(request, request_id=request.request_id or self._new_id()))
        seen = Seen()
        for left, peer in zip(range(len(peers) - 1, -1, -1), peers, strict=True):
            try:
                async with aclosing(self._by(peer, model, request, name, seen, mesh)) as events:
                    async for event in events:
                        yield event
                return
            except MOVABLE as error:
                if not left and here is None:
                    raise
                seen.moved(error)
        assert here is not None, "the last member's condition is the caller's"
        # It is another request in this record: one that this device computes.
        async with aclosing(seen.rest(closable(here(replace(request, request_id=""))))) as own:
            async for event in own:
                yield event

    async def _by(
        self, peer: PeerId, model: str, request: GenerateRequest, name: str, seen: Seen, mesh: tuple[str, str]
    ) -> AsyncGenerator[GenerateEvent, None]:
        """The answer of one member, as far as it was not seen before."""
        request_id = request.request_id
        span = self._tracing.begin(
            "forward", request.trace, {"p2pnode.peer": peer, "p2pnode.request_id": request_id}, kind="client"
        )
        asked = replace(request, trace=span.traceparent)
        prompt = request.prompt if isinstance(request.prompt, str) else json.dumps(list(request.prompt))
        forwarded = facts.RequestForwarded(
            request_id=request_id,
            caller=request.caller,
            model=model[:128],
            peer=peer,
            prompt_commitment=self._commit(request_id, request, prompt),
            max_tokens=request.max_tokens,
            seed=request.sampling.seed,
            mesh=mesh[0],
        )
        await self._ledger.do(c.RecordFact(fact=forwarded))
        started_s = time.monotonic()

        def ended(reason: str, last: Finished | None = None) -> facts.ForwardedRequestEnded:
            return facts.ForwardedRequestEnded(
                request_id=request_id,
                peer=peer,
                served_as="" if last is None else last.request_id[:128],
                reason=reason[:128],
                prompt_tokens=0 if last is None else max(0, last.prompt_tokens),
                completion_tokens=seen.pieces if last is None else max(0, last.completion_tokens),
                answer_commitment=self._commit(request_id, request, seen.text),
                cost_microunits=0 if last is None else max(0, last.cost_microunits),
                duration_ms=int((time.monotonic() - started_s) * 1000),
            )

        try:
            async with aclosing(seen.rest(self._heard(name, self._ask(peer, asked)))) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        await self._ledger.do(c.RecordFact(fact=ended(event.reason, event)))
                        stages = _of_mesh(event.stages, mesh[1])
                        event = replace(event, request_id=request_id, stages=stages)
                    yield event
            span.end()
        except P2PNodeError as error:
            span.end(error.code)
            failed = facts.RequestFailed(
                request_id=request_id,
                code=error.code,
                message=error.message[:500],
                completion_tokens=seen.pieces,
            )
            await self._ledger.do(c.RecordFact(fact=failed))
            raise
        except (GeneratorExit, asyncio.CancelledError):
            span.end("cancelled")
            await asyncio.shield(self._ledger.do(c.RecordFact(fact=ended("cancelled"))))
            raise

    def _commit(self, request_id: str, request: GenerateRequest, text: str) -> bytes:
        """Only the salt is kept here: the member that served it may keep the text."""
        return self._ledger.log.commit_secret(request_id, text.encode(), owner=request.caller)

    async def _heard(
        self, name: str, events: AsyncIterator[GenerateEvent]
    ) -> AsyncGenerator[GenerateEvent, None]:
        """Without how far the member's model is: whoever waits here is told that like of a model of this device.

        Ends the member's stream together with its reader.
        """
        try:
            with ExitStack() as loading:
                hear = None
                async for event in events:
                    if isinstance(event, Loading):
                        hear = hear or loading.enter_context(self._loads.elsewhere(name))
                        hear(event.view())
                        continue
                    loading.close()
                    yield event
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()
