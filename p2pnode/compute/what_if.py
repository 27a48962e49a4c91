"""`plan --what-if`: the same question on a mesh, a context or a quantisation that is not there (yet). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from p2pnode import limits
from p2pnode.compute.cost import Device, Link, Mesh, ModelShape
from p2pnode.compute.wish import Wish, resolve
from p2pnode.errors import PlanError

_HINT = "write +name:16GiB,0.5,2ms | -name | context=8192 | quant=Q8_0 (speed is relative to this device)"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_BITS = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.7, "Q5_0": 5.5, "Q4_K_M": 4.85,
    "Q4_K_S": 4.58, "Q4_0": 4.5, "IQ4_XS": 4.25, "Q3_K_M": 3.9, "Q2_K": 3.0, "IQ2_XS": 2.4,
}  # fmt: skip
"""Bits per weight of whole files, as llama.cpp's quantize tool prints them."""


@dataclass(frozen=True, slots=True)
class AddDevice:
    name: str
    memory_bytes: int
    speed: float
    """Relative to the head."""
    rtt_s: float


@dataclass(frozen=True, slots=True)
class RemoveDevice:
    name: str


@dataclass(frozen=True, slots=True)
class SetContext:
    n_ctx: int


@dataclass(frozen=True, slots=True)
class SetQuantisation:
    name: str


Change = AddDevice | RemoveDevice | SetContext | SetQuantisation


def parse(text: str) -> Change:
    """One change as people write it; PlanError with the grammar otherwise."""
    text = text.strip()
    if match := re.fullmatch(r"\+([^:]+):([^,]+),([^,]+),([^,]+)", text):
        name, memory, speed, rtt = (part.strip() for part in match.groups())
        return AddDevice(name, size_of(memory), _positive(speed), _seconds(rtt))
    if match := re.fullmatch(r"-([^:=,]+)", text):
        return RemoveDevice(match[1].strip())
    if match := re.fullmatch(r"(?:context|ctx)\s*=\s*(\d{1,9})", text):
        return SetContext(int(match[1]))
    if match := re.fullmatch(r"(?:quant|quantisation|quantization)\s*=\s*(\w+)", text):
        return SetQuantisation(match[1].upper())
    raise PlanError(f"{text[:80]!r} is no change to try", hint=_HINT)


def size_of(text: str) -> int:
    """Bytes of `16GiB`, `16G`, `500M`; binary units."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise PlanError(f"{text[:40]!r} is no size", hint=_HINT)
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _positive(text: str) -> float:
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)x?", text)
    if match is None or float(match[1]) <= 0:
        raise PlanError(f"{text[:40]!r} is no relative speed", hint=_HINT)
    return float(match[1])


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)\s*(ms|us|s)", text)
    if match is None:
        raise PlanError(f"{text[:40]!r} is no round trip time", hint=_HINT)
    return float(match[1]) / {"s": 1.0, "ms": 1e3, "us": 1e6}[match[2]]


def apply(
    changes: Sequence[Change], wish: Wish, shape: ModelShape, mesh: Mesh
) -> tuple[Wish, ModelShape, Mesh]:
    """The question as it would be after the changes, in order."""
    for change in changes:
        match change:
            case AddDevice():
                mesh = _added(change, wish, mesh)
            case RemoveDevice(name):
                mesh = _removed(resolve(name, mesh), wish, mesh)
            case SetContext(n_ctx):
                wish = replace(wish, n_ctx=n_ctx)
            case _:
                shape = _requantised(change.name, shape)
    return wish, shape, mesh


def _added(change: AddDevice, wish: Wish, mesh: Mesh) -> Mesh:
    if change.name in {device.name for device in mesh.devices.values()}:
        raise PlanError(f"there is a device called {change.name!r} already", hint="choose another name")
    head = mesh.devices[wish.head]
    peer = f"what-if:{change.name}"
    device = Device(
        peer=peer,
        name=change.name,
        memory_free_bytes=change.memory_bytes,
        memory_total_bytes=change.memory_bytes,
        decode_bytes_per_s=head.decode_bytes_per_s * change.speed,
        prefill_bytes_per_s=head.prefill_bytes_per_s * change.speed,
        context_bytes_per_s=head.context_bytes_per_s * change.speed,
        step_overhead_s=head.step_overhead_s,
        can_rpc=head.can_rpc,
        build=head.build,
        version=head.version,
    )
    rates = [link.bytes_per_s for link in mesh.links.values()]
    link = Link(change.rtt_s, max(rates, default=limits.LINK_ASSUMED_BYTES_PER_S))
    links = {**mesh.links, **{(peer, other): link for other in mesh.devices}}
    return Mesh({**mesh.devices, peer: device}, links)


def _removed(device: Device, wish: Wish, mesh: Mesh) -> Mesh:
    if device.peer == wish.head:
        raise PlanError(
            f"{device.name} is asked and leads the plan; it cannot be left out", hint="ask another device"
        )
    return Mesh({peer: other for peer, other in mesh.devices.items() if peer != device.peer}, mesh.links)


def _requantised(name: str, shape: ModelShape) -> ModelShape:
    """Sizes scaled by bits per weight; the present bits are those of the layers' stored size."""
    bits = _BITS.get(name)
    now = shape.bits_per_weight
    if bits is None or now is None:
        known = ", ".join(_BITS)
        raise PlanError(f"{name} is no quantisation whose size is known", hint=f"one of {known}")
    factor = bits / now

    def scaled(sizes: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(size * factor) for size in sizes)

    return replace(
        shape,
        name=f"{shape.name} ({name})",
        layer_bytes=scaled(shape.layer_bytes),
        active_bytes=scaled(shape.active_bytes),
        embedding_bytes=int(shape.embedding_bytes * factor),
        output_bytes=int(shape.output_bytes * factor),
        bits_per_weight=bits,
    )
