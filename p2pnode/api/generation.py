"""From an API request to generations of the node and back: choices, usage, who computed."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from p2pnode.api.schemas import SamplingFields
from p2pnode.api.sse import close
from p2pnode.errors import EngineUnavailable, RequestError
from p2pnode.facade import (
    Finished,
    GenerateEvent,
    GenerateRequest,
    SamplingParams,
    TextDelta,
    TokenLogprob,
)
from p2pnode.limits import API_STREAM_QUEUE_MAX

MAX_TOKENS_DEFAULT = 512
_SEED_MASK = 0xFFFF_FFFF


def sampling_of(request: SamplingFields, *, grammar: str | None, logprobs: int | None) -> SamplingParams:
    """llama.cpp's sampler settings; what is not given keeps the node's default."""
    given = {
        "temperature": request.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "min_p": request.min_p,
        "typical_p": request.typical_p,
        "repeat_penalty": request.repeat_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "repeat_last_tokens": request.repeat_last_n,
    }
    seed = None if request.seed in (None, -1) else int(request.seed or 0) & _SEED_MASK
    return SamplingParams(
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type] # by name
        seed=seed,
        logit_bias=_logit_bias(request),
        grammar=grammar,
        logprobs=logprobs,
    )


def _logit_bias(request: SamplingFields) -> dict[int, float]:
    bias: dict[int, float] = {}
    for token, value in (request.logit_bias or {}).items():
        if not token.isdecimal() or len(token) > 10:
            raise RequestError(f"logit_bias has {token[:20]!r}, which is no token id", param="logit_bias")
        bias[int(token)] = value
    return bias


def stop_list(request: SamplingFields) -> tuple[str, ...]:
    if request.stop is None:
        return ()
    return (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)


def choices_of(base: GenerateRequest, count: int) -> list[GenerateRequest]:
    """`count` requests that differ in seed, when one was given."""
    seed = base.sampling.seed
    return [
        base
        if index == 0
        else replace(
            base,
            sampling=replace(base.sampling, seed=None if seed is None else (seed + index) & _SEED_MASK),
            request_id=f"{base.request_id}-{index}",
        )
        for index in range(count)
    ]


Indexed = tuple[int, GenerateEvent]
Generate = Callable[[GenerateRequest], AsyncIterator[GenerateEvent]]


async def run_choices(
    generate: Generate, requests: Sequence[GenerateRequest]
) -> AsyncGenerator[Indexed, None]:
    """Events of all choices as they come; closing it closes every generation."""
    if len(requests) == 1:
        source = generate(requests[0])
        try:
            async for event in source:
                yield 0, event
        finally:
            await close(source)
        return
    queue: asyncio.Queue[Indexed | BaseException | None] = asyncio.Queue(API_STREAM_QUEUE_MAX)

    async def pump(index: int, request: GenerateRequest) -> None:
        source = generate(request)
        try:
            async for event in source:
                await queue.put((index, event))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)
        finally:
            await close(source)

    tasks = [asyncio.ensure_future(pump(index, request)) for index, request in enumerate(requests)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(slots=True)
class Outcome:
    """One choice, collected."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None

    def take(self, event: GenerateEvent) -> None:
        if isinstance(event, TextDelta):
            self.text.append(event.text)
            self.logprobs.extend(event.logprobs)
        elif isinstance(event, Finished):
            self.finished = event

    @property
    def end(self) -> Finished:
        if self.finished is None:
            raise EngineUnavailable("the generation ended without a result", hint="try again")
        return self.finished


async def collect(generate: Generate, requests: Sequence[GenerateRequest]) -> list[Outcome]:
    outcomes = [Outcome() for _ in requests]
    async with aclosing(run_choices(generate, requests)) as events:
        async for index, event in events:
            outcomes[index].take(event)
    for outcome in outcomes:
        assert outcome.end is not None
    return outcomes


def usage(ends: Sequence[Finished], prompts: int = 1) -> dict[str, Any]:
    """OpenAI's count: a prompt that has several choices counts once."""
    per_prompt = max(1, len(ends) // max(1, prompts))
    prompt_tokens = sum(end.prompt_tokens for end in ends[::per_prompt])
    completion_tokens = sum(end.completion_tokens for end in ends)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(end.cached_tokens for end in ends[::per_prompt])},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def extension(ends: Sequence[Finished]) -> dict[str, Any]:
    """The extra field `p2pnode`: how and by whom the answer was computed, and what it cost."""
    first = ends[0]
    tokens = sum(end.completion_tokens for end in ends)
    decode_s = max(end.decode_s for end in ends)
    return {
        "request_id": first.request_id,
        "mode": first.mode,
        "stages": [dict(stage) for stage in first.stages],
        "prefill_s": round(first.prefill_s, 4),
        "decode_s": round(decode_s, 4),
        "tokens_per_s": round(tokens / decode_s, 2) if decode_s > 0 else None,
        "cost_microunits": sum(end.cost_microunits for end in ends),
    }


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"


async def first_then(events: AsyncGenerator[Indexed, None]) -> AsyncIterator[Indexed]:
    """Wait for the first event, so that early failures have their own HTTP status."""
    try:
        first = await anext(events)
    except StopAsyncIteration:
        raise EngineUnavailable("the generation ended without a result", hint="try again") from None
    except BaseException:
        await events.aclose()
        raise
    return Resumed(first, events)


class Resumed:
    """An async iterator with its first item put back."""

    def __init__(self, first: Indexed, rest: AsyncGenerator[Indexed, None]) -> None:
        self._first: Indexed | None = first
        self._rest = rest

    def __aiter__(self) -> Resumed:
        return self

    async def __anext__(self) -> Indexed:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)

    async def aclose(self) -> None:
        await self._rest.aclose()
