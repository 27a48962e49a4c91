"""A status is of the form that planning and links count on, or it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnode.errors import RemoteProtocolError
from p2pnode.node.heard import check_status
from p2pnode.transport.messages import Status


def status(**change: Any) -> Status:
    said: dict[str, Any] = {
        "name": "n", "version": "0", "role": "worker", "mesh_key": b"", "addresses": [], "grants": [],
        "revocations": [], "models": [], "capability": {}, "state": "active", "now_ms": 1,
    }  # fmt: skip
    return Status(**{**said, **change})


def way(**change: Any) -> dict[str, Any]:
    return {"p": {"q": {"state": "ok", **change}}}


BAD_DIRECTIONS: list[Any] = [
    [],
    {"p": []},
    {"p": {"q": "ok"}},
    {"p": {5: {"state": "ok"}}},
    {"p": {"q": {}}},
    way(state=1),
    way(good_ms_ago=-1),
    way(good_ms_ago=0.5),
    way(told_ms_ago=2**53),
    way(tried={}),
    way(tried=[["/ip4", "no answer"]] * 5),
    way(tried=[["/ip4"]]),
    way(tried=[["/ip4", 5]]),
    way(tried=[["/ip4", "x" * 161]]),
    {str(n): {} for n in range(257)},
    {"p": {str(n): {"state": "ok"} for n in range(321)}},
]
GOOD: list[dict[str, Any]] = [
    {},
    {
        "capability": {
            "cores": 4,
            "build": "x",
            "on_battery": True,
            "rates": {"b": [1e9, 2e10, 0.0005]},
            "later": {"a": 1},
        }
    },
    {"models": [{"manifest": "b", "name": "m", "later": 5}, {}]},
    {
        "extra": {
            "peers": {"p": ["/ip4/1.2.3.4/udp/1/quic-v1"]},
            "rtt_ms": {"p": 0.4},
            "link_bytes_per_s": {"p": 1e6},
            "stages": [{}],
            "lending": "lends itself again at 20:00 CET",
            "directions": {
                "p": {"q": {"state": "ok"}, "r": {"state": "a later word", "good_ms_ago": 5, "later": 1}},
                "q": {"r": {"state": "unreachable", "told_ms_ago": 0, "tried": [["/ip4", "no answer"]]}},
            },
            "later": 1,
        }
    },
]
BAD: list[dict[str, Any]] = [
    {"capability": {"memory_free_bytes": float("inf")}},
    {"capability": {"memory_free_bytes": float("nan")}},
    {"capability": {"memory_free_bytes": -1}},
    {"capability": {"memory_free_bytes": 2**63}},
    {"capability": {"rates": [1, 2, 3]}},
    {"capability": {"rates": {"b": [1e9, 2e10]}}},
    {"capability": {"rates": {"b": [1e9, 2e10, 0]}}},
    {"capability": {"rates": {"b": [1e9, "fast", 0.1]}}},
    {"capability": {"rates": {str(n): [1.0, 1.0, 1.0] for n in range(17)}}},
    {"extra": {"link_bytes_per_s": 5}},
    {"extra": {"lending": 5}},
    {"extra": {"lending": "x" * 81}},
    {"extra": {"lending": "at 8\nat 9"}},
    {"extra": {"link_bytes_per_s": {"p": "fast"}}},
    {"models": [{"manifest": 5}]},
    {"models": [{"name": []}]},
    {"extra": {"peers": 5}},
    {"extra": {"peers": {1: []}}},
    {"extra": {"peers": {"p": "/ip4"}}},
    {"extra": {"peers": {"p": [5]}}},
    {"extra": {"peers": {str(n): [] for n in range(300)}}},
    {"extra": {"rtt_ms": []}},
    {"extra": {"rtt_ms": {"p": "fast"}}},
    {"extra": {"rtt_ms": {"p": float("nan")}}},
    {"extra": {"stages": {}}},
    *({"extra": {"directions": said}} for said in BAD_DIRECTIONS),
]  # fmt: skip


@pytest.mark.parametrize("change", GOOD)
def test_what_can_be_is_taken_as_it_is(change: dict[str, Any]) -> None:
    said = status(**change)
    assert check_status(said) is said


@pytest.mark.parametrize("change", BAD)
def test_what_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        check_status(status(**change))
