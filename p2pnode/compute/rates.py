"""What one device knows of its own speed with one model, and when it times it again. Pure.

A timing beside other work is too slow and looks like any other. It shows in three ways: rounds that differ, processors
that other programs had just before, and requests that are quicker or slower than was predicted. Each of them has the
layers timed again, with pauses that grow while nothing new comes of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from p2pnode import limits
from p2pnode.compute.measure import LayerTiming

Numbers = tuple[float, float, float, float]
"""Bytes of weights a second for one row, the same times rows for many, seconds a step takes besides, and bytes of keys
and values a second that one row is compared with."""


@dataclass(frozen=True, slots=True)
class RateEntry:
    rates: Numbers
    threads: int
    at_ms: int
    spread: float = 1.0
    """The slowest round over the fastest."""
    load: float = 0.0
    """Part of all processors that other programs had just before."""
    tries: int = 0
    """Timings in a row that were disturbed, or confirmed what was doubted: each makes the next pause longer."""
    due_ms: int = 0
    is_doubted: bool = False

    @property
    def was_disturbed(self) -> bool:
        return self.spread > limits.MEASURE_SPREAD_MAX or self.load > limits.MEASURE_OTHERS_MAX

    def as_dict(self) -> dict[str, Any]:
        return {
            "rates": list(self.rates),
            "threads": self.threads,
            "at_ms": self.at_ms,
            "spread": round(self.spread, 3),
            "load": round(self.load, 3),
            "tries": self.tries,
            "due_ms": self.due_ms,
            "is_doubted": self.is_doubted,
        }


def pause_ms(tries: int) -> int:
    """Before the next timing after so many that settled nothing."""
    growing = limits.MEASURE_AGAIN_MS_MIN * limits.MEASURE_AGAIN_GROWTH ** min(tries, 16)
    return int(min(growing, limits.MEASURE_AGAIN_MS_MAX))


def timed(
    before: RateEntry | None, timing: LayerTiming, *, threads: int, load: float, now_ms: int
) -> RateEntry:
    """The entry after one more timing: of disturbed ones of a day the fastest counts, an undisturbed one always."""
    found = (
        timing.decode_bytes_per_s,
        timing.prefill_bytes_per_s,
        timing.overhead_s,
        timing.context_bytes_per_s,
    )
    entry = RateEntry(found, threads, now_ms, timing.spread, load)
    settled = replace(entry, due_ms=now_ms + limits.MEASURE_FRESH_MS)
    if before is None or before.threads != threads:
        return _again(entry, 0) if entry.was_disturbed else settled
    if entry.was_disturbed:
        is_better = now_ms - before.at_ms > limits.MEASURE_FRESH_MS or found[0] > before.rates[0]
        kept = entry if is_better else replace(entry, rates=before.rates)
        return _again(kept, before.tries + 1)
    if before.is_doubted and _is_like(found[0], before.rates[0]):
        return replace(settled, tries=before.tries + 1)
    return settled


def doubted(entry: RateEntry, now_ms: int) -> RateEntry:
    """After a request that went much quicker or slower than predicted: soon, unless that brought nothing lately."""
    if now_ms - entry.at_ms > limits.MEASURE_FRESH_MS:
        entry = replace(entry, tries=0)
    since_ms = pause_ms(entry.tries) if entry.tries else limits.MEASURE_DOUBT_MS_MIN
    due_ms = max(now_ms, entry.at_ms + since_ms)
    return replace(entry, is_doubted=True, due_ms=min(entry.due_ms, due_ms))


def is_due(entry: RateEntry, now_ms: int, load: float) -> bool:
    """Whether to time now: not before it is due, and a while longer not beside other programs."""
    if now_ms < entry.due_ms:
        return False
    wait_ms = limits.MEASURE_DOUBTED_WAIT_MS if entry.is_doubted else limits.MEASURE_WAIT_MS
    return load <= limits.MEASURE_OTHERS_MAX or now_ms >= entry.due_ms + wait_ms


def differs(predicted_s: float, measured_s: float) -> bool:
    """Whether a token took so much less or more time than predicted that what the prediction rests on is doubted."""
    ratio = measured_s / predicted_s if predicted_s > 0 else 1.0
    return not 1 / limits.MEASURE_DOUBT_RATIO <= ratio <= limits.MEASURE_DOUBT_RATIO


def read(value: object) -> RateEntry | None:
    """An entry as it was written; None for anything else."""
    if not isinstance(value, dict):
        return None
    rates, whole = value.get("rates"), [value.get(name) for name in ("threads", "at_ms", "tries", "due_ms")]
    if not isinstance(rates, list) or len(rates) != 4 or not all(_is_positive(rate) for rate in rates):
        return None
    if not all(type(number) is int and number >= 0 for number in whole):
        return None
    shares = [value.get(name) for name in ("spread", "load")]
    if not all(isinstance(share, int | float) for share in shares):
        return None
    threads, at_ms, tries, due_ms = (int(str(number)) for number in whole)
    spread, load = (float(str(share)) for share in shares)
    first, second, third, fourth = (float(rate) for rate in rates)
    numbers = (first, second, third, fourth)
    return RateEntry(numbers, threads, at_ms, spread, load, tries, due_ms, value.get("is_doubted") is True)


def _again(entry: RateEntry, tries: int) -> RateEntry:
    return replace(entry, tries=tries, due_ms=entry.at_ms + pause_ms(tries))


def _is_like(one: float, other: float) -> bool:
    return 1 / limits.MEASURE_LIKE_RATIO <= one / other <= limits.MEASURE_LIKE_RATIO


def _is_positive(rate: object) -> bool:
    return isinstance(rate, int | float) and 0 < rate < float("inf")
