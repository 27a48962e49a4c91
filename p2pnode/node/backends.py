"""External OpenAI-compatible servers as engines of this device: what somebody already runs joins the mesh.

Servers the operator named are asked for their models now and then; those found on this machine's loopback are used
only when the operator allows it. Their models are told to the other devices and served whole, from here.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from p2pnode import limits
from p2pnode.compute.backend_http import exchange
from p2pnode.compute.backend_wire import (
    BackendModel,
    Heard,
    body_of,
    condition_of,
    models_of,
    prompt_tokens_guess,
    told_models,
)
from p2pnode.errors import Busy, EngineUnavailable, ModelUnknown, P2PNodeError
from p2pnode.facade import GenerateEvent, GenerateRequest, TextDelta
from p2pnode.node.active import Place
from p2pnode.node.catalog import KnownModel
from p2pnode.node.links import Links
from p2pnode.node.requests import Requests
from p2pnode.node.running import Served
from p2pnode.server_address import KNOWN_PORTS, BackendAddress
from p2pnode.units import ContentId, PeerId

DISCOVER = "backends.discover"
"""Setting: `on` uses servers found on this machine."""
MODE = "external"


@dataclass(slots=True, eq=False)
class Backend:
    address: BackendAddress
    models: dict[str, BackendModel] = field(default_factory=dict)
    trouble: str = "not asked yet"
    running: int = 0

    def view(self) -> dict[str, Any]:
        """For status: never the key."""
        return {
            "address": self.address.text,
            "models": sorted(self.models),
            "running": self.running,
            "trouble": self.trouble,
        }


@dataclass(frozen=True, slots=True)
class ExternalPlan:
    """What the record and faces say of a request that an external server computes."""

    plan_id: str
    mode: str
    model: KnownModel
    stages: list[dict[str, Any]]


class Backends:
    def __init__(
        self,
        *,
        me: PeerId,
        name: str,
        addresses: Sequence[BackendAddress],
        may_discover: Callable[[], bool],
        own_port: Callable[[], int],
        links: Links,
        requests: Requests,
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        self._me, self._name = me, name
        self._named = {address.text: Backend(address) for address in addresses}
        self._found: dict[str, Backend] = {}
        self._may_discover = may_discover
        self._own_port = own_port
        self._links = links
        self._requests = requests
        self._say = say

    # --- what there is -------------------------------------------------------------------------------
    async def run(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(limits.BACKEND_REFRESH_S)

    async def refresh(self) -> None:
        """Ask all of them for their models; the others hear of changes."""
        before = self.told()
        if self._may_discover():
            for port in KNOWN_PORTS:
                address = BackendAddress("127.0.0.1", port)
                if port != self._own_port() and address.text not in self._named:
                    self._found.setdefault(address.text, Backend(address))
        else:
            self._found.clear()
        await asyncio.gather(*(self._ask(backend) for backend in self._all()))
        if self.told() != before:
            self._say({"kind": "backends", "data": {"backends": self.view()}})
            self._links.status_changed()

    def _all(self) -> Iterator[Backend]:
        yield from self._named.values()
        yield from self._found.values()

    async def _ask(self, backend: Backend) -> None:
        try:
            found = await list_models(backend.address)
            backend.models, backend.trouble = {model.name: model for model in found}, ""
        except P2PNodeError as error:
            backend.models, backend.trouble = {}, error.message

    def view(self) -> list[dict[str, Any]]:
        found = [backend for backend in self._found.values() if not backend.trouble]
        return [backend.view() for backend in (*self._named.values(), *found)]

    def told(self) -> list[dict[str, Any]]:
        """This device's external models, for its status."""
        models = {name: model for backend in self._all() for name, model in backend.models.items()}
        return [model.told() for _, model in sorted(models.items())][: limits.BACKEND_MODELS_MAX]

    def known(self) -> dict[str, tuple[BackendModel, list[PeerId]]]:
        """By name: the model and the devices whose servers have it, this one first."""
        found: dict[str, tuple[BackendModel, list[PeerId]]] = {}
        for model in told_models(self.told()):
            found[model.name] = (model, [self._me])
        for link in self._links.links.values():
            if link.is_up and link.status is not None:
                for model in told_models(link.status.extra.get("external", [])):
                    found.setdefault(model.name, (model, []))[1].append(link.peer_id)
        return found

    def here(self, name: str | None) -> bool:
        return any(name in backend.models for backend in self._all())

    def holders(self, name: str | None) -> tuple[str, ...]:
        """Other devices whose servers have a model."""
        entry = self.known().get(name or "")
        return tuple(peer for peer in entry[1] if peer != self._me) if entry else ()

    def views(self) -> list[dict[str, Any]]:
        """As faces list models."""
        return [
            {
                "name": name,
                "manifest": "",
                "architecture": model.kind,
                "quantisation": model.quantisation or None,
                "size_bytes": model.size_bytes,
                "layers": None,
                "context_length": model.context_length or None,
                "external": True,
                "here": "complete" if self._me in peers else "no",
                "holders": list(peers),
                "default": False,
            }
            for name, (model, peers) in sorted(self.known().items())
        ]

    # --- doing ---------------------------------------------------------------------------------------
    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """A request for a model of a server here, whole."""
        backend = self._of(request.model)
        model = backend.models[str(request.model)]
        known = KnownModel(
            model.name,
            ContentId(f"external:{model.name}"),
            model.told(),
            is_local=True,
            is_complete_here=True,
        )
        stage = {"peer": self._me, "name": self._name, "layers": [0, 1]}
        standing = ExternalPlan(f"external-{model.kind}", MODE, known, [stage])

        def ask(served: Served) -> AsyncGenerator[GenerateEvent, None]:
            return self._answer(backend, model, served)

        return self._requests.relay(request, standing, prompt_tokens_guess(request), ask)

    def _of(self, name: str | None) -> Backend:
        """The least busy server that has a model; those that were named go before those that were found."""
        having = [backend for backend in self._all() if name in backend.models]
        if not having:
            raise ModelUnknown(f"no server here has a model named {name!r} now")
        return min(having, key=lambda backend: backend.running)

    async def _answer(
        self, backend: Backend, model: BackendModel, served: Served
    ) -> AsyncGenerator[GenerateEvent, None]:
        session, heard = served.session, Heard()
        path, document = body_of(model, served.request)
        if backend.running >= limits.BACKEND_REQUESTS_MAX:
            raise Busy(f"{backend.running} requests are at {backend.address.text} already")
        backend.running += 1
        started_s = first_s = time.perf_counter()
        try:
            async with exchange(
                backend.address, "POST", path, document, head_s=limits.BACKEND_SILENCE_S_MAX
            ) as response:
                if response.status != 200:
                    raise condition_of(response.status, await response.body())
                async with aclosing(response.lines()) as lines:
                    async for line in lines:
                        text = heard.take(line)
                        if text:
                            if heard.text_pieces == 1:
                                first_s = time.perf_counter()
                            session.generated.append(0)
                            session.decode_s = time.perf_counter() - first_s
                            yield TextDelta(text, len(session.generated))
                        if heard.is_over:
                            break
            if not heard.is_whole:
                raise EngineUnavailable("the external server ended its answer in the middle")
            session.reason = "length" if heard.reason == "length" else "stop"
        finally:
            backend.running -= 1
            _settle(session, heard)
            session.prefill_s = first_s - started_s
            place = Place(served.active.plan_id, self._me, (0, 1))
            served.work = {place: len(session.prompt) + len(session.generated)}


def _settle(session: Any, heard: Heard) -> None:
    """The server's own counts, where it gives them; else the guess, and a token for each piece of text."""
    if heard.prompt_tokens is not None:
        session.prompt = range(heard.prompt_tokens)
    if heard.completion_tokens is not None:
        session.generated = [0] * min(heard.completion_tokens, session.max_tokens)
    session.cached = min(heard.cached_tokens, len(session.prompt))
    session.prefilled = len(session.prompt) - session.cached


async def list_models(address: BackendAddress) -> list[BackendModel]:
    """What a server has; raises what keeps it from saying so."""
    tags = await _get(address, "/api/tags")
    listing = await _get(address, "/v1/models")
    if listing is None:
        raise EngineUnavailable(f"{address.text} is no OpenAI-compatible server: it has no /v1/models")
    return models_of(listing, tags)


async def _get(address: BackendAddress, path: str) -> Any:
    """A JSON document; None where there is none."""
    async with exchange(address, "GET", path, head_s=limits.BACKEND_LIST_S_MAX) as response:
        if response.status in (401, 403):
            raise condition_of(response.status, await response.body())
        if response.status != 200:
            return None
        body = await response.body()
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
