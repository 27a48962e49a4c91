"""POST /infer and /infer/stream: p2pnode's own short form, used by the command line."""

from __future__ import annotations

from typing import Any

from quart import Blueprint, Response

from p2pnode.api.completions import StreamBody
from p2pnode.api.context import ApiContext, body, caller
from p2pnode.api.conversation import chat_prompt
from p2pnode.api.envelope import json_response
from p2pnode.api.generation import (
    MAX_TOKENS_DEFAULT,
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
from p2pnode.api.schemas import InferRequest, Message, parse
from p2pnode.api.sse import stream_response
from p2pnode.errors import RequestError
from p2pnode.facade import Finished, GenerateEvent, GenerateRequest, Loading, Mode, PrefillProgress, TextDelta


async def requested(context: ApiContext, mode: Mode) -> tuple[InferRequest, GenerateRequest]:
    """The request of this call; `mode` is what its address says, the body may say otherwise."""
    node = context.node
    who = caller("use")
    asked = parse(InferRequest, await body())
    if (asked.prompt is None) == (asked.messages is None):
        raise RequestError("give either prompt or messages", param="prompt")
    if asked.n not in (None, 1):
        raise RequestError("this address makes one answer", param="n", hint="use /v1/chat/completions")
    model = node.resolve_model(asked.model)
    stops: tuple[str, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()
    prompt = asked.prompt or ""
    if asked.messages is not None:
        system = [Message("system", asked.system)] if asked.system else []
        prompt, stops, messages = await chat_prompt(node, model, system + asked.messages)
    return asked, GenerateRequest(
        model=model,
        prompt=prompt,
        messages=messages,
        max_tokens=asked.max_tokens or MAX_TOKENS_DEFAULT,
        stop=stop_list(asked) + stops,
        sampling=sampling_of(asked, grammar=grammar_of(asked), logprobs=None),
        mode=asked.mode or mode,
        cache_prompt=asked.cache_prompt,
        caller=who.account,
        address=who.address,
        request_id=new_id("infer"),
    )


async def answer_infer(context: ApiContext, *, mode: Mode = "auto", stream: bool = False) -> Response:
    asked, wanted = await requested(context, mode)
    if stream or asked.stream:
        return await streamed(context, wanted, progress=bool(asked.return_progress))
    with context.slot():
        outcome = (await collect(context.generate, [wanted]))[0]
    return json_response(result(wanted.model or "", outcome.end) | {"text": "".join(outcome.text)})


async def streamed(context: ApiContext, wanted: GenerateRequest, *, progress: bool) -> Response:
    context.take_slot()
    try:
        generate = context.generate_telling if progress else context.generate
        events = await first_then(run_choices(generate, [wanted]))
    except BaseException:
        context.generating -= 1
        raise

    def render(_: int, event: GenerateEvent) -> list[dict[str, Any]]:
        if isinstance(event, TextDelta):
            return [{"type": "text", "text": event.text, "tokens": event.token_count}]
        if isinstance(event, Loading):
            return [{"type": "loading", **event.view()}]
        if isinstance(event, PrefillProgress):
            counts = {"done": event.tokens_done, "total": event.tokens_total, "cached": event.tokens_cached}
            return [{"type": "prefill", **counts}]
        return [{"type": "finished", **result(wanted.model or "", event)}]

    return stream_response(StreamBody(context, events, render, lambda _: []))


def infer_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("infer", __name__)

    @routes.post("/infer")
    async def infer() -> Response:
        return await answer_infer(context)

    @routes.post("/infer/stream")
    async def infer_stream() -> Response:
        return await answer_infer(context, stream=True)

    return routes


def result(model: str, end: Finished) -> dict[str, Any]:
    about = extension([end])
    return {
        "model": model,
        "finish_reason": end.reason,
        "usage": usage([end]),
        "mode": about.pop("mode"),
        "stages": about.pop("stages"),
        **about,
    }
