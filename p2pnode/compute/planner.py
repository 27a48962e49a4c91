"""From a wish, a model and a mesh to a plan, with a reason for everything that was not chosen. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from p2pnode import limits
from p2pnode.compute import cost, layout
from p2pnode.compute.cost import Device, Group, Load, Mesh, ModelShape
from p2pnode.compute.plan import Plan, PlanMode, Prediction, Rank, StagePlan, check_layers, role_of
from p2pnode.errors import LayerGap, NoPlan, PlanError

Strategy = Literal["speed", "memory"]
WishedMode = Literal["auto", "local", "pipeline", "tensor", "tensor_rpc", "hybrid", "streamed"]


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
    """Names or peer ids, in this order; None for all."""
    strategy: Strategy = "speed"
    memory_max_bytes: dict[str, int] = field(default_factory=dict)
    """Caps by peer id or name."""
    excluded: frozenset[str] = frozenset()
    pins: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Device -> layers it must have."""
    tensor_rtt_max_s: float = limits.TENSOR_RTT_MAX_S
    blocks: tuple[tuple[str, int, int], ...] | None = None
    """A hand-written map, obeyed or refused."""

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


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan and everything that was considered beside it."""

    plan: Plan
    rejections: tuple[Rejection, ...]


def plan(wish: Wish, shape: ModelShape, mesh: Mesh) -> Planned:
    """The best plan for a wish; NoPlan(rejections) in words when nothing fits."""
    _check_wish(wish, shape)
    devices, rejections = usable_devices(wish, mesh)
    builder = Builder(wish, shape, mesh)
    if wish.blocks is not None:
        return Planned(
            _or_no_plan(builder.build(*_mapped(wish, shape, devices)), rejections, shape), tuple(rejections)
        )
    found: list[Plan] = []
    for mode, groups in _candidates(wish, shape, devices, rejections):
        result = builder.build(mode, groups)
        if isinstance(result, Plan):
            found.append(result)
        else:
            rejections.append(result)
    if not found:
        raise no_plan(rejections, shape)
    best = min(found, key=lambda p: (p.prediction.decode_s, len(p.peers)))
    rejections += [_slower(other, best) for other in found if other is not best]
    return Planned(best, tuple(rejections))


def _check_wish(wish: Wish, shape: ModelShape) -> None:
    if wish.n_ctx > shape.context_length:
        raise PlanError(
            f"a context of {wish.n_ctx} tokens was asked for, {shape.name} was trained for {shape.context_length}",
            hint=f"ask for at most {shape.context_length}",
            context_length=shape.context_length,
        )
    if wish.stages is not None and not 0 < wish.stages <= min(shape.layer_count, limits.PLAN_DEVICES_MAX):
        raise PlanError(
            f"{wish.stages} stages for {shape.layer_count} layers", hint="at most one stage a layer"
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
    raise PlanError(
        f"{len(found) or 'no'} device{'s are' if found else ' is'} called {name!r}",
        hint=f"devices here: {known}",
    )


def usable_devices(wish: Wish, mesh: Mesh) -> tuple[list[Device], list[Rejection]]:
    """Devices that may be used, in the wished order or the head first and then the fastest, with caps applied."""
    if wish.devices is not None:
        chosen = [resolve(name, mesh) for name in wish.devices]
        if len({d.peer for d in chosen}) != len(chosen):
            raise PlanError("a device is named twice")
    else:
        others = [d for d in mesh.devices.values() if d.peer != wish.head]
        chosen = [mesh.devices[wish.head]] if wish.head in mesh.devices else []
        chosen += sorted(others, key=lambda d: (-d.decode_bytes_per_s, d.peer))
    excluded = {resolve(name, mesh).peer for name in wish.excluded}
    caps = {resolve(name, mesh).peer: cap for name, cap in wish.memory_max_bytes.items()}
    result, rejections = [], []
    for device in chosen:
        if device.peer in excluded:
            rejections.append(Rejection(device.name, "you excluded it"))
        elif device.is_paused:
            rejections.append(Rejection(device.name, "it is paused"))
        elif device.decode_bytes_per_s <= 0:
            rejections.append(Rejection(device.name, "its speed is not measured yet"))
        else:
            cap = min(device.memory_free_bytes, caps.get(device.peer, device.memory_free_bytes))
            result.append(replace(device, memory_free_bytes=cap))
    return result[: limits.PLAN_DEVICES_MAX], rejections


def _candidates(
    wish: Wish, shape: ModelShape, devices: Sequence[Device], rejections: list[Rejection]
) -> list[tuple[PlanMode, tuple[Group, ...]]]:
    found: list[tuple[PlanMode, tuple[Group, ...]]] = []
    whole = (Group(0, shape.layer_count, (wish.head,)),)
    if wish.mode in ("auto", "local") and (wish.stages or 1) == 1:
        found.append(("local", whole))
    if wish.mode in ("auto", "pipeline"):
        if shape.cut_refusal is not None:
            rejections.append(Rejection("pipeline", shape.cut_refusal))
        else:
            found += [("pipeline", groups) for groups in pipelines(wish, shape, devices)]
    return found


def pipelines(wish: Wish, shape: ModelShape, devices: Sequence[Device]) -> list[tuple[Group, ...]]:
    """Layers divided by the wished strategy over the first N devices."""
    divide = layout.by_memory if wish.strategy == "memory" else layout.by_speed
    counts = [wish.stages] if wish.stages else range(1 if wish.devices else 2, len(devices) + 1)
    if wish.devices is not None and wish.stages is None:
        counts = [len(devices)]
    return [
        divide(shape, devices[:count])
        for count in counts
        if 0 < count <= min(len(devices), shape.layer_count)
    ]


def _mapped(wish: Wish, shape: ModelShape, devices: Sequence[Device]) -> tuple[PlanMode, tuple[Group, ...]]:
    """The hand-written map as groups; LayerGap or PlanError with the reason when it cannot be obeyed."""
    assert wish.blocks is not None
    check_layers([(first, end) for _, first, end in wish.blocks], shape.layer_count)
    mesh = Mesh({device.peer: device for device in devices})
    groups = tuple(Group(first, end, (resolve(name, mesh).peer,)) for name, first, end in wish.blocks)
    for group in groups[:-1]:
        if group.end % shape.boundary:
            raise LayerGap(
                f"{shape.architecture} is cut at multiples of {shape.boundary} layers, not at {group.end}"
            )
    if len(groups) > 1 and shape.cut_refusal is not None:
        raise PlanError(shape.cut_refusal, hint="run it whole on one device")
    return ("local" if [g.peers[0] for g in groups] == [wish.head] else "pipeline"), groups


@dataclass(slots=True)
class Builder:
    """Turns groups into a costed plan, or says why they cannot be one."""

    wish: Wish
    shape: ModelShape
    mesh: Mesh

    def build(self, mode: PlanMode, groups: Sequence[Group]) -> Plan | Rejection:
        rejection = self._fit(mode, groups)
        if rejection is not None:
            return rejection
        stages = tuple(self._stage(group, groups) for group in groups)
        made = Plan(
            plan_id="",
            model=self.shape.name,
            content_id=self.shape.content_id,
            mode=mode,
            head=self.wish.head,
            stages=stages,
            layer_count=self.shape.layer_count,
            n_ctx=self.wish.n_ctx,
            parallel=self.wish.parallel,
            prediction=self.predict(groups),
            reasons=(self._why(mode, groups),),
            output_memory_bytes=self._output_bytes(groups),
        )
        return made.check().with_id()

    def predict(self, groups: Sequence[Group]) -> Prediction:
        head = self.mesh.devices[self.wish.head]
        compute_s = sum(cost.group_decode_s(self.shape, self.mesh, group) for group in groups)
        compute_s += cost.output_decode_s(self.shape, head)
        network_s = cost.network_s(self.shape, self.mesh, self.wish.head, groups)
        sizes = [self._fetch_bytes(peer, group, groups) for group in groups for peer in group.peers]
        fetch = [self._fetch_s(peer, size) for (peer, size) in self._fetches(groups)]
        return Prediction(
            first_token_s=cost.first_token_s(
                self.shape, self.mesh, head.peer, groups, self.wish.prompt_tokens
            ),
            decode_s=compute_s + network_s,
            compute_s=compute_s,
            network_s=network_s,
            fetch_bytes=sum(sizes),
            fetch_s=max(fetch, default=0.0),
        )

    def _fetches(self, groups: Sequence[Group]) -> list[tuple[str, int]]:
        return [(peer, self._fetch_bytes(peer, group, groups)) for group in groups for peer in group.peers]

    def _fetch_s(self, peer: str, size: int) -> float:
        """From the best linked other device, as an estimate."""
        if size == 0:
            return 0.0
        rates = [self.mesh.link(peer, other).bytes_per_s for other in self.mesh.devices if other != peer]
        return size / max(rates, default=cost.ASSUMED_LINK.bytes_per_s)

    def _stage(self, group: Group, groups: Sequence[Group]) -> StagePlan:
        return StagePlan(
            layer_first=group.first,
            layer_end=group.end,
            ranks=tuple(
                Rank(
                    peer, share, self._rank_bytes(rank, group, groups), self._fetch_bytes(peer, group, groups)
                )
                for rank, (peer, share) in enumerate(zip(group.peers, group.shares, strict=True))
            ),
            role=role_of(group.first, group.end, self.shape.layer_count),
            decode_s=cost.group_decode_s(self.shape, self.mesh, group),
        )

    def _has_output(self, group: Group, groups: Sequence[Group]) -> bool:
        return group is groups[-1] and group.peers == (self.wish.head,)

    def _rank_bytes(self, rank: int, group: Group, groups: Sequence[Group]) -> int:
        return cost.unit_memory_bytes(
            self.shape,
            self.wish.load,
            group.first,
            group.end,
            embedding=group.first == 0,
            output=self._has_output(group, groups),
            part=group.shares[rank] / sum(group.shares),
        )

    def _output_bytes(self, groups: Sequence[Group]) -> int:
        """The head's separate output unit."""
        if self._has_output(groups[-1], groups):
            return 0
        last = self.shape.layer_count
        return cost.unit_memory_bytes(self.shape, self.wish.load, last, last, embedding=False, output=True)

    def _fetch_bytes(self, peer: str, group: Group, groups: Sequence[Group]) -> int:
        device = self.mesh.devices[peer]
        part = group.shares[group.peers.index(peer)] / sum(group.shares)
        layers = sum(
            self.shape.layer_bytes[i] for i in range(group.first, group.end) if i not in device.held_layers
        )
        ends = 0 if device.holds_ends else self.shape.weight_bytes(
            0, 0, embedding=group.first == 0, output=group is groups[-1] and self.wish.head == peer
        )  # fmt: skip
        return int(layers * part) + ends

    def _fit(self, mode: PlanMode, groups: Sequence[Group]) -> Rejection | None:
        """None when every device has the memory and the disk its work needs."""
        label = describe(mode, groups, self.mesh)
        needed: dict[str, int] = {self.wish.head: self._output_bytes(groups)}
        fetched: dict[str, int] = {}
        for group in groups:
            for rank, peer in enumerate(group.peers):
                needed[peer] = needed.get(peer, 0) + self._rank_bytes(rank, group, groups)
                fetched[peer] = fetched.get(peer, 0) + self._fetch_bytes(peer, group, groups)
        for peer, size in needed.items():
            device = self.mesh.devices.get(peer)
            if device is None:
                return Rejection(label, "the head is not a measured device")
            if size > device.memory_free_bytes:
                numbers = {
                    "device": device.name,
                    "needed_bytes": size,
                    "free_bytes": device.memory_free_bytes,
                }
                text = f"{device.name} needs {size_text(size)} and has {size_text(device.memory_free_bytes)} free"
                return Rejection(label, text, numbers)
            disk = device.disk_free_bytes
            if disk is not None and fetched.get(peer, 0) > disk:
                numbers = {"device": device.name, "needed_bytes": fetched[peer], "free_bytes": disk}
                text = f"{device.name} must fetch {size_text(fetched[peer])} and has {size_text(disk)} of disk free"
                return Rejection(label, text, numbers)
        return None

    def _why(self, mode: PlanMode, groups: Sequence[Group]) -> str:
        found = self.predict(groups)
        return (
            f"{describe(mode, groups, self.mesh)}: {found.tokens_per_s:.1f} tokens/s expected, "
            f"{1000 * found.compute_s:.1f} ms computing and {1000 * found.network_s:.1f} ms network a token"
        )


def describe(mode: PlanMode, groups: Sequence[Group], mesh: Mesh) -> str:
    """One line for people: mode, devices and layers."""
    parts = []
    for group in groups:
        names = "+".join(mesh.devices[p].name if p in mesh.devices else p[-6:] for p in group.peers)
        parts.append(f"{names} [{group.first}, {group.end})")
    return f"{mode} {' → '.join(parts)}"


def size_text(size: int) -> str:
    """Bytes for people."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit in ("B", "KiB") else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _slower(other: Plan, best: Plan) -> Rejection:
    mine, theirs = other.prediction.tokens_per_s, best.prediction.tokens_per_s
    return Rejection(
        other.reasons[0].split(":")[0],
        f"slower: {mine:.1f} tokens/s expected against {theirs:.1f}",
        {"tokens_per_s": round(mine, 3), "best_tokens_per_s": round(theirs, 3)},
    )


def no_plan(rejections: Sequence[Rejection], shape: ModelShape) -> NoPlan:
    why = "; ".join(f"{r.candidate}: {r.reason}" for r in rejections[:3]) or "no device is ready"
    return NoPlan(f"{shape.name} does not fit this mesh: {why}", rejections=[r.as_dict() for r in rejections])


def _or_no_plan(result: Plan | Rejection, rejections: list[Rejection], shape: ModelShape) -> Plan:
    if isinstance(result, Plan):
        return result
    raise no_plan([*rejections, result], shape)
