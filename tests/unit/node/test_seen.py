"""What a caller has seen of an answer is left out when another device computes it again; other words end it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from p2pnode.errors import PeerTimeout, StageLost
from p2pnode.facade import (
    Finished,
    GenerateEvent,
    GenerateRequest,
    PrefillProgress,
    SamplingParams,
    TextDelta,
)
from p2pnode.node.forwarding import Seen, repeatable

END = Finished(
    reason="stop", prompt_tokens=1, completion_tokens=3, cached_tokens=0, mode="local", stages=[], prefill_s=0.0,
    decode_s=0.0, request_id="r", cost_microunits=0,
)  # fmt: skip


async def made(*pieces: str, end: bool = True) -> AsyncGenerator[GenerateEvent, None]:
    yield PrefillProgress(1, 1, 0)
    for piece in pieces:
        yield TextDelta(piece, 1)
    if end:
        yield END


async def told(seen: Seen, *pieces: str, end: bool = True) -> list[str]:
    kinds = [e async for e in seen.rest(made(*pieces, end=end))]
    return [e.text if isinstance(e, TextDelta) else type(e).__name__ for e in kinds]


async def test_the_first_time_everything_is_told() -> None:
    seen = Seen()
    assert await told(seen, "a", "b") == ["PrefillProgress", "a", "b", "Finished"]
    assert (seen.text, seen.pieces) == ("ab", 2)


@pytest.mark.parametrize(
    ("again", "rest"),
    [
        (("ab", "c", "d"), ["d", "Finished"]),
        (("a", "b", "cd", "e"), ["d", "e", "Finished"]),
        (("abcde",), ["de", "Finished"]),
        (("", "abc", "d"), ["d", "Finished"]),
        (("abc",), ["Finished"]),
    ],
)
async def test_then_only_what_is_new(again: tuple[str, ...], rest: list[str]) -> None:
    seen = Seen()
    await told(seen, "ab", "c", end=False)
    assert await told(seen, *again) == rest
    assert seen.text == "".join(again)


@pytest.mark.parametrize("again", [("x",), ("ab", "x"), ("abx",), ("ab",), ()])
async def test_other_words_end_it(again: tuple[str, ...]) -> None:
    seen = Seen()
    await told(seen, "ab", "c", end=False)
    seen.moved(PeerTimeout("kitchen went silent"))
    with pytest.raises(StageLost, match="kitchen went silent; another device came to other words"):
        await told(seen, *again)


async def test_a_third_device_goes_on_after_a_second() -> None:
    seen = Seen()
    await told(seen, "ab", end=False)
    await told(seen, "abc", end=False)
    assert await told(seen, "a", "bcd") == ["d", "Finished"]


def test_only_chance_without_a_seed_is_given_one() -> None:
    greedy = GenerateRequest(model=None, prompt="x", max_tokens=1, sampling=SamplingParams(temperature=0.0))
    assert repeatable(greedy) is greedy
    seeded = GenerateRequest(model=None, prompt="x", max_tokens=1, sampling=SamplingParams(seed=5))
    assert repeatable(seeded) is seeded
    chance = repeatable(GenerateRequest(model=None, prompt="x", max_tokens=1, sampling=SamplingParams()))
    assert chance.sampling.seed is not None
    assert 0 <= chance.sampling.seed < 2**31
