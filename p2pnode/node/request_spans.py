"""The spans of one request at its head: what it waited for, its prompt, its answer, and what a loss cost it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from p2pnode.errors import P2PNodeError
from p2pnode.facade import Finished, GenerateEvent, GenerateRequest, TextDelta
from p2pnode.tracing import OFF, Attributes, Measure, Tracing, Value

_NS = 1_000_000_000


class RequestSpans:
    """Texts are never part of a span."""

    def __init__(self, tracing: Tracing, request: GenerateRequest) -> None:
        self._tracing = tracing
        operation = "chat" if request.messages else "text_completion"
        self._labels: dict[str, Value] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "p2pnode",
            "gen_ai.request.model": request.model or "default",
        }
        self._begun_ns = self._ready_ns = tracing.now_ns()
        self._first_ns = 0
        self._span = tracing.begin(
            f"{operation} {request.model or 'default'}",
            request.trace,
            {
                **self._labels,
                "gen_ai.request.max_tokens": request.max_tokens,
                "gen_ai.request.temperature": request.sampling.temperature,
            },
        )

    @property
    def traceparent(self) -> str:
        return self._span.traceparent

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Something that the answer waits for before it begins."""
        begun_ns = self._tracing.now_ns()
        try:
            yield
        finally:
            self._ready_ns = self._tracing.now_ns()
            self._past(name, begun_ns, self._ready_ns, {})

    def accepted(self, request_id: str, mode: str, plan_id: str) -> None:
        self._span.note({"p2pnode.request_id": request_id, "p2pnode.mode": mode, "p2pnode.plan_id": plan_id})

    def refilled(self, times_ms: tuple[int, int, int, int]) -> None:
        """A device was lost and the answer went on: milliseconds after the last token before that."""
        detected, replanned, refilled, resumed = times_ms
        now_ns = self._tracing.now_ns()
        self._past(
            "refill",
            now_ns - resumed * 1_000_000,
            now_ns,
            {
                "p2pnode.detected_ms": detected,
                "p2pnode.replanned_ms": replanned,
                "p2pnode.refilled_ms": refilled,
                "p2pnode.resumed_ms": resumed,
            },
        )

    def heard(self, event: GenerateEvent) -> None:
        if isinstance(event, TextDelta) and not self._first_ns:
            self._first_ns = self._tracing.now_ns()
            self._observe("time_to_first_token", self._first_ns - self._begun_ns)
        elif isinstance(event, Finished):
            self._finished(event)

    def _finished(self, end: Finished) -> None:
        now_ns = self._tracing.now_ns()
        prompt = {"p2pnode.prompt_tokens": end.prompt_tokens, "p2pnode.cached_tokens": end.cached_tokens}
        prefill_end_ns = min(now_ns, self._ready_ns + int(end.prefill_s * _NS))
        self._past("prefill", self._ready_ns, prefill_end_ns, prompt)
        self._past("decode", prefill_end_ns, now_ns, {"p2pnode.tokens": end.completion_tokens})
        if end.completion_tokens > 1:
            per_token_ns = end.decode_s * _NS / (end.completion_tokens - 1)
            self._observe("time_per_output_token", per_token_ns)
        self._span.note(
            {
                "gen_ai.usage.input_tokens": end.prompt_tokens,
                "gen_ai.usage.output_tokens": end.completion_tokens,
                "gen_ai.response.finish_reasons": [end.reason],
                "p2pnode.request_id": end.request_id,
                "p2pnode.mode": end.mode,
                "p2pnode.cost_microunits": end.cost_microunits,
            }
        )

    def end(self, error: str = "") -> None:
        labels = {**self._labels, "error.type": error} if error else self._labels
        seconds = (self._tracing.now_ns() - self._begun_ns) / _NS
        self._tracing.observe("request_duration", seconds, labels)
        self._span.end(error)

    def _observe(self, measure: Measure, spent_ns: float) -> None:
        self._tracing.observe(measure, spent_ns / _NS, self._labels)

    def _past(self, name: str, begun_ns: int, ended_ns: int, attributes: Attributes) -> None:
        self._tracing.past(name, self._span.traceparent, begun_ns, ended_ns, attributes)


def untraced() -> RequestSpans:
    return RequestSpans(OFF, GenerateRequest(model=None, prompt=""))


def traced(
    tracing: Tracing, request: GenerateRequest, work: Callable[[RequestSpans], AsyncIterator[GenerateEvent]]
) -> AsyncIterator[GenerateEvent]:
    """The events of work on a request, under spans of its own where this node traces at all."""
    spans = RequestSpans(tracing, request)
    return _watched(spans, work(spans)) if tracing.is_on else work(spans)


async def _watched(spans: RequestSpans, work: AsyncIterator[GenerateEvent]) -> AsyncIterator[GenerateEvent]:
    try:
        async for event in work:
            spans.heard(event)
            yield event
    except P2PNodeError as error:
        spans.end(error.code)
        raise
    except (GeneratorExit, asyncio.CancelledError):
        spans.end("cancelled")
        raise
    except BaseException:
        spans.end("internal")
        raise
    finally:
        if isinstance(work, AsyncGenerator):
            await work.aclose()
    spans.end()
