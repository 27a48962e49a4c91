"""Prediction beside measurement: how far off a plan was, and what to believe next time. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from p2pnode import limits
from p2pnode.compute.cost import Device
from p2pnode.compute.plan import Plan


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
class Calibration:
    """Corrections learned from requests: measured over predicted compute time, per device."""

    factors: tuple[tuple[str, float], ...] = ()

    def factor(self, peer: str) -> float:
        return dict(self.factors).get(peer, 1.0)

    def updated(self, plan: Plan, measured: Measured) -> Calibration:
        """Move the factors of the devices in a plan towards what was measured; too short requests teach nothing."""
        if measured.token_count < limits.CALIBRATION_TOKENS_MIN or plan.prediction.compute_s <= 0:
            return self
        ratios = _ratios(plan, measured)
        known = dict(self.factors)
        for peer, ratio in ratios.items():
            old = known.get(peer, 1.0)
            target = old * min(max(ratio, limits.CALIBRATION_STEP_MIN), limits.CALIBRATION_STEP_MAX)
            new = old + limits.CALIBRATION_WEIGHT * (target - old)
            known[peer] = min(max(new, limits.CALIBRATION_FACTOR_MIN), limits.CALIBRATION_FACTOR_MAX)
        return Calibration(tuple(sorted(known.items())))

    def applied(self, device: Device) -> Device:
        """The device as slow or fast as it has shown to be."""
        factor = self.factor(device.peer)
        return replace(
            device,
            decode_bytes_per_s=device.decode_bytes_per_s / factor,
            prefill_bytes_per_s=device.prefill_bytes_per_s / factor,
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


def comparison(plan: Plan, measured: Measured) -> dict[str, Any]:
    """What is shown and recorded after a request."""
    predicted = plan.prediction
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
