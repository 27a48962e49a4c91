"""One screen about this node, and what a plan's reasons are of."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnode.cli.mesh_commands import answer_state
from p2pnode.cli.plan_command import rejection_text
from p2pnode.cli.status import span_text, status_pairs
from p2pnode.cli.top import speed_text

POWER = {
    "memory_total_bytes": 8_000_000_000,
    "memory_free_bytes": 6_000_000_000,
    "disk_free_bytes": 70_000_000_000,
    "cores": 4,
    "threads": 2,
    "machine": "x86_64",
    "system": "Linux",
    "on_battery": True,
    "is_metered": True,
    "llama": "0.3.36",
    "memory_bytes_per_s": 34_300_000_000,
    "gpu_memory_free_bytes": 1_000_000_000,
    "gpu_memory_total_bytes": 2_000_000_000,
    "gpu_layers": 7,
}
FULL: dict[str, Any] = {
    "name": "kitchen",
    "version": "0.1.0",
    "peer_id": "12D3KooW",
    "ready": False,
    "missing": ["the model m loads"],
    "state": "paused",
    "mesh": {"name": "home", "role": "founder", "members": 3},
    "started_ms": 1_000_000,
    "addresses": ["/ip4/1.2.3.4/udp/1/quic-v1"],
    "memory": {"node_and_engines_bytes": 150_000_000, "share_bytes": 4_000_000, "allowed_bytes": 204_000_000},
    "capability": POWER,
    "hosted_stages": [{"layers": [0, 4], "model": "m", "up": False}],
    "engines": [{"purpose": "m (head)", "up": True}, {"purpose": "m (local)", "up": False}],
    "backends": [{"url": "http://127.0.0.1:1"}],
    "log": {"size": 31, "blocks": 2, "rebuilding": {"folded": 5, "size": 31}},
    "running": 1,
}


def test_a_screen_in_words_and_units() -> None:
    said = status_pairs(FULL, "http://127.0.0.1:9480", now_s=1000 + 7260)
    rows = dict(said)
    assert rows["device"] == "kitchen, version 0.1.0"
    assert rows["mesh"] == "home as founder, 3 members"
    assert rows["state"] == "not ready yet, the model m loads, paused"
    assert rows["up for"] == "2 h"
    assert rows["machine"] == "4 cores, 2 of them compute, Linux, x86_64, on battery, metered"
    assert rows["free"] == "6.0 GB of 8.0 GB memory, 70.0 GB disk"
    assert rows["GPU"] == "1.0 GB of 2.0 GB free, computes 7 layers"
    assert rows["holds"] == "layers 0-3 of m, not running"
    assert [value for name, value in said if name == "engine"] == ["m (head)", "m (local), not running"]
    assert rows["record"] == "31 events in 2 sealed blocks, read anew: 5 of 31"
    assert "_bytes" not in str(rows)
    assert "\n" not in "".join(rows.values())


def test_a_device_outside_its_hours_says_when_it_is_back() -> None:
    said = {"state": "paused", "schedule": {"says": "lends itself again at 20:00 CET"}}
    rows = dict(status_pairs(said, "u", now_s=0))
    assert rows["state"] == "not ready yet, paused, lends itself again at 20:00 CET"


def test_a_node_that_knows_little_is_said_too() -> None:
    rows = dict(status_pairs({"ready": True, "name": "a\nb"}, "u", now_s=0))
    assert (rows["device"], rows["state"], rows["address"]) == ("a b, version -", "ready", "none")


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0 s"), (59, "59 s"), (60, "1 min"), (86400 * 3, "3 d")])
def test_spans(seconds: float, text: str) -> None:
    assert span_text(seconds) == text


@pytest.mark.parametrize(
    ("rejection", "text"),
    [
        ({"candidate": "tensor a+b [0, 8)", "reason": "slower"}, "tensor a+b layers 0-7: slower"),
        ({"mode": "local", "message": "needs 9.1 GB"}, "local: needs 9.1 GB"),
        ({"reason": "b [3, 4) is away"}, "b layers 3 is away"),
        ("too slow", "too slow"),
    ],
)
def test_a_reason_says_of_what_it_is(rejection: object, text: str) -> None:
    assert rejection_text(rejection) == text


def test_an_answer_that_stands_still_is_shown_as_that() -> None:
    """In `status`, in `ps` with since when, and in `top` where its speed would be."""
    said = dict(status_pairs({**FULL, "running": 2, "recovering": 1}, "http://127.0.0.1:9480", now_s=2000))
    assert said["answers"] == "2 being written now, 1 of them recovering from a lost device"
    assert answer_state({"state": "recovering", "recovering_s": 2.04}) == "recovering for 2.0 s"
    assert answer_state({"state": "running", "recovering_s": None}) == "running"
    assert speed_text({"state": "recovering", "tokens_per_s": None}) == "recovering"
    assert speed_text({"state": "running", "tokens_per_s": 8.5}) == "8.5"
    assert speed_text({}) == "-"
