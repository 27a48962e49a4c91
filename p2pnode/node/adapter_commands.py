"""The adapters of a model: which act, one more, one less. Plans of the model are made anew each time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from p2pnode.compute.engine_options import EngineOptions, Lora
from p2pnode.errors import NotFound, RequestError
from p2pnode.facade import JsonObject
from p2pnode.limits import ADAPTER_SCALE_MAX
from p2pnode.node.core import Node

Command = Callable[[Mapping[str, Any]], Awaitable[JsonObject]]


class AdapterCommands:
    def __init__(self, node: Node) -> None:
        self._node = node

    def table(self) -> dict[str, Command]:
        return {
            "adapters": self._adapters,
            "add_adapter": self._add_adapter,
            "remove_adapter": self._remove_adapter,
        }

    async def _adapters(self, a: Mapping[str, Any]) -> JsonObject:
        del a
        node = self._node
        return {
            "adapters": [
                {"model": model.name, "kind": kind, "scale": scale, **node.adapters.view(identity)}
                for model in node.catalog.known()
                for engine in (node.engine_options.of_model(model.content_id),)
                for kind, found in (("lora", engine.adapters), ("control vector", engine.control_vectors))
                for identity, scale in found
            ]
        }

    async def _add_adapter(self, a: Mapping[str, Any]) -> JsonObject:
        """`path`: a file on this device. Added again, an adapter gets the new `scale`."""
        node, scale = self._node, a.get("scale", 1.0)
        if (
            isinstance(scale, bool)
            or not isinstance(scale, int | float)
            or not abs(scale) <= ADAPTER_SCALE_MAX
        ):
            raise RequestError(
                f"scale is a number from -{ADAPTER_SCALE_MAX} to {ADAPTER_SCALE_MAX}", param="scale"
            )
        model = node.catalog.resolve(str(a["model"]))
        base = await node.bringing.slim_index(model)
        identity = await asyncio.to_thread(node.adapters.add, Path(str(a["path"])), base)
        is_control = node.adapters.is_control_vector(identity)

        def with_it(standing: EngineOptions) -> EngineOptions:
            lora, control = _without(standing, identity)
            (control if is_control else lora).append((identity, float(scale)))
            return standing.with_adapters(lora, control)

        async with node.engine_options.changed(model.content_id, with_it, node.choosing.renew):
            return {"model": model.name, "scale": scale, **node.adapters.view(identity)}

    async def _remove_adapter(self, a: Mapping[str, Any]) -> JsonObject:
        """`adapter`: its content id, or its name."""
        node, wanted = self._node, str(a["adapter"])
        model = node.catalog.resolve(str(a["model"]))
        standing = node.engine_options.of_model(model.content_id)
        named = (*standing.adapters, *standing.control_vectors)
        views = [node.adapters.view(identity) for identity, _ in named]
        found = [view for view in views if wanted and wanted in (view["adapter"], view["name"])]
        if len(found) != 1:
            raise NotFound(
                f"{model.name} has {len(found) or 'no'} adapter called {wanted[:128]!r}",
                hint="p2pnode adapters list --json shows their ids",
            )
        gone = str(found[0]["adapter"])

        def without_it(standing: EngineOptions) -> EngineOptions:
            return standing.with_adapters(*_without(standing, gone))

        async with node.engine_options.changed(model.content_id, without_it, node.choosing.renew):
            used = {row["adapter"] for row in (await self._adapters({}))["adapters"]}
            if gone not in used:
                await asyncio.to_thread(node.adapters.remove, gone)
            return {"model": model.name, **found[0]}


def _without(standing: EngineOptions, identity: str) -> tuple[list[Lora], list[Lora]]:
    lora, control = (
        [each for each in named if each[0] != identity]
        for named in (standing.adapters, standing.control_vectors)
    )
    return lora, control
