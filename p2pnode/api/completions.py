"""POST /v1/completions and what chat shares with it: streaming one answer as SSE."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from quart import Blueprint, Response

from p2pnode.api.context import ApiContext, body, caller
from p2pnode.api.envelope import condition_of, envelope, json_bytes, json_response
from p2pnode.api.generation import (
    MAX_TOKENS_DEFAULT,
    Indexed,
    choices_of,
    collect,
    extension,
    first_then,
    new_id,
    run_choices,
    sampling_of,
    stop_list,
    usage,
)
from p2pnode.api.grammar import grammar_of
from p2pnode.api.reply import Reply, completion_choice, completion_logprobs, finish_reason
from p2pnode.api.schemas import CompletionRequest, check_fields, parse
from p2pnode.api.security import Caller
from p2pnode.api.sse import DONE, HEARTBEAT, close, sse_data, stream_response, until_closed
from p2pnode.errors import EngineUnavailable, P2PNodeError, RequestError
from p2pnode.facade import Finished, GenerateEvent, GenerateRequest, Loading, PrefillProgress, TextDelta
from p2pnode.limits import API_CHOICES_MAX

Render = Callable[[int, GenerateEvent], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Form:
    """How a stream is written: one event (with the name `error` when it is one), a sign of life, the end."""

    event: Callable[[dict[str, Any], str | None], bytes]
    silence: bytes
    done: bytes
    failure: Callable[[P2PNodeError], dict[str, Any]] = envelope


SSE = Form(lambda document, _: sse_data(json_bytes(document)), HEARTBEAT, DONE)
NAMED = Form(
    lambda document, name: sse_data(json_bytes(document), event=name or document["type"]), HEARTBEAT, b""
)
"""The Responses API names its events."""


class StreamBody:
    """Chunks of one answer; closing it at any moment ends the work and gives the slot back."""

    def __init__(
        self,
        context: ApiContext,
        events: AsyncIterator[Indexed],
        render: Render,
        tail: Callable[[list[Finished]], list[dict[str, Any]]],
        *,
        begin: Callable[[], list[dict[str, Any]]] = list,
        form: Form = SSE,
    ) -> None:
        self._context = context
        self._events = events
        self._render = render
        self._tail = tail
        self._begin = begin
        self._form = form
        self._chunks = self._run()
        self._open = True

    def __aiter__(self) -> StreamBody:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except BaseException:
            self._release()
            raise

    async def aclose(self) -> None:
        self._release()
        await self._chunks.aclose()
        await close(self._events)

    def _release(self) -> None:
        if self._open:
            self._open = False
            self._context.generating -= 1

    def _event(self, document: dict[str, Any]) -> bytes:
        return self._form.event(document, None)

    def _check_whole(self, ends: list[Finished]) -> None:
        if self._context.closing.is_set():
            raise EngineUnavailable("the node is stopping", hint="try again when it is back")
        if not ends:
            raise EngineUnavailable("the generation ended without a result", hint="try again")

    async def _run(self) -> AsyncGenerator[bytes, None]:
        ends: list[Finished] = []
        items = until_closed(self._events, self._context.closing)
        try:
            for document in self._begin():
                yield self._event(document)
            async for item in items:
                if item is None:
                    if self._form.silence:
                        yield self._form.silence
                    continue
                index, event = item
                if isinstance(event, Finished):
                    ends.append(event)
                for chunk in self._render(index, event):
                    yield self._event(chunk)
            self._check_whole(ends)
            for chunk in self._tail(ends):
                yield self._event(chunk)
            if self._form.done:
                yield self._form.done
        except Exception as error:
            yield self._form.event(self._form.failure(condition_of(error)), "error")
        finally:
            await items.aclose()


async def stream_answer(
    context: ApiContext,
    requests: list[GenerateRequest],
    render: Render,
    reply: Reply,
    *,
    include_usage: bool,
    headers: dict[str, str],
    progress: bool,
) -> Response:
    context.take_slot()
    try:
        generate = context.generate_telling if progress else context.generate
        events = await first_then(run_choices(generate, requests))
    except BaseException:
        context.generating -= 1
        raise

    def tail(ends: list[Finished]) -> list[dict[str, Any]]:
        if not include_usage:
            return []
        return [reply.chunk([], usage=usage(ends), p2pnode=extension(ends))]

    response = stream_response(StreamBody(context, events, render, tail))
    response.headers.extend(headers)
    return response


def answer_headers(reply: Reply, ignored: list[str]) -> dict[str, str]:
    headers = {"x-request-id": reply.identity, "X-P2PNode-Session": reply.identity}
    if ignored:
        headers["X-P2PNode-Ignored"] = ", ".join(ignored)
    return headers


def prompts_of(value: str | list[Any]) -> list[str | list[int]]:
    """OpenAI's four forms of a prompt as a list of texts or token lists."""
    if isinstance(value, str):
        return [value]
    if not value:
        raise RequestError("the prompt is empty", param="prompt")
    if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        return [value]
    for item in value:
        whole = isinstance(item, list) and all(
            isinstance(token, int) and 0 <= token < 1 << 31 for token in item
        )
        if not isinstance(item, str) and not whole:
            raise RequestError("a prompt is text, token ids, or a list of these", param="prompt")
    return list(value)


def _requests_of(
    asked: CompletionRequest,
    prompts: Sequence[str | list[int]],
    count: int,
    model: str,
    who: Caller,
    identity: str,
) -> list[GenerateRequest]:
    """`count` choices for every prompt, in that order."""
    sampling = sampling_of(asked, grammar=grammar_of(asked), logprobs=asked.logprobs)
    return [
        choice
        for number, prompt in enumerate(prompts)
        for choice in choices_of(
            GenerateRequest(
                model=model,
                prompt=prompt,
                max_tokens=asked.max_tokens or MAX_TOKENS_DEFAULT,
                stop=stop_list(asked),
                sampling=sampling,
                mode=asked.mode or "auto",
                cache_prompt=asked.cache_prompt,
                caller=who.account,
                address=who.address,
                request_id=identity if number == 0 else f"{identity}-p{number}",
            ),
            count,
        )
    ]


def completion_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("completions", __name__)
    node = context.node

    @routes.post("/v1/completions")
    async def completions() -> Response:
        who = caller("use")
        asked = parse(CompletionRequest, await body())
        ignored = check_fields("completion", asked)
        count = asked.n or 1
        if asked.best_of is not None and asked.best_of != count:
            raise RequestError("best_of other than n is not supported", param="best_of")
        prompts = prompts_of(asked.prompt)
        if len(prompts) * count > API_CHOICES_MAX:
            raise RequestError(f"one request makes at most {API_CHOICES_MAX} choices", param="n")
        model = node.resolve_model(asked.model)
        reply = Reply(new_id("cmpl"), model, "text_completion")
        requests = _requests_of(asked, prompts, count, model, who, reply.identity)
        echoes = [""] * len(requests)
        if asked.echo:
            texts = [
                p if isinstance(p, str) else await context.loaded(model, node.detokenize(model, p))
                for p in prompts
            ]
            echoes = [texts[index // count] for index in range(len(requests))]
        headers = answer_headers(reply, ignored)
        if not asked.stream:
            with context.slot():
                outcomes = await collect(context.generate, requests)
            choices = [completion_choice(i, outcome, echoes[i]) for i, outcome in enumerate(outcomes)]
            return json_response(
                reply.whole(choices, [o.end for o in outcomes], len(prompts)), headers=headers
            )
        offsets = [len(echo) for echo in echoes]
        begun: set[int] = set()

        def render(index: int, event: GenerateEvent) -> list[dict[str, Any]]:
            choice: dict[str, Any] = {"index": index, "text": "", "finish_reason": None, "logprobs": None}
            if isinstance(event, PrefillProgress | Loading):
                return [reply.progress(index, event)] if asked.return_progress else []
            if isinstance(event, Finished):
                choice["finish_reason"] = finish_reason(event)
                return [reply.chunk([choice], p2pnode=extension([event]))]
            assert isinstance(event, TextDelta)
            choice["text"] = event.text if index in begun else echoes[index] + event.text
            begun.add(index)
            choice["logprobs"] = completion_logprobs(event.logprobs, offsets[index])
            offsets[index] += len(event.text)
            return [reply.chunk([choice])]

        wants_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return await stream_answer(
            context, requests, render, reply, include_usage=wants_usage, headers=headers,
            progress=bool(asked.return_progress),
        )  # fmt: skip

    return routes
