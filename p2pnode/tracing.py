"""Traces across devices as a port: spans that other programs draw, one trace a request. Off unless the owner wants it.

`PassOn` is what a node has without them: it makes no spans and hands on what a caller sent, so that devices that do
trace still find their trace. `node/otel.py` is the other implementation. Source: specs/20-traces.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

Value = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Value]
Kind = Literal["internal", "server", "client"]
Measure = Literal["time_to_first_token", "time_per_output_token", "request_duration"]

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def traceparent_of(text: str) -> str:
    """W3C's `traceparent` as this version writes it, of one that somebody sent; empty for what is none."""
    found = _TRACEPARENT.fullmatch(text.strip())
    if found is None or found[1] == "ff" or (found[5] and found[1] == "00"):
        return ""
    if not int(found[2], 16) or not int(found[3], 16):
        return ""
    return f"00-{found[2]}-{found[3]}-{found[4]}"


class Span(Protocol):
    @property
    def traceparent(self) -> str:
        """What is handed on: spans begun with it are children of this one."""
        ...

    def note(self, attributes: Attributes) -> None: ...

    def end(self, error: str = "") -> None:
        """Once; `error` is a condition's code."""
        ...


class Tracing(Protocol):
    @property
    def is_on(self) -> bool: ...

    def now_ns(self) -> int:
        """Nanoseconds since 1970, for `past`."""
        ...

    def begin(
        self, name: str, parent: str = "", attributes: Attributes | None = None, *, kind: Kind = "internal"
    ) -> Span:
        """`parent` is a traceparent, also one of another device; empty for the first span of a trace."""
        ...

    def past(self, name: str, parent: str, begun_ns: int, ended_ns: int, attributes: Attributes) -> None:
        """A span of what is over."""
        ...

    def observe(self, measure: Measure, seconds: float, attributes: Attributes) -> None: ...

    def close(self) -> None:
        """Send what waits; blocks for some seconds at most."""
        ...


@dataclass(frozen=True, slots=True)
class Passed:
    """No span, but the traceparent that was handed here."""

    traceparent: str = ""

    def note(self, attributes: Attributes) -> None:
        del attributes

    def end(self, error: str = "") -> None:
        del error


class PassOn:
    is_on: Final = False

    def now_ns(self) -> int:
        return 0

    def begin(
        self, name: str, parent: str = "", attributes: Attributes | None = None, *, kind: Kind = "internal"
    ) -> Span:
        del name, attributes, kind
        return Passed(parent)

    def past(self, name: str, parent: str, begun_ns: int, ended_ns: int, attributes: Attributes) -> None:
        del name, parent, begun_ns, ended_ns, attributes

    def observe(self, measure: Measure, seconds: float, attributes: Attributes) -> None:
        del measure, seconds, attributes

    def close(self) -> None:
        return


OFF: Final = PassOn()
