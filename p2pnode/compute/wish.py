"""What a planner is asked, and how it says no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from p2pnode import limits
from p2pnode.compute.care import Care, Versions, banned, other_version, too_dear
from p2pnode.compute.cost import Device, Load, Mesh, ModelShape
from p2pnode.errors import PlanError

Strategy = Literal["speed", "memory"]
WishedMode = Literal[
    "auto", "local", "pipeline", "tensor", "tensor_rpc", "hybrid", "streamed", "disaggregated"
]


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for; what is not said is the planner's choice."""

    head: str
    mode: WishedMode = "auto"
    n_ctx: int = 2048
    parallel: int = 1
    prompt_tokens: int = 256
    stages: int | None = None
    devices: tuple[str, ...] | None = None
    """Names or peer ids, in this order, all of them used; None for the planner's choice."""
    strategy: Strategy = "speed"
    """How to choose: by predicted speed, or the seed's rule of memory shares."""
    memory_max_bytes: dict[str, int] = field(default_factory=dict)
    """Caps by peer id or name."""
    excluded: frozenset[str] = frozenset()
    pins: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Device -> layers it must compute, within one stage."""
    auto_modes: frozenset[str] = frozenset({"local", "pipeline"})
    """What `auto` may choose: the modes the asking node can carry out."""
    tensor_rtt_max_s: float = limits.TENSOR_RTT_MAX_S
    blocks: tuple[tuple[str, int, int], ...] | None = None
    """A hand-written map, obeyed or refused."""
    engine: str = ""
    """Engine options of the model, as the plan carries them; their memory is in the model's shape already."""
    battery: Care = "avoid"
    """What to think of devices that run on their battery."""
    metered: Care = "avoid"
    """And of those whose traffic costs money."""
    versions: Versions = "same"
    """Whether devices with another llama.cpp may compute parts: `any` gives up that texts are equal."""

    @property
    def names_devices(self) -> bool:
        """Somebody said which devices: then nothing is kept from them."""
        return self.devices is not None or self.blocks is not None

    def allows(self, mode: str) -> bool:
        """Asked for by name, or open to the planner's choice."""
        return self.mode == mode or (self.mode == "auto" and mode in self.auto_modes)

    @property
    def load(self) -> Load:
        return Load(self.n_ctx, self.parallel, self.prompt_tokens)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A candidate that was not chosen, and the numbers why."""

    candidate: str
    reason: str
    numbers: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"candidate": self.candidate, "reason": self.reason, "numbers": self.numbers}


def check_wish(wish: Wish, shape: ModelShape) -> None:
    """PlanError for what no mesh could give."""
    if not 0 < wish.n_ctx <= shape.context_length:
        raise PlanError(
            f"a context of {wish.n_ctx} tokens was asked for, {shape.name} was made for {shape.context_length}",
            hint=f"ask for at most {shape.context_length}",
            context_length=shape.context_length,
        )
    if not 0 < wish.parallel <= limits.PLAN_PARALLEL_MAX:
        raise PlanError(
            f"{wish.parallel} sessions at a time", hint=f"between 1 and {limits.PLAN_PARALLEL_MAX}"
        )
    if wish.stages is not None and not 0 < wish.stages <= min(shape.layer_count, limits.PLAN_DEVICES_MAX):
        raise PlanError(
            f"{wish.stages} stages for {shape.layer_count} layers",
            hint="every stage computes at least one layer",
        )
    for name, (first, end) in wish.pins.items():
        if not 0 <= first < end <= shape.layer_count:
            raise PlanError(
                f"{name} is pinned to layers [{first}, {end}) of a model with {shape.layer_count}"
            )


def resolve(name: str, mesh: Mesh) -> Device:
    """A device by peer id, by name, or by the end of its peer id; PlanError when there is none or several."""
    if name in mesh.devices:
        return mesh.devices[name]
    found = [d for d in mesh.devices.values() if d.name == name] or [
        d for d in mesh.devices.values() if len(name) >= 6 and d.peer.endswith(name)
    ]
    if len(found) == 1:
        return found[0]
    known = ", ".join(sorted(d.name for d in mesh.devices.values()))
    many = f"{len(found)} devices are" if found else "no device is"
    raise PlanError(f"{many} called {name!r}", hint=f"devices here: {known}")


def usable_devices(wish: Wish, shape: ModelShape, mesh: Mesh) -> tuple[list[Device], list[Rejection]]:
    """Devices that may be used, in the wished order or the head first and then the fastest, with caps applied."""
    if wish.head not in mesh.devices:
        raise PlanError("the device that is to lead is not in this mesh")
    if wish.devices is not None:
        chosen = [resolve(name, mesh) for name in wish.devices]
        if len({d.peer for d in chosen}) != len(chosen):
            raise PlanError("a device is named twice")
    else:
        others = [d for d in mesh.devices.values() if d.peer != wish.head]
        chosen = [mesh.devices[wish.head], *sorted(others, key=lambda d: (-d.decode_bytes_per_s, d.peer))]
    excluded = {resolve(name, mesh).peer for name in wish.excluded}
    result: list[Device] = []
    rejections: list[Rejection] = []
    for device in chosen:
        reason = (
            _unusable(device, excluded)
            or other_version(wish, mesh.devices[wish.head], device)
            or banned(wish, device)
            or too_dear(wish, shape, device)
        )
        if reason is None:
            result.append(device)
        else:
            rejections.append(Rejection(device.name, reason))
    if wish.devices is not None and rejections:
        first = rejections[0]
        hint = "choose other devices"
        if "llama.cpp" in first.reason:
            hint = "install the same version on both, or allow it: p2pnode set plan.versions any"
        raise PlanError(f"{first.candidate} was asked for, but {first.reason}", hint=hint)
    rejections += [Rejection(d.name, f"more than {limits.PLAN_DEVICES_MAX} devices") for d in result[64:]]
    return result[: limits.PLAN_DEVICES_MAX], rejections


def _unusable(device: Device, excluded: set[str]) -> str | None:
    if device.peer in excluded:
        return "you excluded it"
    if (why := absent(device)) is not None:
        return why
    if device.decode_bytes_per_s <= 0:
        return "its speed is not measured yet"
    return None


def absent(device: Device) -> str | None:
    """Why a device that its owner does not lend now is left out, and when it comes back if it says so; or that it
    gives no sign of life."""
    if device.is_paused:
        return f"it is paused, {device.lending}" if device.lending else "it is paused"
    return f"it may be gone: silent for {device.silent_s:.0f} s" if device.silent_s > 0 else None


def capped(wish: Wish, shape: ModelShape, mesh: Mesh) -> Mesh:
    """The mesh with GPU memory where that is what counts, and the wished memory caps as if that were all there is."""
    caps = {resolve(name, mesh).peer: cap for name, cap in wish.memory_max_bytes.items()}
    rooms = {peer: device.room_bytes(shape) for peer, device in mesh.devices.items()}
    devices = {
        peer: replace(device, memory_free_bytes=min(rooms[peer], caps.get(peer, rooms[peer])), gpu_layers=0)
        for peer, device in mesh.devices.items()
    }
    return Mesh(devices, mesh.links)


def size_text(size: int) -> str:
    """Bytes for people."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit in ("B", "KiB") else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def summary(rejections: Sequence[Rejection], count: int = 3) -> str:
    return "; ".join(f"{r.candidate}: {r.reason}" for r in rejections[:count])
