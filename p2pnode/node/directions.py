"""Both directions of each link: whether one device reaches another by itself, when it last did, and why not. Pure.

A connection carries both ways, whoever opened it. What fails one way only is opening it: a firewall, a router or an
address that is no more. It goes unseen while the connection of the other side stands, and keeps the two apart once
that ends. Each device tells its own directions; of those others told it, it passes on the ones that fail, so that
two devices that do not reach each other still learn what the other one sees.
Source: specs/05-messages.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from p2pnode import limits

State = Literal["ok", "unreachable", "untried", "unknown"]
Tried = list[list[str]]
Pair = tuple[str, str]
"""Peer ids: from, to."""


@dataclass(slots=True)
class Direction:
    """The way from this device to another one, as it knows it itself."""

    state: State = "untried"
    tried: Tried = field(default_factory=list)
    """[[address, reason]] of the last attempt, if it failed."""
    good_ms: int = 0
    """When the other side last answered a question of this one, in Unix ms; 0 for never."""
    is_refused: bool = False

    def reached(self) -> None:
        self.state, self.tried, self.is_refused = "ok", [], False

    def failed(self, tried: Iterable[Sequence[str]]) -> None:
        self.state, self.tried = "unreachable", [list(entry) for entry in tried]

    def refused(self, address: str, reason: str) -> None:
        """It is reached, and does not listen to this device."""
        self.failed([[address, reason]])
        self.is_refused = True

    def probed(self, tried: Iterable[Sequence[str]]) -> None:
        """What became of each address; an empty reason is an answer, and one is enough."""
        results = list(tried)
        if not results or self.is_refused:
            return
        if any(not reason for _, reason in results):
            self.reached()
        else:
            self.failed(results)

    def unproven(self) -> None:
        """The other side opened the connection: what this side could do is not known from that."""
        self.state, self.tried, self.is_refused = "untried", [], False

    def answered(self, now_ms: int, *, is_outbound: bool) -> bool:
        """A question went there and its answer came back, on a connection that this side opened or the other.

        Whether it has to be tried anew: a refusal ended, and nothing else is known of the way.
        """
        self.good_ms = now_ms
        was_refused = self.is_refused
        if is_outbound:
            self.reached()
        elif was_refused:
            self.unproven()
        return was_refused and not is_outbound

    def told(self, now_ms: int, *, is_opener: bool) -> dict[str, Any]:
        """For a status: short while all is well."""
        said: dict[str, Any] = {"state": self.state}
        if self.good_ms:
            said["good_ms_ago"] = max(0, now_ms - self.good_ms)
        if is_opener:
            said["opened"] = True
        if self.tried:
            longest = limits.DIRECTION_TEXT_CHARACTERS_MAX
            said["tried"] = [
                [text[:longest] for text in entry] for entry in self.tried[: limits.DIRECTION_TRIED_MAX]
            ]
        return said


@dataclass(frozen=True, slots=True)
class Told:
    """A direction as somebody told it; times by this device's clock."""

    state: State
    tried: Tried
    good_ms: int
    is_opener: bool
    told_ms: int
    told_by: str


def is_form(value: object) -> bool:
    """Whether `extra.directions` of a status is what this version can read."""
    if not isinstance(value, dict) or len(value) > limits.MESH_MEMBERS_MAX:
        return False
    if not all(isinstance(ways, dict) for ways in value.values()):
        return False
    ways = [item for ways in value.values() for item in ways.items()]
    most = limits.MESH_MEMBERS_MAX + limits.DIRECTIONS_PASSED_ON_MAX
    return len(ways) <= most and all(isinstance(to, str) and _is_direction(way) for to, way in ways)


def _is_direction(way: object) -> bool:
    if not isinstance(way, dict) or not isinstance(way.get("state"), str):
        return False
    if not all(_is_age(way.get(key, 0)) for key in ("good_ms_ago", "told_ms_ago")):
        return False
    tried = way.get("tried", [])
    return isinstance(tried, list) and len(tried) <= limits.DIRECTION_TRIED_MAX and all(map(_is_entry, tried))


def _is_age(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_entry(entry: object) -> bool:
    longest = limits.DIRECTION_TEXT_CHARACTERS_MAX
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and all(isinstance(text, str) and len(text) <= longest for text in entry)
    )


def read(said: Mapping[str, Mapping[str, Any]], teller: str, heard_ms: int) -> dict[Pair, Told]:
    """What one status tells; it was checked by `is_form`. A state of a later version is an unknown one."""
    found: dict[Pair, Told] = {}
    for origin, ways in said.items():
        for to, way in ways.items():
            state: State = way["state"] if way["state"] in ("ok", "unreachable", "untried") else "unknown"
            told_ms = heard_ms - way.get("told_ms_ago", 0)
            good_ms = heard_ms - way["good_ms_ago"] if "good_ms_ago" in way else 0
            found[origin, to] = Told(
                state, way.get("tried", []), good_ms, bool(way.get("opened")), told_ms, teller
            )
    return found


def newest(tellings: Iterable[Mapping[Pair, Told]]) -> dict[Pair, Told]:
    """Of each direction the last word; a device's own comes before what others pass on."""
    found: dict[Pair, Told] = {}
    for pair, told in (item for telling in tellings for item in telling.items()):
        known = found.get(pair)
        if known is None or _rank(pair, told) > _rank(pair, known):
            found[pair] = told
    return found


def _rank(pair: Pair, told: Told) -> tuple[bool, int]:
    return told.told_by == pair[0], told.told_ms


def failing(tellings: Mapping[Pair, Told]) -> dict[Pair, Told]:
    """Directions that fail, told by who has them."""
    return {
        pair: told
        for pair, told in tellings.items()
        if told.state == "unreachable" and told.told_by == pair[0]
    }


def passed_on(failing: Iterable[tuple[Pair, Told]], now_ms: int) -> dict[str, dict[str, Any]]:
    """What this device tells of others, of what fails there: as much as there is room for, if it was heard lately."""
    said: dict[str, dict[str, Any]] = {}
    fresh = [(pair, told) for pair, told in failing if not _is_old(told, now_ms)]
    for (origin, to), told in fresh[: limits.DIRECTIONS_PASSED_ON_MAX]:
        way: dict[str, Any] = {
            "state": told.state, "tried": told.tried, "told_ms_ago": max(0, now_ms - told.told_ms)
        }  # fmt: skip
        if told.good_ms:
            way["good_ms_ago"] = max(0, now_ms - told.good_ms)
        said.setdefault(origin, {})[to] = way
    return said


def _is_old(told: Told, now_ms: int) -> bool:
    return now_ms - told.told_ms > limits.STATUS_SILENCE_S_MAX * 1000


def _view(pair: Pair, told: Told | None, rtt_ms: float | None, now_ms: int, good_ms: int) -> dict[str, Any]:
    known = told is not None and not _is_old(told, now_ms)
    state = told.state if told is not None and known else "unknown"
    return {
        "from": pair[0],
        "to": pair[1],
        "state": state,
        "rtt_ms": rtt_ms if known and state != "unknown" else None,
        "last_good_ms": (told.good_ms if told else 0) or good_ms or None,
        "opened": bool(told and known and told.is_opener),
        "tried": [{"address": a, "reason": r} for a, r in told.tried] if told is not None and known else [],
        "told_by": told.told_by if told else None,
        "told_ms": told.told_ms if told else None,
    }


def state_of(there: str, back: str) -> str:
    """both, one_way, none, or how much of a link is known: half (one direction works) and unknown."""
    states = {there, back}
    if states == {"ok"}:
        return "both"
    if "ok" in states:
        return "one_way" if "unreachable" in states else "half"
    return "none" if "unreachable" in states else "unknown"


def links_view(
    me: str,
    members: Iterable[str],
    tellings: Mapping[Pair, Told],
    *,
    rtt_ms: Mapping[Pair, float],
    asked_ms: Mapping[str, int],
    now_ms: int,
) -> list[dict[str, Any]]:
    """Each link with its two directions: this device's own ones, and those of others of which something is told.

    `asked_ms`: when each device last asked this one something, for those that tell nothing of their directions.
    """
    others = [peer for peer in members if peer != me]
    known = {me, *others}
    told = {frozenset(pair) for pair in tellings if set(pair) <= known and len(set(pair)) == 2}
    pairs = [(me, peer) for peer in others]
    pairs += sorted((min(pair), max(pair)) for pair in told if me not in pair)
    rows = []
    for one, other in pairs:
        there, back = (
            _view(
                pair, tellings.get(pair), rtt_ms.get(pair), now_ms,
                asked_ms.get(pair[0], 0) if pair[1] == me else 0,
            )
            for pair in ((one, other), (other, one))
        )  # fmt: skip
        state = state_of(there["state"], back["state"])
        rows.append({"peers": [one, other], "state": state, "directions": [there, back]})
    rows.sort(key=lambda row: (me not in row["peers"], row["state"] == "both"))
    return rows[: limits.LINKS_SHOWN_MAX]
