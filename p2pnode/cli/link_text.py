"""Links in words: which way works, when it last did, and why the other does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from p2pnode.cli.output import one_line

_STATES = {"ok": "ok", "unreachable": "not reachable", "untried": "never tried", "unknown": "not told"}


def link_of(links: Iterable[Mapping[str, Any]], one: str, other: str) -> Mapping[str, Any]:
    """The link between two devices, `{}` where nothing is said of it."""
    return next((link for link in links if {one, other} == set(link.get("peers", []))), {})


def direction(link: Mapping[str, Any], origin: str) -> Mapping[str, Any]:
    return next((way for way in link.get("directions", []) if way.get("from") == origin), {})


def link_text(link: Mapping[str, Any], me: str) -> str:
    """One cell of a table, as seen from `me`."""
    state = link.get("state")
    if state in ("both", "none"):
        return "both ways" if state == "both" else "no way"
    if state not in ("one_way", "half"):
        return "-"
    is_out = direction(link, me).get("state") == "ok"
    only = "one way" if state == "one_way" else "known"
    return f"{only}: {'to it' if is_out else 'from it'}"


def state_text(way: Mapping[str, Any]) -> str:
    return _STATES.get(str(way.get("state")), "not told")


def reasons_text(way: Mapping[str, Any]) -> str:
    """Each address with what became of it; empty when nothing failed."""
    return "; ".join(
        one_line(": ".join(filter(None, (str(entry.get("address", "")), str(entry.get("reason", ""))))))
        for entry in way.get("tried", [])
    )
