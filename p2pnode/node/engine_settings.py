"""Engine options as they stand on this node: settings in the record, so that a restart loads a model as before."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from p2pnode import commands as c
from p2pnode.compute.engine_options import DeviceOptions, EngineOptions
from p2pnode.errors import RequestError
from p2pnode.node.keyed_locks import KeyedLocks
from p2pnode.node.ledger import Ledger
from p2pnode.projections.settings import value_of
from p2pnode.units import ContentId

MODEL = "engine."
"""Setting of a model, by content id: options that all devices of its plans share."""
DEVICE = "device.engine"
"""Setting: options of this device for whatever it loads."""

Release = Callable[[ContentId, str, bool], Awaitable[None]]
"""Model, reason, and whether what is loaded serves the plan that follows: only adapters change."""


class EngineSettings:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._turns: KeyedLocks[ContentId] = KeyedLocks()

    def of_model(self, content_id: ContentId) -> EngineOptions:
        """The defaults where the text is of a version that knew other options: better loaded than not at all."""
        try:
            return EngineOptions.parse(value_of(self._ledger.state.settings, MODEL + content_id))
        except RequestError:
            return EngineOptions()

    def of_device(self) -> DeviceOptions:
        try:
            return DeviceOptions.parse(value_of(self._ledger.state.settings, DEVICE))
        except RequestError:
            return DeviceOptions()

    @asynccontextmanager
    async def changed(
        self, content_id: ContentId, change: Callable[[EngineOptions], EngineOptions], release: Release
    ) -> AsyncIterator[EngineOptions]:
        """Other options while something is done with them, and afterwards unless that failed.

        One change of a model at a time, made from what the one before left: none undoes another.
        """
        async with self._turns.hold(content_id):
            before = self.of_model(content_id)
            options = change(before)
            if options == before:
                yield options
                return
            keep = options.without_adapters == before.without_adapters
            await self._set(content_id, options)
            await release(content_id, "its engine options change", keep)
            try:
                yield options
            except BaseException:
                await self._set(content_id, before)
                await release(content_id, "its engine options are what they were", keep)
                raise

    async def _set(self, content_id: ContentId, options: EngineOptions) -> None:
        await self._ledger.do(c.ChangeSetting(key=MODEL + content_id, value=options.text))
