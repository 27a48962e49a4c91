"""Small words that all decisions are written in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from p2pnode.errors import RequestError
from p2pnode.events.log import Decision, NewEvent
from p2pnode.events.types import Event
from p2pnode.projections import MeshState

Answer = dict[str, Any]
Decider = Callable[[MeshState, Any, int], Decision]
Deciders = dict[type, Decider]

LABEL_CHARACTERS_MAX: Final = 128
REASON_CHARACTERS_MAX: Final = 512


def decision(*events: Event, answer: Answer | None = None) -> Decision:
    """Facts in order, each tied to its request, and what the caller hears."""
    new = [NewEvent(event, correlation=getattr(event, "request_id", None)) for event in events]
    return Decision(new, {} if answer is None else answer)


def nothing() -> Decision:
    """It is so already."""
    return decision()


def label(value: str, what: str) -> str:
    """An id or name that fits a field and cannot be taken for one of the ledger's own accounts."""
    if not 1 <= len(value) <= LABEL_CHARACTERS_MAX or "/" in value or not value.isprintable():
        raise RequestError(
            f"{what} must be 1 to {LABEL_CHARACTERS_MAX} printable characters without '/'", field=what
        )
    return value


def reason(value: str) -> str:
    """Words for people, cut to their field; lines become spaces."""
    return " ".join(value.split())[:REASON_CHARACTERS_MAX]


def between(value: int, least: int, most: int, what: str) -> int:
    if not least <= value <= most:
        raise RequestError(f"{what} is {value}; it must be {least} to {most}", field=what)
    return value
