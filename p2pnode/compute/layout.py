"""Ways to divide layers among devices: by memory (the seed's floor rule), by speed, or by hand."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from math import floor

from p2pnode.compute.cost import Device, Group, ModelShape
from p2pnode.errors import PlanError


def floor_split(layer_count: int, weights: Sequence[float]) -> list[int]:
    """floor(share x layers) each, the remainder to the largest weight (LINUS-AI's rule)."""
    total = sum(weights)
    counts = [floor(weight / total * layer_count) for weight in weights]
    counts[weights.index(max(weights))] += layer_count - sum(counts)
    return counts


def proportional_split(layer_count: int, weights: Sequence[float], at_least: int = 1) -> list[int]:
    """Largest remainder, with a minimum for everyone."""
    assert layer_count >= at_least * len(weights)
    total = sum(weights)
    exact = [weight / total * layer_count for weight in weights]
    counts = [max(at_least, floor(value)) for value in exact]
    while sum(counts) < layer_count:
        counts[max(range(len(counts)), key=lambda i: (exact[i] - counts[i], -i))] += 1
    while sum(counts) > layer_count:
        rich = [i for i in range(len(counts)) if counts[i] > at_least]
        counts[min(rich, key=lambda i: (exact[i] - counts[i], -i))] -= 1
    return counts


def to_groups(counts: Sequence[int], peers: Sequence[str]) -> tuple[Group, ...]:
    """Consecutive layers for devices in order; devices without layers are left out."""
    groups, first = [], 0
    for count, peer in zip(counts, peers, strict=True):
        if count:
            groups.append(Group(first, first + count, (peer,)))
            first += count
    return tuple(groups)


def aligned(counts: Sequence[int], boundary: int) -> list[int]:
    """Move cuts down to multiples of `boundary`."""
    if boundary == 1:
        return list(counts)
    result, end, previous = [], 0, 0
    for number, count in enumerate(counts):
        end += count
        cut = end if number == len(counts) - 1 else end - end % boundary
        result.append(cut - previous)
        previous = cut
    return result


def by_memory(shape: ModelShape, devices: Sequence[Device]) -> tuple[Group, ...]:
    counts = floor_split(shape.layer_count, [float(max(d.memory_free_bytes, 1)) for d in devices])
    return to_groups(aligned(counts, shape.boundary), [d.peer for d in devices])


def by_speed(shape: ModelShape, devices: Sequence[Device]) -> tuple[Group, ...]:
    counts = proportional_split(shape.layer_count, [d.decode_bytes_per_s for d in devices])
    return to_groups(aligned(counts, shape.boundary), [d.peer for d in devices])


def read_map(text: str) -> tuple[tuple[str, int, int], ...]:
    """A hand-written map: `[[blocks]]` tables with `device` and `layers = [first, end]`, in order."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"the map is not TOML: {error}", hint=_MAP_HINT) from error
    blocks = data.get("blocks")
    if not isinstance(blocks, list) or not blocks:
        raise PlanError("the map has no [[blocks]]", hint=_MAP_HINT)
    result = []
    for block in blocks:
        match block:
            case {"device": str(device), "layers": [int(first), int(end)]}:
                result.append((device, first, end))
            case _:
                raise PlanError(f"this block of the map cannot be read: {block}", hint=_MAP_HINT)
    return tuple(result)


_MAP_HINT = 'write for each device: [[blocks]] / device = "name" / layers = [first, end]'
