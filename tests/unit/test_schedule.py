"""The hours in which a device lends itself: what was written, and the moments that it means."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import errors, limits
from p2pnode.schedule import DAYS, Now, Schedule, clock_text, wanted

VECTORS = json.loads((Path(__file__).parents[2] / "specs/vectors/schedule.json").read_text())
MINUTE_MS, DAY_MS = 60_000, 24 * 3_600_000
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia"]
moments = st.integers(1_293_840_000, 2_000_000_000).map(lambda s: s * 1000)
times = st.integers(0, 1439)


@st.composite
def entries(draw: st.DrawFn) -> str:
    days = ",".join(draw(st.lists(st.sampled_from(DAYS), min_size=1, max_size=4)))
    if draw(st.booleans()):
        days = f"{draw(st.sampled_from(DAYS))}-{draw(st.sampled_from(DAYS))}"
    first, end = draw(st.tuples(times, times).filter(lambda pair: pair[0] != pair[1]))
    return f"{days} {first // 60:02}:{first % 60:02}-{end // 60:02}:{end % 60:02}"


schedules = st.lists(entries() | st.just("sun all"), min_size=1, max_size=4).map(Schedule.parse)


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def iso(moment_ms: int | None) -> str | None:
    if moment_ms is None:
        return None
    return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    given_ = vector["input"]
    if vector["expect"] != "ok":
        with pytest.raises(errors.P2PNodeError) as refused:
            Schedule.parse(given_["entries"])
        assert (refused.value.code, "schedule set" in refused.value.hint) == (vector["expect"], True)
        return
    schedule = Schedule.parse(given_["entries"])
    now = schedule.at(ms(given_["at"]), ZoneInfo(given_["zone"]))
    told = {
        "open": now.is_open,
        "since": iso(now.since_ms),
        "opens": iso(now.opens_ms),
        "closes": iso(now.closes_ms),
    }
    assert {"text": schedule.text, **told} == vector["output"]
    assert now.until_ms == (now.closes_ms if now.is_open else now.opens_ms)


@given(schedules, moments, st.sampled_from(ZONES))
def test_it_stays_as_it_is_up_to_the_next_edge_and_changes_there(
    schedule: Schedule, at_ms: int, name: str
) -> None:
    zone = ZoneInfo(name)
    now = schedule.at(at_ms, zone)
    if now.since_ms is not None:
        assert now.since_ms <= at_ms
        assert schedule.at(now.since_ms, zone).is_open == now.is_open
        assert schedule.at(now.since_ms - 1, zone).is_open != now.is_open
    if now.until_ms is not None:
        assert at_ms < now.until_ms
        assert schedule.at(now.until_ms - 1, zone).is_open == now.is_open
        after = schedule.at(now.until_ms, zone)
        assert (after.is_open, after.since_ms) == (not now.is_open, now.until_ms)


@given(schedules, moments, st.integers(-14 * 60, 14 * 60))
def test_where_no_clock_is_changed_it_is_what_the_clock_on_the_wall_says(
    schedule: Schedule, at_ms: int, offset_min: int
) -> None:
    zone = timezone(timedelta(minutes=offset_min))
    wall = datetime.fromtimestamp(at_ms / 1000, zone)
    minute, today = wall.hour * 60 + wall.minute, wall.weekday()
    is_open = any(
        (today in hours.days and hours.first_minute <= minute < hours.end_minute)
        or ((today - 1) % 7 in hours.days and minute + 1440 < hours.end_minute)
        for hours in schedule.hours
    )
    assert schedule.at(at_ms, zone).is_open == is_open


@given(schedules, moments)
def test_what_is_kept_reads_as_it_was_written(schedule: Schedule, at_ms: int) -> None:
    again = Schedule.parse(schedule.text.split(";"))
    assert again == schedule
    assert again.at(at_ms, UTC) == schedule.at(at_ms, UTC)


def test_more_than_can_be_kept_is_refused() -> None:
    Schedule.parse(["daily all"] * limits.SCHEDULE_ENTRIES_MAX)
    for many in (
        ["daily all"] * (limits.SCHEDULE_ENTRIES_MAX + 1),
        ["mon " + ",".join(["00:00-01:00"] * 40)],
    ):
        with pytest.raises(errors.RequestError, match=r"at most|1 to"):
            Schedule.parse(many)


def test_the_owners_word_holds_until_the_next_edge() -> None:
    """By hand at 5, edges at 10 and 20."""
    inside = Now(is_open=True, since_ms=0, opens_ms=20, closes_ms=10)
    assert wanted(inside, owner_ms=None, set_ms=0) is True
    assert wanted(inside, owner_ms=5, set_ms=0) is None
    assert wanted(inside, owner_ms=5, set_ms=6) is True  # set later than that
    outside = Now(is_open=False, since_ms=10, opens_ms=20, closes_ms=30)
    assert wanted(outside, owner_ms=5, set_ms=0) is False
    always = Now(is_open=True, since_ms=None, opens_ms=None, closes_ms=None)
    assert wanted(always, owner_ms=5, set_ms=0) is None


def test_a_moment_is_told_with_its_day_when_it_is_far() -> None:
    zone, now_ms = ZoneInfo("Europe/Berlin"), ms("2026-11-27T12:00:00Z")
    assert clock_text(now_ms + 7 * 3_600_000, now_ms, zone) == "20:00 CET"
    assert clock_text(now_ms + 7 * 3_600_000 + DAY_MS, now_ms, zone) == "sat 20:00 CET"
    # Zones without a name of their own are told by their distance from UTC.
    assert clock_text(now_ms + MINUTE_MS, now_ms, ZoneInfo("America/Sao_Paulo")) == "09:01 -03"
