"""Whole requests on other devices: who could answer one, how soon, and in which order to ask. Pure.

A device that holds a model whole computes an answer without a round trip for each token, so where this device has
no room for a model of its own, asking it is mostly better than to spread the layers. Source: specs/10-plans.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from p2pnode import limits
from p2pnode.compute import care, cost
from p2pnode.compute.cost import Device, Group, Mesh, ModelShape
from p2pnode.compute.plan import Plan
from p2pnode.compute.wish import Rejection, Wish, absent, size_text

Elsewhere = Literal["needed", "faster", "never"]
SETTING = "serve.elsewhere"
WORDS: tuple[Elsewhere, ...] = ("needed", "faster", "never")


def elsewhere_of(text: str) -> Elsewhere:
    """The setting; what is no word of it counts as not set."""
    return next((word for word in WORDS if word == text), "needed")


@dataclass(frozen=True, slots=True)
class Whole:
    """A device that could answer alone."""

    peer: str
    name: str
    first_token_s: float
    decode_s: float
    is_paid: bool = False
    """It is outside the local network: its work costs credit."""

    @property
    def tokens_per_s(self) -> float:
        return 1.0 / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def answer_s(self) -> float:
        return self.first_token_s + limits.ANSWER_TOKENS_ASSUMED * self.decode_s


def able(
    wish: Wish, shape: ModelShape, mesh: Mesh, *, paid: Collection[str] = ()
) -> tuple[list[Whole], list[Rejection]]:
    """Devices that hold the model whole and have room for it, the soonest answer first; and why others cannot."""
    found, rejections = [], []
    for device in mesh.devices.values():
        if device.peer == wish.head or not _holds(shape, device):
            continue
        reason = _unable(wish, shape, device)
        if reason is None:
            found.append(_whole(wish, shape, mesh, device, is_paid=device.peer in paid))
        else:
            rejections.append(Rejection(f"whole by {device.name}", reason))
    return sorted(found, key=lambda one: (one.is_paid, one.answer_s, one.peer)), rejections


def in_order(own: Plan | None, whole: Sequence[Whole], policy: Elsewhere) -> list[str | None]:
    """Whom to ask first, second, ...: peer ids, and None for this device with its own plan."""
    if policy == "never" or not whole:
        return [None]
    free, paid = [one.peer for one in whole if not one.is_paid], [one.peer for one in whole if one.is_paid]
    if own is None:
        return [*free, *paid]
    can_alone = own.mode == "local" and own.prediction.fetch_bytes == 0
    soonest = next((one for one in whole if not one.is_paid), None)
    if soonest is None or (can_alone and policy == "needed"):
        return [None]
    gain = limits.PLAN_GAIN_MIN
    if can_alone and soonest.answer_s * gain > _answer_s(own):
        return [None]
    if not can_alone and _answer_s(own) * gain < soonest.answer_s:
        return [None]  # so much sooner that it is worth a fetch, or several devices
    return [*free, None]


def _answer_s(own: Plan) -> float:
    found = own.prediction
    return found.fetch_s + found.first_token_s + limits.ANSWER_TOKENS_ASSUMED * found.decode_s


def _holds(shape: ModelShape, device: Device) -> bool:
    return device.holds_ends and frozenset(range(shape.layer_count)) <= device.held_layers


def _unable(wish: Wish, shape: ModelShape, device: Device) -> str | None:
    if (why := absent(device)) is not None:
        return why
    if device.peer in wish.excluded or device.name in wish.excluded:
        return "you excluded it"
    if (banned := care.banned(wish, device)) is not None:
        return banned
    if device.decode_bytes_per_s <= 0:
        return "its speed is not measured yet"
    # What is free now says little of a device that has the model loaded already, so what it may use counts.
    needed = cost.unit_memory_bytes(shape, wish.load, 0, shape.layer_count, embedding=True, output=True)
    if needed > device.memory_total_bytes:
        return f"it needs {size_text(needed)} of memory and may use {size_text(device.memory_total_bytes)}"
    return None


def _whole(wish: Wish, shape: ModelShape, mesh: Mesh, device: Device, *, is_paid: bool) -> Whole:
    alone = (Group(0, shape.layer_count, (device.peer,)),)
    decode_s = cost.group_decode_s(shape, mesh, alone[0]) + cost.output_decode_s(shape, device)
    first_s = cost.first_token_s(shape, mesh, device.peer, alone, wish.prompt_tokens)
    return Whole(
        device.peer, device.name, first_s + mesh.link(wish.head, device.peer).rtt_s, decode_s, is_paid=is_paid
    )
