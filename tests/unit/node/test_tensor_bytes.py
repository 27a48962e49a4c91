"""Bytes of tensors: by streams as the transport counts them, by lanes as engines that come and go count them."""

from __future__ import annotations

from p2pnode.errors import EngineUnavailable
from p2pnode.node import wire_counts
from p2pnode.node.lane_bytes import LaneBytes


class Client:
    def __init__(self, *lane_bytes: int) -> None:
        self.lane_bytes = list(lane_bytes)
        self.is_dead = False

    async def stats(self) -> dict[str, object]:
        if self.is_dead:
            raise EngineUnavailable("gone")
        return {"units": {}, "lane_bytes": self.lane_bytes}


class Host:
    def __init__(self, pid: int, *lane_bytes: int) -> None:
        self.pid, self.is_up, self.client = pid, True, Client(*lane_bytes)


async def test_engines_that_ended_keep_what_they_had_counted() -> None:
    counted, first, second = LaneBytes(), Host(1, 10, 100), Host(2, 1, 2)
    assert counted.total() == (0, 0)
    await counted.look([first, second])
    assert counted.total() == (11, 102)
    first.client.lane_bytes = [15, 150]
    second.is_up = False
    await counted.look([first, second])
    assert counted.total() == (16, 152)
    second.pid, second.is_up, second.client = 3, True, Client(1000, 1000)
    first.client.is_dead = True
    await counted.look([first, second])
    assert counted.total() == (1016, 1152), "what does not answer stays as it was"
    await counted.look([])
    await counted.look([])
    assert counted.total() == (1016, 1152)


def test_only_streams_of_tensors_count() -> None:
    counters = {
        "received /p2pnode/stage/1": 5,
        "received /p2pnode/kv/1": 6,
        "sent /p2pnode/reduce/1": 7,
        "sent /p2pnode/rpc/2": 1,
        "sent /p2pnode/blob/1": 1_000_000,
    }
    families = {row["name"]: row for row in wire_counts.families(counters, {}, (3, 4))}
    samples = {
        (row["labels"]["direction"], row["labels"]["way"]): row["value"]
        for row in families["p2pnode_tensor_bytes"]["samples"]
    }
    assert samples == {
        ("received", "lane"): 3,
        ("received", "stream"): 11,
        ("sent", "lane"): 4,
        ("sent", "stream"): 8,
    }
