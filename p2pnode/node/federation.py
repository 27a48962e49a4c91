"""Whole requests served for, and by, a member of this or another mesh: `/p2pnode/infer/1`.

The asking node sends one request and reads events; closing the stream ends the work on the other side. The
serving node decides about it like about any request: it is the authenticated peer that pays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec

from p2pnode import limits
from p2pnode.errors import ModelUnknown, P2PNodeError, PeerTimeout, PeerUnreachable, RemoteProtocolError
from p2pnode.facade import (
    Finished,
    GenerateEvent,
    GenerateRequest,
    Loading,
    PrefillProgress,
    SamplingParams,
    TextDelta,
)
from p2pnode.node.links import Links
from p2pnode.node.offering import Offering
from p2pnode.node.other_meshes import OtherMeshes
from p2pnode.node.roles import INFER
from p2pnode.pauses import with_pauses
from p2pnode.tracing import traceparent_of
from p2pnode.transport import messages
from p2pnode.transport.port import Stream, Transport
from p2pnode.units import PeerId

_KINDS: dict[str, type[TextDelta] | type[PrefillProgress] | type[Loading] | type[Finished]] = {
    "text": TextDelta,
    "prefill": PrefillProgress,
    "loading": Loading,
    "finished": Finished,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}

Generate = Callable[[GenerateRequest], AsyncIterator[GenerateEvent]]
Look = Callable[[], Mapping[str, Any] | None]


class Federation:
    def __init__(
        self,
        *,
        transport: Transport,
        links: Links,
        generate: Generate,
        loading: Callable[[str | None], Mapping[str, Any] | None],
        others: OtherMeshes,
        offering: Offering,
        is_guest: Callable[[PeerId], bool],
    ) -> None:
        self._others = others
        self._offering = offering
        self._is_guest = is_guest
        self._links = links
        self._generate = generate
        self._loading = loading
        self.serving = 0
        transport.handle(INFER, self._serve)

    # --- asking --------------------------------------------------------------------------------------
    async def ask(self, peer: PeerId, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """The request's events as the other device makes them; its conditions arrive as the same conditions."""
        try:
            async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
                stream = await self._open(peer)
                await messages.send_message(
                    stream, messages.Call(method="generate", arguments=_to_wire(request))
                )
        except TimeoutError:
            raise PeerTimeout(f"{self._name_of(peer)} did not take the request in time") from None
        try:
            while True:
                async with asyncio.timeout(limits.STAGE_ANSWER_S_MAX):
                    message = await self._next(peer, stream)
                if isinstance(message, messages.Refused):
                    raise messages.refusal_error(message)
                if not isinstance(message, messages.Progress):
                    raise RemoteProtocolError("an answer that is no event")
                if not message.data:
                    continue  # it only breaks the silence
                event = _from_wire(message.data)
                yield event
                if isinstance(event, Finished):
                    return
        except TimeoutError:
            raise PeerTimeout(f"{self._name_of(peer)} went silent in the middle of the answer") from None
        finally:
            stream.reset()

    async def _open(self, peer: PeerId) -> Stream:
        if (other := self._others.mesh_of(peer)) is not None:
            return await self._others.open(peer, other)
        connection = self._links.connection_to(peer)
        if connection is None:
            raise PeerUnreachable(f"{self._name_of(peer)} is not reachable now")
        return await connection.open_stream(INFER)

    def _name_of(self, peer: PeerId) -> str:
        return self._links.name_of(peer) if self._others.mesh_of(peer) is None else self._others.name_of(peer)

    async def _next(self, peer: PeerId, stream: Stream) -> messages.AnyMessage:
        """The next message. A device that went without a word is noticed by the silence, long before its connection."""
        coming = asyncio.ensure_future(messages.receive_message(stream))
        try:
            while not (await asyncio.wait([coming], timeout=limits.FORWARD_SILENCE_S))[0]:
                try:
                    await stream.connection.ping(timeout_s=limits.SILENCE_PING_S)
                except (P2PNodeError, TimeoutError):
                    if not coming.done():
                        raise PeerUnreachable(f"{self._name_of(peer)} does not answer any more") from None
            return coming.result()
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait([coming])

    # --- serving -------------------------------------------------------------------------------------
    async def _serve(self, stream: Stream) -> None:
        async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
            call = await messages.receive_message(stream)
        if isinstance(call, messages.Call) and call.method == "models":
            await self._tell_models(stream)
            return
        self.serving += 1
        try:
            request = _request_of(call, stream)
            if self._is_guest(stream.peer_id):
                request = replace(request, mode="auto")  # how this mesh computes is decided in it
            source = self._generate(request)
            async with aclosing(never_silent(source, lambda: self._loading(request.model))) as events:
                async for event in events:
                    data = {} if event is None else _event_to_wire(event)
                    await messages.send_message(stream, messages.Progress(data=data))
        except P2PNodeError as error:
            await messages.send_message(stream, messages.refusal(error))
        finally:
            self.serving -= 1
        await stream.close_write()

    async def _tell_models(self, stream: Stream) -> None:
        for model in self._offering.models():
            await messages.send_message(stream, messages.Progress(data={"model": model}))
        await messages.send_message(stream, messages.Answer(data=self._offering.about()))
        await stream.close_write()


async def never_silent(
    source: AsyncIterator[GenerateEvent], look: Look
) -> AsyncGenerator[GenerateEvent | None, None]:
    """The events; before the first one, how far the model is whenever that changed, or None in a long wait."""
    said, said_s = None, time.monotonic()
    async with aclosing(with_pauses(source, limits.API_LOADING_LOOK_S)) as events:
        async for event in events:
            if event is not None:
                yield event
                continue
            view = look()
            now_s = time.monotonic()
            if (view is not None and view != said) or now_s - said_s >= limits.WAIT_TOLD_EVERY_S:
                said, said_s = view, now_s
                yield None if view is None else Loading.of(view)


def _to_wire(request: GenerateRequest) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(request, builtin_types=(bytes,))
    # Who pays and from where is decided by the connection, not by what is written here.
    for name in ("caller", "address"):
        document.pop(name, None)
    document["sampling"]["logit_bias"] = [
        [token, bias] for token, bias in request.sampling.logit_bias.items()
    ]
    return document


def _request_of(call: messages.AnyMessage, stream: Stream) -> GenerateRequest:
    if not isinstance(call, messages.Call) or call.method != "generate":
        raise RemoteProtocolError("an infer stream begins with generate")
    document = dict(call.arguments)
    try:
        sampling = dict(document.pop("sampling"))
        biases = {
            int(token): float(bias) for token, bias in sampling.pop("logit_bias")[: limits.LOGIT_BIAS_MAX]
        }
        chosen = msgspec.convert({**sampling, "logit_bias": {}}, SamplingParams)
        fields = {f: getattr(chosen, f) for f in SamplingParams.__dataclass_fields__}
        document["stop"] = tuple(str(text) for text in document.get("stop", ())[:16])
        prompt = document.pop("prompt")
        talk = tuple(dict(row) for row in document.pop("messages", ()))
        made = msgspec.convert({**document, "prompt": ""}, GenerateRequest)
    except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise RemoteProtocolError(f"a request that cannot be read: {error}") from None
    if not isinstance(prompt, str) and not (
        isinstance(prompt, list) and all(isinstance(t, int) for t in prompt)
    ):
        raise RemoteProtocolError("a prompt is text or token ids")
    remote = stream.connection.remote_multiaddr.split("/")
    return GenerateRequest(
        model=made.model,
        prompt=prompt,
        messages=talk,
        max_tokens=made.max_tokens,
        stop=made.stop,
        sampling=SamplingParams(**{**fields, "logit_bias": biases}),
        mode=made.mode,
        cache_prompt=made.cache_prompt,
        parse_special=made.parse_special,
        caller=stream.peer_id,
        address=remote[2] if len(remote) > 2 else "",
        request_id="",
        trace=traceparent_of(made.trace),
    )


def _event_to_wire(event: GenerateEvent) -> dict[str, Any]:
    return {"kind": _NAMES[type(event)], "event": msgspec.to_builtins(event, builtin_types=(bytes,))}


def _from_wire(data: dict[str, Any]) -> GenerateEvent:
    kind = _KINDS.get(str(data.get("kind")))
    if kind is None:
        raise RemoteProtocolError("an event of a kind this version does not know")
    try:
        event: GenerateEvent = msgspec.convert(data.get("event"), kind)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"an event that cannot be read: {error}") from None
    return event


def nearest_holder(links: Links, holders: tuple[str, ...]) -> PeerId:
    """The reachable holder with the shortest round trip; ModelUnknown when there is none."""
    found = [
        (link.connection.stats().rtt_s, peer)
        for peer in holders
        if (link := links.links.get(PeerId(peer))) is not None and link.connection is not None and link.is_up
    ]
    if not found:
        raise ModelUnknown("no device that holds this model is reachable now")
    return PeerId(min(found)[1])
