"""Who answers: this device, an external server beside it, the nearest device that can, or another mesh."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from p2pnode.compute.other_meshes import Offer, may_move
from p2pnode.errors import ModelUnknown, P2PNodeError
from p2pnode.facade import GenerateEvent, GenerateRequest, TextDelta
from p2pnode.node.backends import Backends
from p2pnode.node.catalog import Catalog, KnownModel
from p2pnode.node.choosing import Choosing
from p2pnode.node.federation import nearest_holder
from p2pnode.node.forwarding import Forwarding, closable
from p2pnode.node.links import Links
from p2pnode.node.loading import Loads
from p2pnode.node.other_meshes import OtherMeshes
from p2pnode.node.planning import Planning
from p2pnode.node.requests import Requests
from p2pnode.units import PeerId


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
        others: OtherMeshes,
    ) -> None:
        self._others = others
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
        try:
            model = self._catalog.resolve(request.model)
        except ModelUnknown:
            offers = self._others.named(request.model)
            if not offers:
                raise
            return self._beyond(offers, request)
        if self._others.same(model.content_id):
            return self._here_or_beyond(model, request)
        return self._in_this_mesh(model, request)

    def _in_this_mesh(self, model: KnownModel, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        if request.mode != "auto" or self._choosing.stands(model) or not model.holders:
            return self._requests.generate(request)
        return self._wherever(model, request)

    # --- other meshes --------------------------------------------------------------------------------
    def _beyond(
        self, offers: Sequence[Offer], request: GenerateRequest
    ) -> AsyncGenerator[GenerateEvent, None]:
        """Whole by another mesh; where this one has the very same model, it goes on with the answer in the end."""
        first = offers[0]
        asked = replace(request, model=first.asked_as, mode="auto")
        own = [m for m in self._catalog.known() if m.content_id == first.model.manifest]
        here = (lambda again: self._in_this_mesh(own[0], replace(again, model=own[0].name))) if own else None
        peers = [PeerId(offer.peer) for offer in offers]
        mesh = (first.mesh_id, first.mesh)
        return self._forwarding.generate(peers, first.name, asked, name=first.name, here=here, mesh=mesh)

    async def _here_or_beyond(
        self, model: KnownModel, request: GenerateRequest
    ) -> AsyncGenerator[GenerateEvent, None]:
        """In this mesh; when that cannot be, before the first word, in another one that has the same model."""
        is_told = False
        try:
            async with aclosing(closable(self._in_this_mesh(model, request))) as events:
                async for event in events:
                    is_told = is_told or isinstance(event, TextDelta)
                    yield event
            return
        except P2PNodeError as error:
            offers = self._others.same(model.content_id)
            if is_told or not offers or not may_move(error, self._others.policy):
                raise
            refused = error
        offers = [offer for offer in offers if offer.mesh_id == offers[0].mesh_id]
        asked = replace(request, model=model.content_id, mode="auto")
        peers, mesh = [PeerId(offer.peer) for offer in offers], (offers[0].mesh_id, offers[0].mesh)
        name = offers[0].name
        try:
            async with aclosing(
                self._forwarding.generate(peers, name, asked, name=name, mesh=mesh)
            ) as events:
                async for event in events:
                    is_told = is_told or isinstance(event, TextDelta)
                    yield event
        except P2PNodeError as error:
            if is_told:
                raise
            message = f"{refused.message}; {offers[0].mesh} could not answer either: {error.message}"
            raise type(refused)(message, hint=refused.hint) from error

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
