"""Devices that are spared: their battery or their traffic is somebody's, and other devices may do as well. Pure.

Sparing is no ban: a spared device is used where nothing fits without it, or where it is much faster with it. Who
names a device has decided. `never` is a ban, `use` counts it like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast, get_args

from p2pnode import limits

if TYPE_CHECKING:
    from p2pnode.compute.cost import Device, ModelShape
    from p2pnode.compute.plan import Plan
    from p2pnode.compute.wish import Wish

Care = Literal["avoid", "use", "never"]
Versions = Literal["same", "any"]
BATTERY, METERED, VERSIONS = "plan.battery", "plan.metered", "plan.versions"
WORDS = {BATTERY: get_args(Care), METERED: get_args(Care), VERSIONS: get_args(Versions)}
"""Settings and what they may be."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator of the head thinks of devices, whatever is planned."""

    battery: Care = "avoid"
    metered: Care = "avoid"
    versions: Versions = "same"

    @classmethod
    def of(cls, value: Callable[[str], str]) -> Policy:
        """From settings by name; what is no word of theirs counts as not set."""
        cares = {"avoid": "avoid", "use": "use", "never": "never"}
        return cls(
            battery=cast(Care, cares.get(value(BATTERY), "avoid")),
            metered=cast(Care, cares.get(value(METERED), "avoid")),
            versions="any" if value(VERSIONS) == "any" else "same",
        )


def spared(wish: Wish, devices: Sequence[Device]) -> dict[str, str]:
    """Peer ids of devices to do without if that is possible, each with why."""
    if wish.names_devices or wish.mode in ("local", "streamed"):
        return {}
    found = {}
    for device in devices:
        if device.peer == wish.head or device.peer in wish.pins or device.name in wish.pins:
            continue  # the head was asked, and a pin is a name
        if device.on_battery and wish.battery == "avoid":
            found[device.peer] = "it runs on its battery"
        elif device.is_metered and wish.metered == "avoid":
            found[device.peer] = "its traffic costs money"
    return found


def banned(wish: Wish, device: Device) -> str | None:
    """Why the operator's settings keep a device out; None when they do not."""
    if wish.names_devices or device.peer == wish.head:
        return None
    if device.on_battery and wish.battery == "never":
        return "it runs on its battery, and the setting plan.battery is never"
    if device.is_metered and wish.metered == "never":
        return "its traffic costs money, and the setting plan.metered is never"
    return None


def too_dear(wish: Wish, shape: ModelShape, device: Device) -> str | None:
    """Nobody is made to pay for fetching a model unless somebody named the device."""
    missing = shape.layer_count - len(device.held_layers & frozenset(range(shape.layer_count)))
    if wish.names_devices or device.peer == wish.head or not device.is_metered or not missing:
        return None
    return f"its traffic costs money, and it would have to fetch: it lacks {missing} of {shape.layer_count} layers"


def is_worth_it(wish: Wish, with_it: Plan, without: Plan) -> bool:
    """Whether a plan with spared devices is so much faster that they are used all the same."""
    return _seconds(wish, with_it) * limits.PLAN_SPARED_GAIN_MIN <= _seconds(wish, without)


def gain_text(wish: Wish, with_it: Plan, without: Plan) -> str:
    mine, theirs = with_it.prediction.tokens_per_s, without.prediction.tokens_per_s
    if wish.mode == "disaggregated":
        first, other = with_it.prediction.first_token_s, without.prediction.first_token_s
        return f"{first:.2f} s to the first token with it, {other:.2f} s without"
    return f"{mine:.1f} tokens/s expected with it, {theirs:.1f} without"


def used_all_the_same(made: Plan, why: dict[str, str], names: dict[str, str], because: str) -> Plan:
    """The plan, with a sentence for each spared device in it."""
    used = [peer for peer in made.peers if peer in why]
    return replace(
        made,
        reasons=(
            *made.reasons,
            *(f"{names[peer]}: {why[peer]}; used all the same: {because}" for peer in used),
        ),
    )


def _seconds(wish: Wish, made: Plan) -> float:
    is_for_prompts = wish.mode == "disaggregated"
    return made.prediction.first_token_s if is_for_prompts else made.prediction.decode_s


def other_version(wish: Wish, head: Device, device: Device) -> str | None:
    """Why a device with another llama.cpp is kept out; None when it is the same, unknown, or allowed."""
    if wish.versions == "any" or not is_other(head, device):
        return None
    return f"its llama.cpp is {device.version}, {head.name}'s is {head.version}: texts could differ from one device's"


def is_other(head: Device, device: Device) -> bool:
    """Whether two devices are known to compute with different versions."""
    return bool(head.version and device.version and head.version != device.version)
