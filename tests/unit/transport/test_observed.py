"""An observed address counts when members in different places agree on it."""

from __future__ import annotations

from p2pnode import limits
from p2pnode.transport.observed import ObservedAddresses
from p2pnode.units import PeerId

OUTSIDE = "/ip4/203.0.113.7/udp/9481/quic-v1"
A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def test_two_places_agree() -> None:
    seen = ObservedAddresses()
    seen.heard(A, "198.51.100.1", OUTSIDE)
    assert seen.agreed() == []
    seen.heard(B, "198.51.100.1", OUTSIDE)
    assert seen.agreed() == [], "two behind one address are one place"
    seen.heard(C, "198.51.100.2", OUTSIDE + "/p2p/12D3KooWGRUn4yVrsRQLRLnKvzGG3eJrS5MQKGiXbDPnYfrJCwUn")
    assert seen.agreed() in ([OUTSIDE], [])
    seen.heard(C, "198.51.100.2", OUTSIDE)
    assert seen.agreed() == [OUTSIDE]
    assert seen.agreed([OUTSIDE]) == [], "known already"
    seen.heard(C, "198.51.100.2", "/ip4/203.0.113.7/udp/1/quic-v1")
    assert seen.agreed() == [], "the newest word of each counts"
    seen.heard(C, "198.51.100.2", OUTSIDE)
    seen.forget(C)
    assert seen.agreed() == []


def test_what_cannot_be_dialled_is_left_out() -> None:
    seen = ObservedAddresses()
    for host in ("198.51.100.1", "198.51.100.2"):
        for address in ("", "/ip4/1.2.3.4/tcp/4001", "/dns/example.org/udp/1/quic-v1", "noise"):
            seen.heard(PeerId(host + address), host, address)
    assert seen.agreed() == []


def test_bounded() -> None:
    seen = ObservedAddresses()
    for number in range(limits.OBSERVERS_MAX * 2):
        seen.heard(PeerId(str(number)), f"198.51.100.{number}", f"/ip4/203.0.113.{number // 4}/udp/1/quic-v1")
    assert len(seen._said) == limits.OBSERVERS_MAX
    assert len(seen.agreed()) == limits.OBSERVED_ADDRESSES_MAX
