"""Prediction beside measurement: how far off a plan was, and what to believe next time. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from p2pnode import limits
from p2pnode.compute.cost import Device
from p2pnode.compute.plan import Plan, Prediction


@dataclass(frozen=True, slots=True)
class Measured:
    """One finished request."""

    first_token_s: float
    decode_s: float
    """Mean seconds from token to token."""
    token_count: int
    stage_s: tuple[float, ...] = ()
    """Mean compute of each stage for one token, as its device reported; empty when unknown."""


@dataclass(frozen=True, slots=True)
class Factor:
    """Measured over predicted compute time."""

    value: float
    decode_bytes_per_s: float
    """The device's own rate it was learned over: another one has been timed since, and says it all itself."""

    def holds_for(self, device: Device) -> bool:
        if self.decode_bytes_per_s <= 0 or device.decode_bytes_per_s <= 0:
            return False
        ratio = device.decode_bytes_per_s / self.decode_bytes_per_s
        return 1 / limits.CALIBRATION_RATE_RATIO_MAX <= ratio <= limits.CALIBRATION_RATE_RATIO_MAX


@dataclass(frozen=True, slots=True)
class Calibration:
    """Corrections learned from requests, for each device and model: one that is off for a small model may be right
    for a large one."""

    factors: tuple[tuple[tuple[str, str], Factor], ...] = ()
    """By device and content id, the newest last."""

    def factor(self, device: Device, content_id: str) -> float:
        """`device` as it was measured itself."""
        found = dict(self.factors).get((device.peer, content_id))
        return found.value if found is not None and found.holds_for(device) else 1.0

    def updated(self, plan: Plan, measured: Measured, devices: Mapping[str, Device]) -> Calibration:
        """Move the factors of a plan's devices towards what was measured; too short requests teach nothing.

        `plan` has the prediction of now, with these factors applied; `devices` are as they were measured themselves.
        """
        if measured.token_count < limits.CALIBRATION_TOKENS_MIN or plan.prediction.compute_s <= 0:
            return self
        known = dict(self.factors)
        for peer, ratio in _ratios(plan, measured).items():
            old = self.factor(devices[peer], plan.content_id)
            target = old * min(max(ratio, limits.CALIBRATION_STEP_MIN), limits.CALIBRATION_STEP_MAX)
            new = old + limits.CALIBRATION_WEIGHT * (target - old)
            new = min(max(new, limits.CALIBRATION_FACTOR_MIN), limits.CALIBRATION_FACTOR_MAX)
            known.pop((peer, plan.content_id), None)
            known[peer, plan.content_id] = Factor(new, devices[peer].decode_bytes_per_s)
        return Calibration(tuple(known.items())[-limits.CALIBRATION_KEPT_MAX :])

    def applied(self, device: Device, content_id: str) -> Device:
        """The device as slow or fast with this model as it has shown to be."""
        factor = self.factor(device, content_id)
        return replace(
            device,
            decode_bytes_per_s=device.decode_bytes_per_s / factor,
            prefill_bytes_per_s=device.prefill_bytes_per_s / factor,
            context_bytes_per_s=device.context_bytes_per_s / factor,
        )


def _ratios(plan: Plan, measured: Measured) -> dict[str, float]:
    """Measured over predicted compute per device; with totals only, the difference is everybody's alike."""
    if len(measured.stage_s) == len(plan.stages):
        pairs = zip(plan.stages, measured.stage_s, strict=True)
        return {
            peer: seconds / stage.decode_s
            for stage, seconds in pairs
            if stage.decode_s > 0 and seconds > 0
            for peer in stage.peers
        }
    computing = max(measured.decode_s - plan.prediction.network_s, 0.0)
    return dict.fromkeys(plan.peers, computing / plan.prediction.compute_s)


def comparison(plan: Plan, measured: Measured, now: Prediction | None = None) -> dict[str, Any]:
    """What is shown and recorded after a request: beside what is predicted `now`, where that is known, with what was
    measured since the plan was made and the length this request had."""
    predicted = plan.prediction if now is None else now
    rate = 1.0 / measured.decode_s if measured.decode_s > 0 else 0.0
    error = rate / predicted.tokens_per_s - 1 if predicted.tokens_per_s > 0 else None
    return {
        "predicted_tokens_per_s": round(predicted.tokens_per_s, 3),
        "measured_tokens_per_s": round(rate, 3),
        "predicted_first_token_s": round(predicted.first_token_s, 4),
        "measured_first_token_s": round(measured.first_token_s, 4),
        "error": None if error is None else round(error, 4),
        "token_count": measured.token_count,
    }
