"""Which addresses a device tells others."""

from __future__ import annotations

from p2pnode import limits
from p2pnode.node.reach import Reach

BOUND = [f"/ip4/192.168.1.{n}/udp/9481/quic-v1" for n in range(3)]


def reach(*announced: str) -> Reach:
    return Reach(bound=lambda: BOUND, is_member=lambda peer: True, changed=lambda: None, announced=announced)


def test_what_is_announced_is_told_instead_of_what_is_bound() -> None:
    outside = "/ip4/203.0.113.7/udp/4001/quic-v1"
    assert reach().addresses() == BOUND
    assert reach(outside).addresses() == [outside]
    assert len(reach(*[outside] * 50).addresses()) == limits.TICKET_ADDRESSES_MAX
