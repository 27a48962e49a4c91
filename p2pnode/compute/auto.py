"""Auto mode: which model and plan a mesh should run now, without jumping between near equals. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from p2pnode import limits
from p2pnode.compute.plan import Plan


@dataclass(frozen=True, slots=True)
class Option:
    """The best plan of one model on the present mesh."""

    plan: Plan
    quality: float
    """Larger is a better model: its parameters, or weight bytes where that is all that is known."""
    is_default: bool = False
    """The model the operator named as the default."""


@dataclass(frozen=True, slots=True)
class Current:
    """What runs now."""

    plan: Plan
    quality: float
    since_s: float
    is_broken: bool = False
    """A stage is gone: any plan is better."""
    is_busy: bool = False
    """Requests are under way: only a broken plan is left."""
    was_asked_for: bool = False
    """A person chose it: auto mode never replaces it while it works."""


@dataclass(frozen=True, slots=True)
class Decision:
    action: Literal["keep", "activate", "none"]
    plan: Plan | None
    reason: str


def decide(current: Current | None, options: Sequence[Option], *, now_s: float) -> Decision:
    """The default or the best usable model first; a change only for a clear and lasting gain."""
    usable = [o for o in options if o.plan.prediction.tokens_per_s >= limits.AUTO_TOKENS_PER_S_MIN]
    best = max(usable or options, key=_rank, default=None)
    if current is None or current.is_broken:
        if best is None:
            return Decision("none", None, "no model of this mesh fits its devices")
        return Decision("activate", best.plan, f"{best.plan.model} is the best model that fits")
    if best is None:
        return Decision("keep", current.plan, "nothing else fits")
    held = _held(current, now_s)
    if held is not None:
        return Decision("keep", current.plan, held)
    return _compare(current, best, options)


def _rank(option: Option) -> tuple[bool, float, float, str]:
    return option.is_default, option.quality, option.plan.prediction.tokens_per_s, option.plan.plan_id


def _held(current: Current, now_s: float) -> str | None:
    if current.was_asked_for:
        return "this plan was asked for by name"
    if current.is_busy:
        return "requests are under way"
    if now_s - current.since_s < limits.AUTO_HOLD_S:
        return f"it has run for less than {limits.AUTO_HOLD_S:g} s"
    return None


def _compare(current: Current, best: Option, options: Sequence[Option]) -> Decision:
    if best.plan.content_id != current.plan.content_id:
        if best.is_default or best.quality >= current.quality * limits.AUTO_QUALITY_GAIN_MIN:
            return Decision("activate", best.plan, f"{best.plan.model} fits now and is the better model")
        best = next((o for o in options if o.plan.content_id == current.plan.content_id), best)
        if best.plan.content_id != current.plan.content_id:
            return Decision("keep", current.plan, "no other model is clearly better")
    if best.plan.plan_id == current.plan.plan_id:
        return Decision("keep", current.plan, "it is still the best plan")
    gain = best.plan.prediction.tokens_per_s / max(current.plan.prediction.tokens_per_s, 1e-9)
    if gain >= limits.AUTO_SPEED_GAIN_MIN:
        return Decision("activate", best.plan, f"{100 * (gain - 1):.0f} % faster expected")
    return Decision("keep", current.plan, f"{100 * (gain - 1):.0f} % is too little to move weights for")
