"""From a wish, a model and a mesh to a plan, with a reason for everything that was not chosen. Pure.

Source: specs/10-plans.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from p2pnode import limits
from p2pnode.compute import care, cost
from p2pnode.compute.builder import Builder
from p2pnode.compute.candidates import candidates, pipeline
from p2pnode.compute.cost import Device, Group, Mesh, ModelShape
from p2pnode.compute.plan import Plan
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
from p2pnode.errors import NoPlan

__all__ = ["Planned", "Rejection", "Strategy", "Wish", "WishedMode", "plan", "resolve"]


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan and everything that was considered beside it."""

    plan: Plan
    rejections: tuple[Rejection, ...]


def plan(wish: Wish, shape: ModelShape, mesh: Mesh) -> Planned:
    """The best plan for a wish; NoPlan(rejections, nearest) in words when nothing fits."""
    check_wish(wish, shape)
    mesh = capped(wish, shape, mesh)
    devices, rejections = usable_devices(wish, shape, mesh)
    why = care.spared(wish, devices)
    if not why:
        return _among(wish, shape, mesh, devices, rejections)
    return _sparing(wish, shape, mesh, devices, rejections, why)


def _sparing(
    wish: Wish,
    shape: ModelShape,
    mesh: Mesh,
    devices: Sequence[Device],
    rejections: Sequence[Rejection],
    why: dict[str, str],
) -> Planned:
    """With and without the devices whose use costs somebody something: with them only where that is worth it."""
    names = {device.peer: device.name for device in devices}
    every = _among(wish, shape, mesh, devices, rejections)
    if not any(peer in why for peer in every.plan.peers):
        return every
    try:
        without = _among(wish, shape, mesh, [d for d in devices if d.peer not in why], rejections)
    except NoPlan:
        made = care.used_all_the_same(every.plan, why, names, "nothing fits without it")
        return replace(every, plan=made)
    gain = care.gain_text(wish, every.plan, without.plan)
    if care.is_worth_it(wish, every.plan, without.plan):
        return replace(every, plan=care.used_all_the_same(every.plan, why, names, gain))
    numbers = {
        "tokens_per_s": round(every.plan.prediction.tokens_per_s, 3),
        "best_tokens_per_s": round(without.plan.prediction.tokens_per_s, 3),
    }
    spared = [Rejection(names[peer], f"{why[peer]}, and is spared: {gain}", numbers) for peer in why]
    return replace(without, rejections=(*spared, *without.rejections))


def _among(
    wish: Wish, shape: ModelShape, mesh: Mesh, devices: Sequence[Device], rejected: Sequence[Rejection]
) -> Planned:
    """The best plan of these devices."""
    rejections = list(rejected)
    builder = Builder(wish, shape, mesh)
    found: list[Plan] = []
    for mode, groups in candidates(wish, shape, mesh, devices, rejections):
        result = builder.build(mode, groups)
        if isinstance(result, Rejection):
            rejections.append(result)
        elif all(result.plan_id != other.plan_id for other in found):
            found.append(result)
    found = _as_many_stages(wish, found, rejections)
    if not found:
        raise _no_plan(wish, shape, mesh, devices, rejections)
    best = _warned(_choose(wish, found), mesh)
    rejections += [_slower(wish, other, best) for other in found if other.plan_id != best.plan_id]
    if (
        wish.devices is None
        and wish.blocks is None
        and wish.strategy == "speed"
        and shape.cut_refusal is None
    ):
        rejections += _left_out(best, shape, mesh, devices)
    return Planned(best, tuple(rejections))


def _as_many_stages(wish: Wish, found: Sequence[Plan], rejections: list[Rejection]) -> list[Plan]:
    """Whoever names a number of stages wants a pipeline of so many, not whatever else is there while devices arrive."""
    if wish.stages is None or wish.mode not in ("auto", "pipeline"):
        return list(found)
    for made in found:
        if len(made.stages) != wish.stages:
            label = made.reasons[0].split(":")[0]
            numbers = {"stages": len(made.stages)}
            rejections.append(Rejection(label, f"{wish.stages} stages were asked for", numbers))
    return [made for made in found if len(made.stages) == wish.stages]


def _warned(made: Plan, mesh: Mesh) -> Plan:
    """A plan over several versions of llama.cpp says so: somebody allowed it."""
    head = mesh.devices[made.head]
    others = [mesh.devices[peer] for peer in made.peers if care.is_other(head, mesh.devices[peer])]
    said = [
        f"{d.name} computes with llama.cpp {d.version}, {head.name} with {head.version}: "
        "texts may differ from one device's"
        for d in others
    ]
    return replace(made, reasons=(*made.reasons, *said))


def _choose(wish: Wish, found: Sequence[Plan]) -> Plan:
    """The fastest; several devices only where they are clearly faster than one, or asked for."""
    if wish.mode == "disaggregated":
        return min(found, key=lambda p: (p.prediction.first_token_s, len(p.peers), p.plan_id))
    if wish.mode == "pipeline":
        found = [p for p in found if len(p.stages) > 1] or found
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


def _slower(wish: Wish, other: Plan, best: Plan) -> Rejection:
    mine, theirs = other.prediction.tokens_per_s, best.prediction.tokens_per_s
    label = other.reasons[0].split(":")[0]
    numbers = {"tokens_per_s": round(mine, 3), "best_tokens_per_s": round(theirs, 3)}
    if mine > theirs and wish.mode == "pipeline":
        return Rejection(
            label, f"faster ({mine:.1f} tokens/s expected), but a pipeline was asked for", numbers
        )
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
    rejections = rejections or [Rejection(wish.mode, "nothing like that is possible here")]
    nearest, hint = _nearest(wish, shape, mesh, devices)
    return NoPlan(
        f"no plan for {shape.name}: {summary(rejections)}",
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
    devices, _ = usable_devices(wish, shape, mesh)
    builder = Builder(wish, shape, mesh)
    for mode, groups in candidates(replace(wish, mode="local"), shape, mesh, devices, []):
        result = builder.build(mode, groups)
        if isinstance(result, Plan):
            return result
    found = Search(wish, shape, mesh, [Unit((device.peer,)) for device in devices]).best()
    if found is None:
        return None
    result = builder.build(*pipeline(wish, found.groups))
    return result if isinstance(result, Plan) else None
