"""From a wish, a model and a mesh to a plan, with a reason for everything that was not chosen. Pure.

Source: specs/10-plans.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from p2pnode import limits
from p2pnode.compute import cost, layout
from p2pnode.compute.builder import Builder, describe
from p2pnode.compute.cost import Device, Group, Mesh, ModelShape
from p2pnode.compute.plan import Plan, PlanMode, check_layers
from p2pnode.compute.search import Search, Unit
from p2pnode.compute.wish import (
    Rejection,
    Strategy,
    Wish,
    WishedMode,
    capped,
    check_wish,
    resolve,
    size_text,
    summary,
    usable_devices,
)
from p2pnode.errors import LayerGap, NoPlan, PlanError

__all__ = ["Planned", "Rejection", "Strategy", "Wish", "WishedMode", "plan", "resolve"]


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan and everything that was considered beside it."""

    plan: Plan
    rejections: tuple[Rejection, ...]


Candidate = tuple[PlanMode, tuple[Group, ...]]


def plan(wish: Wish, shape: ModelShape, mesh: Mesh) -> Planned:
    """The best plan for a wish; NoPlan(rejections, nearest) in words when nothing fits."""
    check_wish(wish, shape)
    mesh = capped(wish, mesh)
    devices, rejections = usable_devices(wish, mesh)
    builder = Builder(wish, shape, mesh)
    found: list[Plan] = []
    for mode, groups in _candidates(wish, shape, mesh, devices, rejections):
        result = builder.build(mode, groups)
        if isinstance(result, Rejection):
            rejections.append(result)
        elif all(result.plan_id != other.plan_id for other in found):
            found.append(result)
    if not found:
        raise _no_plan(wish, shape, mesh, devices, rejections)
    best = _choose(found)
    rejections += [_slower(other, best) for other in found if other is not best]
    if (
        wish.devices is None
        and wish.blocks is None
        and wish.strategy == "speed"
        and shape.cut_refusal is None
    ):
        rejections += _left_out(best, shape, mesh, devices)
    return Planned(best, tuple(rejections))


def _choose(found: Sequence[Plan]) -> Plan:
    """The fastest; several devices only where they are clearly faster than one."""
    fastest = min(found, key=_order)
    alone = [p for p in found if len(p.peers) == 1 and p.mode != "streamed"] or [
        p for p in found if len(p.stages) == 1
    ]
    if alone:
        best_alone = min(alone, key=_order)
        if fastest.prediction.decode_s * limits.PLAN_GAIN_MIN > best_alone.prediction.decode_s:
            return best_alone
    return fastest


def _order(made: Plan) -> tuple[float, int, str]:
    return made.prediction.decode_s, len(made.peers), made.plan_id


# --- candidates --------------------------------------------------------------------------------------
def _candidates(
    wish: Wish, shape: ModelShape, mesh: Mesh, devices: Sequence[Device], rejections: list[Rejection]
) -> Iterator[Candidate]:
    if wish.blocks is not None:
        yield _mapped(wish, shape, devices)
        return
    whole = (Group(0, shape.layer_count, (wish.head,)),)
    is_alone = wish.stages in (None, 1) and (wish.devices is None or [d.peer for d in devices] == [wish.head])
    if wish.allows("local") and is_alone and not wish.pins:
        yield "local", whole
    if wish.allows("streamed") and is_alone and not wish.pins:
        yield from _streamed(wish, shape, mesh, whole)
    if wish.mode in ("local", "streamed"):
        return
    if shape.cut_refusal is not None:
        rejections.append(Rejection("every split", shape.cut_refusal))
        return
    if wish.allows("pipeline"):
        yield from _pipelines(wish, shape, mesh, devices, rejections)
    if wish.allows("tensor") or wish.allows("hybrid"):
        yield from _tensor(wish, shape, mesh, devices, rejections)
    if wish.allows("tensor_rpc"):
        yield from _rpc(wish, shape, mesh, devices, rejections)


def _streamed(wish: Wish, shape: ModelShape, mesh: Mesh, whole: tuple[Group, ...]) -> Iterator[Candidate]:
    """Worth a thought only where the model does not fit; on request always."""
    needed = cost.unit_memory_bytes(shape, wish.load, 0, shape.layer_count, embedding=True, output=True)
    if wish.mode == "streamed" or needed > mesh.devices[wish.head].memory_free_bytes:
        yield "streamed", whole


def _pipelines(
    wish: Wish, shape: ModelShape, mesh: Mesh, devices: Sequence[Device], rejections: list[Rejection]
) -> Iterator[Candidate]:
    if wish.strategy == "memory":
        counts = (
            range(1 if wish.mode == "pipeline" else 2, len(devices) + 1)
            if wish.stages is None
            else [wish.stages]
        )
        if wish.devices is not None:
            counts = [len(devices)]
        for count in counts:
            if count <= len(devices):
                yield _pipeline(wish, layout.by_memory(shape, devices[:count]))
        return
    units = [Unit((device.peer,)) for device in devices]
    stages = len(units) if wish.devices is not None and wish.stages is None else wish.stages
    found = Search(wish, shape, mesh, units).best(stages=stages, fixed_order=wish.devices is not None)
    if found is not None:
        yield _pipeline(wish, found.groups)
        if stages is None and len(found.groups) == 1 and wish.mode == "pipeline" and len(units) > 1:
            yield from _longer(wish, shape, mesh, units)
        return
    rejections.append(_no_pipeline(wish, shape, devices, stages))
    if stages is not None and stages <= len(devices) and not wish.pins:
        # Say which device lacks what: by speed, the numbers are closest to what was asked for.
        yield _pipeline(wish, layout.by_speed(shape, devices[:stages]))


def _longer(wish: Wish, shape: ModelShape, mesh: Mesh, units: Sequence[Unit]) -> Iterator[Candidate]:
    """Who asks for a pipeline is shown a real one too."""
    found = Search(wish, shape, mesh, units).best(stages=2)
    if found is not None:
        yield _pipeline(wish, found.groups)


def _pipeline(wish: Wish, groups: tuple[Group, ...]) -> Candidate:
    return ("local" if [group.peers for group in groups] == [(wish.head,)] else "pipeline"), groups


def _no_pipeline(wish: Wish, shape: ModelShape, devices: Sequence[Device], stages: int | None) -> Rejection:
    if stages is not None and stages > len(devices):
        return Rejection(
            f"pipeline of {stages}",
            f"{len(devices)} devices are ready, {stages} stages were asked for",
            {"devices": len(devices), "stages": stages},
        )
    free = sum(device.memory_free_bytes for device in devices)
    needed = cost.unit_memory_bytes(shape, wish.load, 0, shape.layer_count, embedding=True, output=True)
    return Rejection(
        "pipeline" if stages is None else f"pipeline of {stages}",
        f"no way to cut {size_text(needed)} into parts that fit {len(devices)} devices with {size_text(free)} free",
        {"needed_bytes": needed, "free_bytes": free, "devices": len(devices)},
    )


def _tensor(
    wish: Wish, shape: ModelShape, mesh: Mesh, devices: Sequence[Device], rejections: list[Rejection]
) -> Iterator[Candidate]:
    """Tensor groups around the head, and pipelines in which neighbours form groups."""
    if shape.shard_refusal is not None:
        rejections.append(Rejection("tensor", shape.shard_refusal))
        return
    groups = _clusters(wish, shape, mesh, devices, rejections)
    own = next((group for group in groups if wish.head in group), ())
    if wish.allows("tensor"):
        sizes = range(2, len(own) + 1) if wish.devices is None else [len(devices)]
        for size in sizes:
            if 2 <= size <= len(own):
                yield "tensor", (_group(mesh, shape, own[:size]),)
        if len(own) < 2:
            rejections.append(Rejection("tensor", "no other device is near enough to the head"))
    if wish.allows("hybrid"):
        yield from _hybrid(wish, shape, mesh, devices, groups)


def _group(mesh: Mesh, shape: ModelShape, peers: Sequence[str]) -> Group:
    return Group(0, shape.layer_count, tuple(peers), _shares(shape, mesh, peers))


def _shares(shape: ModelShape, mesh: Mesh, peers: Sequence[str]) -> tuple[int, ...]:
    """KV heads for each rank, in proportion to speed: heads are what a shard is cut by."""
    speeds = [mesh.devices[peer].decode_bytes_per_s for peer in peers]
    return tuple(layout.proportional_split(shape.shard_units, speeds))


def _clusters(
    wish: Wish, shape: ModelShape, mesh: Mesh, devices: Sequence[Device], rejections: list[Rejection]
) -> list[tuple[str, ...]]:
    """Groups of devices that are all near each other, the head's first; the head leads its group."""
    limit = min(shape.shard_units, limits.PLAN_GROUP_RANKS_MAX)
    left = sorted((d.peer for d in devices), key=lambda peer: peer != wish.head)
    clusters: list[tuple[str, ...]] = []
    while left:
        seed, *others = left
        cluster = [seed]
        for peer in sorted(others, key=lambda p: (mesh.link(seed, p).rtt_s, p)):
            links = [mesh.link(member, peer) for member in cluster]
            worst = max(link.rtt_s for link in links)
            if worst > wish.tensor_rtt_max_s or not all(link.is_measured for link in links):
                if seed == wish.head:
                    rejections.append(
                        _too_far(wish, mesh, peer, worst, all(link.is_measured for link in links))
                    )
            elif len(cluster) < limit:
                cluster.append(peer)
        clusters.append(tuple(cluster))
        left = [peer for peer in left if peer not in cluster]
    return clusters


def _too_far(wish: Wish, mesh: Mesh, peer: str, rtt_s: float, is_measured: bool) -> Rejection:
    name = mesh.devices[peer].name
    if not is_measured:
        return Rejection(f"tensor with {name}", "the link to it has not been timed yet")
    return Rejection(
        f"tensor with {name}",
        f"{1000 * rtt_s:.1f} ms round trip; two exchanges a layer pay off up to {1000 * wish.tensor_rtt_max_s:.1f} ms",
        {"rtt_s": rtt_s, "rtt_max_s": wish.tensor_rtt_max_s},
    )


def _hybrid(
    wish: Wish, shape: ModelShape, mesh: Mesh, devices: Sequence[Device], clusters: Sequence[tuple[str, ...]]
) -> Iterator[Candidate]:
    groups = [cluster for cluster in clusters if len(cluster) > 1]
    grouped = {peer for cluster in groups for peer in cluster}
    if not groups or (len(clusters) == 1 and wish.mode == "auto"):
        return
    units = [Unit(cluster, _shares(shape, mesh, cluster)) for cluster in groups]
    units += [Unit((device.peer,)) for device in devices if device.peer not in grouped]
    found = Search(wish, shape, mesh, units).best(stages=wish.stages)
    if found is not None and any(len(group.peers) > 1 for group in found.groups):
        yield ("hybrid" if len(found.groups) > 1 else "tensor"), found.groups


def _rpc(
    wish: Wish, shape: ModelShape, mesh: Mesh, devices: Sequence[Device], rejections: list[Rejection]
) -> Iterator[Candidate]:
    """llama.cpp's own workers: the head has the file, the others take layers by speed."""
    build = mesh.devices[wish.head].build
    able = []
    for device in devices:
        if device.peer != wish.head and not device.can_rpc:
            rejections.append(
                Rejection(f"tensor_rpc with {device.name}", "its llama.cpp was built without RPC")
            )
        elif device.build != build:
            rejections.append(
                Rejection(
                    f"tensor_rpc with {device.name}",
                    f"its llama.cpp is {device.build or 'unknown'}, the head's is {build or 'unknown'}",
                )
            )
        else:
            able.append(device)
    count = wish.stages or len(able)
    if count <= len(able) and able:
        yield "tensor_rpc", layout.by_speed(shape, able[: min(count, shape.layer_count)])


def _mapped(wish: Wish, shape: ModelShape, devices: Sequence[Device]) -> Candidate:
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
    if [group.peers for group in groups] != [(wish.head,)] and shape.cut_refusal is not None:
        raise PlanError(shape.cut_refusal, hint="run it whole on one device")
    return _pipeline(wish, groups)


# --- reasons -----------------------------------------------------------------------------------------
def _slower(other: Plan, best: Plan) -> Rejection:
    mine, theirs = other.prediction.tokens_per_s, best.prediction.tokens_per_s
    label = other.reasons[0].split(":")[0]
    numbers = {"tokens_per_s": round(mine, 3), "best_tokens_per_s": round(theirs, 3)}
    if mine > theirs:
        gain = f"{100 * (mine / theirs - 1):.0f} % faster expected is within what predictions err by"
        return Rejection(label, f"{gain}; one device is simpler", numbers)
    return Rejection(label, f"slower: {mine:.1f} tokens/s expected against {theirs:.1f}", numbers)


def _left_out(best: Plan, shape: ModelShape, mesh: Mesh, devices: Sequence[Device]) -> list[Rejection]:
    """For every unused device: what the least work it could do would save and cost."""
    return [_no_help(best, shape, mesh, device) for device in devices if device.peer not in best.peers]


def _no_help(best: Plan, shape: ModelShape, mesh: Mesh, device: Device) -> Rejection:
    """The last layers of a stage moved to the device, where that hurts least."""
    step = shape.boundary
    choices = []
    for number, stage in enumerate(best.stages):
        first = max(stage.layer_first, (stage.layer_end - 1) // step * step)
        after = best.stages[number + 1].peer if number + 1 < len(best.stages) else best.head
        here = cost.group_decode_s(shape, mesh, Group(first, stage.layer_end, stage.peers, stage.shares))
        there = cost.group_decode_s(shape, mesh, Group(first, stage.layer_end, (device.peer,)))
        hops = cost.hop_s(mesh, stage.peer, device.peer, shape.row_bytes)
        hops += cost.hop_s(mesh, device.peer, after, shape.row_bytes)
        hops -= cost.hop_s(mesh, stage.peer, after, shape.row_bytes)
        choices.append((there + hops - here, here, there, hops))
    added, here, there, hops = min(choices)
    numbers = {"saved_s": here, "compute_s": there, "network_s": hops, "added_s": added}
    if added > 0:
        return Rejection(
            device.name,
            f"a layer takes {1000 * there:.2f} ms on it and {1000 * hops:.2f} ms of network, "
            f"{1000 * here:.2f} ms where it is now",
            numbers,
        )
    return Rejection(device.name, "its memory or the cuts do not allow a better plan with it", numbers)


def _no_plan(
    wish: Wish, shape: ModelShape, mesh: Mesh, devices: Sequence[Device], rejections: Sequence[Rejection]
) -> NoPlan:
    nearest, hint = _nearest(wish, shape, mesh, devices)
    reasons = summary(rejections) or "nothing like that is possible here"
    return NoPlan(
        f"no plan for {shape.name}: {reasons}",
        hint=hint,
        rejections=[r.as_dict() for r in rejections],
        nearest=nearest,
    )


def _nearest(
    wish: Wish, shape: ModelShape, mesh: Mesh, devices: Sequence[Device]
) -> tuple[dict[str, object] | None, str]:
    """What would fit instead: the plan without restrictions, a shorter context, or how much memory is missing."""
    if wish.blocks is None and shape.cut_refusal is None:
        free = replace(
            wish, mode="auto", stages=None, devices=None, pins={}, strategy="speed", memory_max_bytes={}
        )
        for n_ctx in (wish.n_ctx >> shift for shift in range(8)):
            found = _first_that_fits(replace(free, n_ctx=n_ctx), shape, mesh) if n_ctx >= 64 else None
            if found is not None:
                shorter = f" with a context of {n_ctx}" if n_ctx != wish.n_ctx else ""
                return found.as_dict(), f"this would fit{shorter}: {found.reasons[0].split(':')[0]}"
    total = cost.unit_memory_bytes(shape, wish.load, 0, shape.layer_count, embedding=True, output=True)
    have = sum(device.memory_free_bytes for device in devices)
    if have < total:
        return (
            None,
            f"{size_text(total)} are needed, all devices together have {size_text(have)} free: add a device",
        )
    return None, "change what was asked for, or add a device"


def _first_that_fits(wish: Wish, shape: ModelShape, mesh: Mesh) -> Plan | None:
    devices, _ = usable_devices(wish, mesh)
    builder = Builder(wish, shape, mesh)
    for mode, groups in _candidates(replace(wish, mode="local"), shape, mesh, devices, []):
        result = builder.build(mode, groups)
        if isinstance(result, Plan):
            return result
    found = Search(wish, shape, mesh, [Unit((device.peer,)) for device in devices]).best()
    if found is None:
        return None
    result = builder.build(*_pipeline(wish, found.groups))
    return result if isinstance(result, Plan) else None


def label_of(made: Plan, mesh: Mesh) -> str:
    """The line for people again, from a plan."""
    groups = [Group(s.layer_first, s.layer_end, s.peers, s.shares) for s in made.stages]
    return describe(made.mode, groups, mesh)
