"""Who answers: this device, an external server beside it, or the nearest device that can."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from p2pnode.facade import GenerateEvent, GenerateRequest
from p2pnode.node.backends import Backends
from p2pnode.node.catalog import Catalog, KnownModel
from p2pnode.node.choosing import Choosing
from p2pnode.node.federation import nearest_holder
from p2pnode.node.forwarding import Forwarding
from p2pnode.node.links import Links
from p2pnode.node.loading import Loads
from p2pnode.node.planning import Planning
from p2pnode.node.requests import Requests


class Answering:
    def __init__(
        self,
        *,
        catalog: Catalog,
        links: Links,
        choosing: Choosing,
        planning: Planning,
        requests: Requests,
        backends: Backends,
        forwarding: Forwarding,
        loads: Loads,
    ) -> None:
        self._catalog = catalog
        self._links = links
        self._choosing = choosing
        self._planning = planning
        self._requests = requests
        self._backends = backends
        self._forwarding = forwarding
        self._loads = loads

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """Here when this device can, else whole by the device that has the answer first, else on a plan of both."""
        if self.is_external(request.model):
            if self._backends.here(request.model):
                return self._backends.generate(request)
            holder = nearest_holder(self._links, self._backends.holders(request.model))
            name = request.model or ""
            return self._forwarding.generate([holder], name, request, name=name)
        model = self._catalog.resolve(request.model)
        if request.mode != "auto" or self._choosing.stands(model) or not model.holders:
            return self._requests.generate(request)
        return self._wherever(model, request)

    async def _wherever(
        self, model: KnownModel, request: GenerateRequest
    ) -> AsyncGenerator[GenerateEvent, None]:
        """Here or whole by another device, whichever is expected to have the answer first."""
        places = await self._planning.places(model)
        if places[:1] == [None] or not places:
            events = self._requests.generate(request)
        else:
            here = self._requests.generate if None in places else None
            holders = [peer for peer in places if peer is not None]
            events = self._forwarding.generate(holders, model.content_id, request, name=model.name, here=here)
        try:
            async for event in events:
                yield event
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()

    def generate_here(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """What another member asks for is never handed on to a third."""
        if self.is_external(request.model) and self._backends.here(request.model):
            return self._backends.generate(request)
        return self._requests.generate(request)

    def loading_here(self, name: str | None) -> dict[str, Any] | None:
        """How far the model of another member's request is on its way into memory."""
        return None if self.is_external(name) else self._loads.view(self._catalog.resolve(name).name)

    def is_external(self, name: str | None) -> bool:
        """Whether external servers alone have a model of this name: what the mesh itself holds goes before."""
        known = self._catalog.known()
        if name is None or any(model.is_called(name) for model in known):
            return False
        return name in self._backends.known()
