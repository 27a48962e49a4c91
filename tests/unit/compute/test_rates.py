"""When a speed is believed, doubted and measured again; all of it with times as arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from p2pnode import limits
from p2pnode.compute import rates
from p2pnode.compute.measure import LayerTiming
from p2pnode.compute.rates import RateEntry

NOW = 1_000_000_000
QUIET = LayerTiming(100_000_000, 0.010, 0.5, 64, 0.0002, 0.001, 1_000_000, 1.05)
DISTURBED = replace(QUIET, decode_s=0.050, spread=4.0)


def first(timing: LayerTiming, load: float = 0.0) -> RateEntry:
    return rates.timed(None, timing, threads=2, load=load, now_ms=NOW)


def test_a_quiet_timing_is_believed_for_a_day() -> None:
    entry = first(QUIET)
    assert entry.rates == (1e10, pytest.approx(1.28e10), 0.0002, 1e9)
    assert not entry.was_disturbed
    assert not rates.is_due(entry, NOW + limits.MEASURE_FRESH_MS - 1, 0.0)
    assert rates.is_due(entry, NOW + limits.MEASURE_FRESH_MS, 0.0)


@pytest.mark.parametrize("entry", [first(DISTURBED), first(replace(DISTURBED, spread=1.0), load=0.6)])
def test_a_disturbed_timing_is_made_again_soon(entry: RateEntry) -> None:
    """Whether rounds differed, or other programs had the processors all the time."""
    assert entry.was_disturbed
    assert not rates.is_due(entry, NOW + limits.MEASURE_AGAIN_MS_MIN - 1, 0.0)
    assert rates.is_due(entry, NOW + limits.MEASURE_AGAIN_MS_MIN, 0.0)


def test_pauses_grow_to_six_hours_while_a_machine_is_never_quiet() -> None:
    entry, now_ms, pauses = first(DISTURBED), NOW, []
    for _ in range(12):
        pauses.append(entry.due_ms - entry.at_ms)
        now_ms = entry.due_ms
        entry = rates.timed(entry, DISTURBED, threads=2, load=0.0, now_ms=now_ms)
    assert pauses[:4] == [300_000, 1_200_000, 4_800_000, 19_200_000]
    assert pauses[-1] == limits.MEASURE_AGAIN_MS_MAX
    assert rates.pause_ms(10**9) == limits.MEASURE_AGAIN_MS_MAX


def test_of_disturbed_timings_the_fastest_counts() -> None:
    entry = first(replace(DISTURBED, decode_s=0.020))
    slower = rates.timed(entry, DISTURBED, threads=2, load=0.0, now_ms=NOW + 1)
    assert slower.rates == entry.rates
    faster = rates.timed(slower, replace(DISTURBED, decode_s=0.015), threads=2, load=0.0, now_ms=NOW + 2)
    assert faster.rates[0] == pytest.approx(1e8 / 0.015)
    old = rates.timed(faster, DISTURBED, threads=2, load=0.0, now_ms=NOW + 2 * limits.MEASURE_FRESH_MS)
    assert old.rates[0] == pytest.approx(1e8 / 0.050)


def test_a_quiet_timing_ends_it_in_both_directions() -> None:
    for before in (first(DISTURBED), first(replace(DISTURBED, decode_s=0.001))):
        entry = rates.timed(before, QUIET, threads=2, load=0.0, now_ms=NOW + 9)
        assert entry.rates[0] == 1e10
        assert (entry.tries, entry.due_ms) == (0, NOW + 9 + limits.MEASURE_FRESH_MS)


def test_other_threads_begin_anew() -> None:
    entry = rates.timed(first(replace(DISTURBED, decode_s=0.02)), DISTURBED, threads=4, load=0.0, now_ms=NOW)
    assert (entry.threads, entry.tries, entry.rates[0]) == (4, 0, pytest.approx(2e9))


def test_a_doubt_is_heard_soon_and_once() -> None:
    entry = rates.doubted(first(QUIET), NOW + 60_000)
    assert rates.is_due(entry, NOW + 60_000, 0.0)
    corrected = rates.timed(entry, replace(QUIET, decode_s=0.002), threads=2, load=0.0, now_ms=NOW + 70_000)
    assert (corrected.tries, corrected.is_doubted) == (0, False)


def test_doubts_that_bring_nothing_wait_longer_each_time_and_less_the_next_day() -> None:
    entry, now_ms = first(QUIET), NOW
    for tries in range(1, 6):
        entry = rates.doubted(entry, now_ms)
        now_ms = entry.due_ms
        entry = rates.timed(entry, QUIET, threads=2, load=0.0, now_ms=now_ms)
        assert entry.tries == tries
        assert rates.doubted(entry, now_ms).due_ms == now_ms + rates.pause_ms(tries)
    tomorrow = rates.doubted(entry, now_ms + limits.MEASURE_FRESH_MS + 1)
    assert (tomorrow.tries, tomorrow.due_ms) == (0, entry.due_ms)


def test_it_waits_a_while_for_a_quiet_moment_and_not_for_ever() -> None:
    entry = first(DISTURBED)
    assert not rates.is_due(entry, entry.due_ms + limits.MEASURE_WAIT_MS - 1, 0.9)
    assert rates.is_due(entry, entry.due_ms + limits.MEASURE_WAIT_MS, 0.9)


def test_what_is_known_to_be_wrong_waits_less() -> None:
    entry = rates.doubted(first(QUIET), NOW + 60_000)
    assert not rates.is_due(entry, entry.due_ms + limits.MEASURE_DOUBTED_WAIT_MS - 1, 0.9)
    assert rates.is_due(entry, entry.due_ms + limits.MEASURE_DOUBTED_WAIT_MS, 0.9)


@pytest.mark.parametrize(
    ("measured_s", "expected"),
    [(0.010, False), (0.0125, False), (0.014, True), (0.008, False), (0.007, True)],
)
def test_both_directions_are_doubted(measured_s: float, expected: bool) -> None:
    assert rates.differs(0.010, measured_s) is expected


def test_no_prediction_is_no_doubt() -> None:
    assert rates.differs(0.0, 1.0) is False


def test_an_entry_is_read_as_it_was_written() -> None:
    for entry in (first(QUIET), rates.doubted(first(DISTURBED, load=0.25), NOW)):
        assert rates.read(entry.as_dict()) == replace(entry, spread=round(entry.spread, 3))


@pytest.mark.parametrize(
    "change",
    [{"rates": [1, 2, 3]}, {"rates": [1, 2, 3, 0]}, {"rates": [1, 2, 3, "4"]}, {"rates": 5},
     {"rates": [1, 2, 3, float("inf")]}, {"threads": -1}, {"at_ms": "now"}, {"due_ms": 1.5}, {"tries": None},
     {"spread": "wide"}, {"load": None}],
)  # fmt: skip
def test_what_is_no_entry_is_none(change: dict[str, Any]) -> None:
    assert rates.read({**first(QUIET).as_dict(), **change}) is None
    assert rates.read([change]) is None
