"""Requests that another member serves whole: both records tell of them, each under its own name."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import ExitStack, aclosing
from dataclasses import replace

from p2pnode import commands as c
from p2pnode.errors import P2PNodeError
from p2pnode.events import types as facts
from p2pnode.facade import Finished, GenerateEvent, GenerateRequest, Loading, TextDelta
from p2pnode.node.ledger import Ledger
from p2pnode.node.loading import Loads
from p2pnode.units import PeerId

Ask = Callable[[PeerId, GenerateRequest], AsyncIterator[GenerateEvent]]


class Forwarding:
    """Asks a member, and records here what was asked and what came back."""

    def __init__(self, *, ledger: Ledger, ask: Ask, loads: Loads, new_id: Callable[[], str]) -> None:
        self._ledger, self._ask, self._loads, self._new_id = ledger, ask, loads, new_id

    async def generate(
        self, peer: PeerId, model: str, request: GenerateRequest, *, name: str
    ) -> AsyncGenerator[GenerateEvent, None]:
        """The member's events, the last one with the request's name in this record.

        `model` is what the record calls it, `name` what people here do.
        """
        request_id = request.request_id or self._new_id()
        prompt = request.prompt if isinstance(request.prompt, str) else json.dumps(list(request.prompt))
        forwarded = facts.RequestForwarded(
            request_id=request_id,
            caller=request.caller,
            model=model[:128],
            peer=peer,
            prompt_commitment=self._commit(request_id, request, prompt),
            max_tokens=request.max_tokens,
            seed=request.sampling.seed,
        )
        await self._ledger.do(c.RecordFact(fact=forwarded))
        started_s, shown = time.monotonic(), list[str]()

        def ended(reason: str, last: Finished | None = None) -> facts.ForwardedRequestEnded:
            return facts.ForwardedRequestEnded(
                request_id=request_id,
                peer=peer,
                served_as="" if last is None else last.request_id[:128],
                reason=reason[:128],
                prompt_tokens=0 if last is None else max(0, last.prompt_tokens),
                completion_tokens=len(shown) if last is None else max(0, last.completion_tokens),
                answer_commitment=self._commit(request_id, request, "".join(shown)),
                cost_microunits=0 if last is None else max(0, last.cost_microunits),
                duration_ms=int((time.monotonic() - started_s) * 1000),
            )

        try:
            async with aclosing(self._heard(name, self._ask(peer, request))) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        shown.append(event.text)
                    elif isinstance(event, Finished):
                        await self._ledger.do(c.RecordFact(fact=ended(event.reason, event)))
                        event = replace(event, request_id=request_id)
                    yield event
                    if isinstance(event, Finished):
                        return
        except P2PNodeError as error:
            failed = facts.RequestFailed(
                request_id=request_id,
                code=error.code,
                message=error.message[:500],
                completion_tokens=len(shown),
            )
            await self._ledger.do(c.RecordFact(fact=failed))
            raise
        except (GeneratorExit, asyncio.CancelledError):
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
