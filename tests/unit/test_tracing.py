"""A traceparent that somebody sent: handed on as it is, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.tracing import OFF, traceparent_of

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (GOOD, GOOD),
        (f" {GOOD} ", GOOD),
        ("cc" + GOOD[2:] + "-what-later-versions-say", GOOD),
        ("ff" + GOOD[2:], ""),
        (GOOD + "-more", ""),
        (GOOD.upper(), ""),
        ("00-" + "0" * 32 + GOOD[35:], ""),
        (GOOD[:36] + "0" * 16 + "-01", ""),
        ("", ""),
    ],
)
def test_only_what_the_standard_allows_is_read(sent: str, read: str) -> None:
    assert traceparent_of(sent) == read


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"))
def test_whatever_comes_what_is_handed_on_has_one_form(sent: str) -> None:
    read = traceparent_of(sent)
    assert len(read) in (0, limits.TRACEPARENT_CHARACTERS_MAX)
    assert traceparent_of(read) == read


def test_who_does_not_trace_hands_on_what_came() -> None:
    span = OFF.begin("work", GOOD, {"a": 1}, kind="server")
    span.note({"b": 2})
    span.end("some_code")
    OFF.past("work", GOOD, 1, 2, {})
    OFF.observe("request_duration", 1.0, {})
    OFF.close()
    assert (span.traceparent, OFF.is_on, OFF.now_ns()) == (GOOD, False, 0)
