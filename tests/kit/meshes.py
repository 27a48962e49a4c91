"""Meshes and models as the planner sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from p2pnode.compute.cost import Device, Link, Mesh, ModelShape

GIB = 2**30
MIB = 2**20


def shape(layers: int = 8, layer_mib: int = 100, ends_mib: int = 50, **changes: Any) -> ModelShape:
    """A model of equal layers."""
    made = ModelShape(
        name="toy",
        content_id="bafkr4itoy",
        architecture="llama",
        layer_bytes=(layer_mib * MIB,) * layers,
        active_bytes=(layer_mib * MIB,) * layers,
        embedding_bytes=ends_mib * MIB,
        output_bytes=ends_mib * MIB,
        width=1024,
        kv_bytes_per_token=(1024,) * layers,
        context_length=8192,
        shard_units=4,
        bits_per_weight=4.85,
    )
    return replace(made, **changes)


def device(name: str, gib: float = 4.0, gb_per_s: float = 10.0, **changes: Any) -> Device:
    """`n0` has the peer id `peer-n0`."""
    return replace(Device(f"peer-{name}", name, int(gib * GIB), int(gib * GIB), gb_per_s * 1e9), **changes)


def mesh(
    *devices: Device,
    rtt_ms: float = 1.0,
    rate: float = 1e9,
    rtts: Mapping[tuple[str, str], float] | None = None,
) -> Mesh:
    """All linked alike, but for `rtts` in milliseconds by names."""
    links = {}
    for at, a in enumerate(devices):
        for b in devices[at + 1 :]:
            own = (rtts or {}).get((a.name, b.name), rtt_ms)
            links[a.peer, b.peer] = Link(own / 1000, rate)
    return Mesh({d.peer: d for d in devices}, links)


@st.composite
def meshes(draw: st.DrawFn, devices_max: int = 5) -> Mesh:
    """Devices of very different size and speed, near and far."""
    count = draw(st.integers(1, devices_max))
    made = [
        device(
            f"n{i}", draw(st.sampled_from([0.2, 0.5, 1, 2, 8])), draw(st.sampled_from([1, 2, 5, 10, 40, 200]))
        )
        for i in range(count)
    ]
    rtts = {
        (a.name, b.name): draw(st.sampled_from([0.1, 0.5, 2, 10, 60]))
        for i, a in enumerate(made)
        for b in made[i + 1 :]
    }
    return mesh(*made, rtts=rtts, rate=draw(st.sampled_from([1e6, 3e7, 1e9])))


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    layers = draw(st.integers(1, 10))
    sizes = tuple(draw(st.integers(1, 200)) * MIB for _ in range(layers))
    boundary = draw(st.sampled_from([1, 1, 1, 4]))
    return shape(
        layers,
        layer_bytes=sizes,
        active_bytes=sizes,
        boundary=boundary,
        is_tied=draw(st.booleans()),
        **_rows(draw),
    )


def _rows(draw: st.DrawFn) -> dict[str, int]:
    """Room to compute, from nothing to more than the weights."""
    return {
        "layer_row_bytes": draw(st.sampled_from([0, 100_000, 700_000])),
        "output_row_bytes": draw(st.sampled_from([0, 500_000])),
    }
