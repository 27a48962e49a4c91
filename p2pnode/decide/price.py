"""What work costs and who gets it: whole micro-units, nothing lost in rounding. Source: specs/09-billing.md"""

from __future__ import annotations

from collections.abc import Sequence

from p2pnode.limits import OUTPUT_TOKENS_PER_UNIT
from p2pnode.units import MICRO_PER_UNIT


def price_microunits(output_tokens: int) -> int:
    """One unit for each begun thousand of output tokens, and one at least."""
    assert output_tokens >= 0, "tokens are counted up"
    return max(-(-output_tokens // OUTPUT_TOKENS_PER_UNIT), 1) * MICRO_PER_UNIT


def divide(amount: int, weights: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Split `amount` in proportion to weights by largest remainder; the parts sum to it exactly.

    Weights of one name are added up; equal remainders go to the smaller name; parts of 0 are left out.
    An empty or all-zero list gives (): the caller has to say who gets it.
    """
    assert amount >= 0, "credit is divided, not debt"
    merged: dict[str, int] = {}
    for name, weight in weights:
        assert weight >= 0, "work is not negative"
        merged[name] = merged.get(name, 0) + weight
    total = sum(merged.values())
    if total == 0:
        return ()
    parts = {name: amount * weight // total for name, weight in merged.items()}
    left = amount - sum(parts.values())
    by_remainder = sorted(merged, key=lambda name: (-(amount * merged[name] % total), name))
    for name in by_remainder[:left]:
        parts[name] += 1
    return tuple((name, part) for name, part in sorted(parts.items()) if part)


def parts_of_share(share: int, price: int, total: int, work: Sequence[int]) -> tuple[int, ...]:
    """What each piece of one earner's work gets of its `share` of a price that was divided by `total`.

    Each is ⌊price × work / total⌋ or one more, as a receipt demands, and they sum to `share`: an earner may have
    two stages of one request. () when the share does not come from this division: somebody's credit ended since.
    """
    assert 0 < sum(work) <= total, "the parts are of the whole"
    parts = [price * piece // total for piece in work]
    left = share - sum(parts)
    if not 0 <= left <= len(work):
        return ()
    by_remainder = sorted(range(len(work)), key=lambda n: (-(price * work[n] % total), n))
    for number in by_remainder[:left]:
        parts[number] += 1
    return tuple(parts)
