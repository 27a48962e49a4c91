"""What every route shares: the node, who may ask, and the end of the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from quart import g, request

from p2pnode.api.keys import Scope
from p2pnode.api.metrics import ApiMetrics
from p2pnode.api.patience import Look, patiently, with_patience
from p2pnode.api.security import ApiSecurity, Caller, require
from p2pnode.api.traced import current
from p2pnode.errors import Busy
from p2pnode.facade import GenerateEvent, GenerateRequest, NodeFacade
from p2pnode.limits import API_LOADING_WAIT_S, API_REQUESTS_CONCURRENT_MAX

T = TypeVar("T")


@dataclass(slots=True)
class ApiContext:
    node: NodeFacade
    security: ApiSecurity
    metrics: ApiMetrics
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server stops: every stream ends then."""
    loading_wait_s: float = API_LOADING_WAIT_S
    generating: int = 0
    live_readers: int = 0

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """A generation of the node, counted by the metrics; ModelLoading when its model takes too long."""
        return self._generate(request, tell=False)

    def generate_telling(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """The same for who is shown progress: waits for the model and says how far it is."""
        return self._generate(request, tell=True)

    def _generate(self, request: GenerateRequest, *, tell: bool) -> AsyncIterator[GenerateEvent]:
        return with_patience(
            self.metrics.generate(replace(request, trace=current())),
            self._look(request.model),
            self.loading_wait_s,
            tell=tell,
        )

    async def loaded(self, model: str, work: Awaitable[T]) -> T:
        """The result of work with a model; ModelLoading when the model takes too long."""
        return await patiently(work, self._look(model), self.loading_wait_s)

    def _look(self, model: str | None) -> Look:
        return lambda: None if model is None else self.node.loading(model)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """One generation in flight, within the limit."""
        self.take_slot()
        try:
            yield
        finally:
            self.generating -= 1

    def take_slot(self) -> None:
        if self.generating >= API_REQUESTS_CONCURRENT_MAX:
            raise Busy(
                f"{API_REQUESTS_CONCURRENT_MAX} answers are being written already", hint="try again soon"
            )
        self.generating += 1


def caller(scope: Scope) -> Caller:
    """The caller of this request, who must have the scope."""
    return require(g.caller, scope)


async def body() -> bytes:
    data = await request.get_data()
    return data if isinstance(data, bytes) else data.encode()
