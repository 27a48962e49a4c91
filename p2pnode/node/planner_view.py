"""What the planner is given: sizes by the engine's options, a mesh without its load, links nobody timed, holdings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from p2pnode import limits
from p2pnode.compute.cost import Link, Mesh, ModelShape
from p2pnode.compute.engine_options import EngineOptions
from p2pnode.models.stored import Holdings


def kept_as(engine: EngineOptions, shape: ModelShape) -> ModelShape:
    """Sizes in memory and on the wire by their types, and the context that stretched positions reach."""
    return replace(
        shape,
        kv_bytes_per_token=tuple(math.ceil(size * engine.kv_fraction) for size in shape.kv_bytes_per_token),
        context_length=engine.stretched(shape.context_length),
        row_value_bytes=engine.row_value_bytes,
        sum_value_bytes=engine.sum_value_bytes,
    )


def emptied(mesh: Mesh) -> Mesh:
    """Every device as if nothing else ran on it; what its operator allows stays the limit."""
    devices = {
        peer: replace(device, memory_free_bytes=max(device.memory_free_bytes, device.memory_total_bytes))
        for peer, device in mesh.devices.items()
    }
    return Mesh(devices, mesh.links)


def timed(mesh: Mesh) -> Mesh:
    """Links between others that they have not told of yet are taken for the slowest known one."""
    slowest_s = max((link.rtt_s for link in mesh.links.values()), default=limits.RTT_ASSUMED_S)
    links = {pair: Link(slowest_s, limits.LINK_ASSUMED_BYTES_PER_S) for pair in combinations(mesh.devices, 2)}
    return Mesh(
        mesh.devices, {**links, **mesh.links, **{(b, a): link for (a, b), link in mesh.links.items()}}
    )


def held_by(said: Sequence[Mapping[str, Any]], content_id: str) -> Holdings:
    """What a device says it holds of a model; its form was checked when it was heard."""
    entry = next((m for m in said if m.get("manifest") == content_id), None)
    if entry is None:
        return Holdings((), False)
    if entry.get("complete") and "held" not in entry:  # an older version says no more
        return Holdings(((0, limits.MODEL_LAYERS_MAX),), True)
    held = entry.get("held", {})
    return Holdings(tuple((first, end) for first, end in held.get("layers", [])), held.get("ends") is True)
