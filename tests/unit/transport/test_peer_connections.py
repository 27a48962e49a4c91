"""Which of several connections to one peer survives."""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.transport.peer_connections import SIMULTANEOUS_S, PeerConnections
from p2pnode.units import PeerId

SMALL, LARGE = PeerId("12D3A"), PeerId("12D3B")


@dataclass(eq=False)
class Fake:
    is_outbound: bool
    started_at: float


def test_dialled_at_once_the_smaller_ids_dial_survives_on_both_sides() -> None:
    at_small, at_large = PeerConnections[Fake](SMALL), PeerConnections[Fake](LARGE)
    by_small, by_large = Fake(True, 10.0), Fake(False, 10.1)
    assert at_small.add(LARGE, by_large) == []
    assert list(at_small.add(LARGE, by_small)) == [by_large]
    assert at_small.best(LARGE) is by_small
    theirs_of_small, theirs_of_large = Fake(False, 20.0), Fake(True, 20.1)
    assert at_large.add(SMALL, theirs_of_small) == ()
    assert at_large.add(SMALL, theirs_of_large) == ()
    assert at_large.best(SMALL) is theirs_of_small


def test_a_peer_that_comes_back_replaces_what_it_lost() -> None:
    table = PeerConnections[Fake](SMALL)
    old, new = Fake(True, 0.0), Fake(False, SIMULTANEOUS_S + 0.1)
    table.add(LARGE, old)
    assert list(table.add(LARGE, new)) == [old]
    assert table.best(LARGE) is new
    table.remove(LARGE, old)
    assert list(table) == [new]
    table.remove(LARGE, new)
    table.remove(LARGE, new)
    assert table.best(LARGE) is None


def test_only_what_was_dialled_together_is_simultaneous() -> None:
    table = PeerConnections[Fake](SMALL)
    old, new, other = Fake(True, 0.0), Fake(False, SIMULTANEOUS_S + 0.1), Fake(True, SIMULTANEOUS_S + 0.2)
    assert not table.are_simultaneous(LARGE, old), "nothing is there"
    for connection in (old, new, other):
        table.add(LARGE, connection)
    assert table.best(LARGE) is other
    assert table.are_simultaneous(LARGE, new)
    assert not table.are_simultaneous(LARGE, old)
