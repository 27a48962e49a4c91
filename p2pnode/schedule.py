"""When a device lends itself: hours of the week in its owner's time zone, and the moments at which they change. Pure.

A time that the clock skips in spring is the moment at which it jumps; one that it shows twice in autumn is the first.
So hours that meet on paper meet in fact, whatever the clock does. Source: specs/19-schedule.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Final

from p2pnode import limits
from p2pnode.errors import RequestError

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EXAMPLE: Final = 'p2pnode schedule set "mon-fri 20:00-08:00" "sat,sun all"'
_DAY_MINUTES: Final = 24 * 60
_TIMES: Final = re.compile(r"(\d{1,2}):(\d\d)-(\d{1,2}):(\d\d)")
_STEP_S: Final = 1
_LOOK_DAYS: Final = 16
"""Two weeks and the days beside them: hours that fall into the one night with a jump come a week later."""

Span = tuple[int, int]
"""[open, closed) in milliseconds since 1970 in UTC."""


@dataclass(frozen=True, slots=True)
class Hours:
    """On these days (0 is Monday) from `first_minute` of the day on; `end_minute` is above 1440 past midnight."""

    days: tuple[int, ...]
    first_minute: int
    end_minute: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """The hours in which a device lends itself, as somebody wrote them and as they are looked at."""

    text: str
    hours: tuple[Hours, ...]

    @staticmethod
    def parse(entries: Sequence[str]) -> Schedule:
        """Each is `DAYS TIMES`: `mon-fri 20:00-08:00`, `sat,sun all`, `daily 08:00-12:00,13:00-17:00`.

        Raises: RequestError with what is wrong with which entry.
        """
        words = [re.sub(r"\s*,\s*", ",", " ".join(entry.lower().split())) for entry in entries]
        if not 1 <= len(words) <= limits.SCHEDULE_ENTRIES_MAX:
            raise _wrong(f"a schedule has 1 to {limits.SCHEDULE_ENTRIES_MAX} entries, not {len(words)}")
        text = "; ".join(words)
        if len(text) > limits.SCHEDULE_CHARACTERS_MAX:
            raise _wrong(f"a schedule has at most {limits.SCHEDULE_CHARACTERS_MAX} characters")
        return Schedule(text, tuple(hours for word in words for hours in _entry(word)))

    def spans(self, around_ms: int, zone: tzinfo) -> list[Span]:
        """When it is open in the weeks around a moment, in order, those that meet made one."""
        today = datetime.fromtimestamp(around_ms / 1000, zone).date()
        found = sorted(
            (_moment(day, hours.first_minute, zone), _moment(day, hours.end_minute, zone))
            for day in (today + timedelta(days=offset) for offset in range(-_LOOK_DAYS, _LOOK_DAYS + 1))
            for hours in self.hours
            if day.weekday() in hours.days
        )
        joined: list[Span] = []
        for first, end in found:
            if joined and first <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            elif first < end:
                joined.append((first, end))
        return joined

    def at(self, now_ms: int, zone: tzinfo) -> Now:
        """What holds at a moment, since when, and until when."""
        seen_ms = (_LOOK_DAYS - 2) * _DAY_MINUTES * 60_000
        spans = [span for span in self.spans(now_ms, zone) if span[0] < now_ms + seen_ms]
        near = [edge for span in spans for edge in span if abs(edge - now_ms) < seen_ms]
        return Now(
            is_open=any(first <= now_ms < end for first, end in spans),
            since_ms=max((edge for edge in near if edge <= now_ms), default=None),
            opens_ms=min((first for first, _ in spans if first > now_ms), default=None),
            closes_ms=min((end for _, end in spans if now_ms < end < now_ms + seen_ms), default=None),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """Moments are milliseconds since 1970 in UTC; None where there is none in two weeks: then it never changes."""

    is_open: bool
    since_ms: int | None
    """The edge before."""
    opens_ms: int | None
    closes_ms: int | None

    @property
    def until_ms(self) -> int | None:
        """The edge after."""
        return self.closes_ms if self.is_open else self.opens_ms


def wanted(now: Now, *, owner_ms: int | None, set_ms: int) -> bool | None:
    """Whether the device should lend itself; None while the owner's own word holds: until the next edge.

    `owner_ms` is when the owner last paused, drained or resumed it by hand, `set_ms` when the schedule was set.
    """
    if owner_ms is not None and owner_ms >= max(set_ms, now.since_ms or 0):
        return None
    return now.is_open


def clock_text(at_ms: int, now_ms: int, zone: tzinfo) -> str:
    """A moment to come as people say it there: `20:00 CET`, with the day when it is not within a day."""
    then = datetime.fromtimestamp(at_ms / 1000, zone)
    far = at_ms - now_ms >= _DAY_MINUTES * 60_000
    return f"{DAYS[then.weekday()]} {then:%H:%M %Z}" if far else f"{then:%H:%M %Z}"


def _entry(word: str) -> Iterator[Hours]:
    days_text, _, times = word.partition(" ")
    days = tuple(sorted(set(_days(days_text, word))))
    if times == "all":
        yield Hours(days, 0, _DAY_MINUTES)
        return
    for each in times.split(","):
        found = _TIMES.fullmatch(each)
        if found is None:
            raise _wrong(f"{word!r}: {each!r} is not a time such as 20:00-08:00, or the word all")
        first, end = (_minute(found[i], found[i + 1], word) for i in (1, 3))
        if first in (end, _DAY_MINUTES):
            raise _wrong(f"{word!r}: {each} has no length; a whole day is called all")
        yield Hours(days, first, end if end > first else end + _DAY_MINUTES)


def _days(text: str, word: str) -> Iterator[int]:
    if text == "daily":
        yield from range(7)
        return
    for each in text.split(","):
        first, dash, last = each.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise _wrong(f"{word!r}: {each!r} is not a day; days are {', '.join(DAYS)}, mon-fri, or daily")
        start = DAYS.index(first)
        count = (DAYS.index(last) - start) % 7 + 1 if dash else 1
        yield from ((start + step) % 7 for step in range(count))


def _minute(hour: str, minute: str, word: str) -> int:
    found = int(hour) * 60 + int(minute)
    if int(minute) > 59 or found > _DAY_MINUTES:
        raise _wrong(f"{word!r}: there is no {hour}:{minute}; a day ends at 24:00")
    return found


def _moment(day: date, minute: int, zone: tzinfo) -> int:
    """The first moment at which a clock there has shown this time or a later one of its day."""
    extra, minute = divmod(minute, _DAY_MINUTES)
    wall = datetime.combine(day + timedelta(days=extra), time(minute // 60, minute % 60), zone)
    first = wall.astimezone(UTC)
    later = wall.replace(fold=1).astimezone(UTC)
    if later >= first:
        return _ms(first)
    # The clock jumps over it: between the two the offset changes, at a moment that is looked for.
    low, high = int(later.timestamp()), int(first.timestamp())
    before = datetime.fromtimestamp(low, zone).utcoffset()
    while high - low > _STEP_S:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high * 1000


def _ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000


def _wrong(what: str) -> RequestError:
    return RequestError(what, hint=f"for example: {EXAMPLE}", param="entries")
