"""Two histories of one log: proved to anybody in every way there is, and never of an honest log."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import BadCheckpoint
from p2pnode.events.fraud import (
    Signed,
    check_fraud,
    equivocation,
    fraud_file,
    fraud_from_consistency,
    fraud_from_tree,
    fraud_from_trees,
    fraud_proof,
    parse_fraud_file,
)
from p2pnode.events.keys import LogKeys
from p2pnode.events.merkle import consistency_proof, first_difference
from tests.kit.log_events import node_identity
from tests.kit.log_trees import BINDING, KEYS, Tree

VECTORS = json.loads((Path(__file__).parents[3] / "specs" / "vectors" / "frauds.json").read_text())
PAIRS = [(400, 400), (301, 600), (512, 513), (400, 512), (512, 600)]


@pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in VECTORS])
def test_fraud_vectors(vector: dict[str, Any]) -> None:
    """Each proof convicts whom it says; each changed one nobody."""
    document = bytes.fromhex(vector["input"])
    if vector["expect"] != "ok":
        with pytest.raises(BadCheckpoint):
            check_fraud(document)
        return
    fraud = check_fraud(document)
    found = [fraud.peer, fraud.origin, [fraud.size_first, fraud.size_second], fraud.index]
    assert found == list(vector["output"].values())


@pytest.mark.parametrize(("first", "second"), [(400, 400), (301, 600), (512, 513), (400, 512)])
def test_a_fork_is_proved_to_anybody(honest: Tree, forked: Tree, first: int, second: int) -> None:
    """By two notes of one size, or by the second log's own tiles."""
    proof = fraud_from_tree(honest.signed(first), forked.signed(second), forked)
    fraud = check_fraud(proof)
    assert (fraud.peer, fraud.size_first, fraud.size_second) == (KEYS.peer, first, second)
    assert len(proof) < 16_384


def test_an_honest_log_can_not_be_accused(honest: Tree, forked: Tree) -> None:
    """True notes, invented notes, changed proofs and other people's keys prove nothing."""
    with pytest.raises(BadCheckpoint):
        fraud_from_tree(honest.signed(200), honest.signed(400), honest)
    with pytest.raises(BadCheckpoint):
        fraud_proof(honest.signed(200), honest.signed(200, BINDING))
    other = LogKeys.derive(node_identity(2))
    with pytest.raises(BadCheckpoint):
        fraud_proof(honest.signed(400), Signed(forked.note(400, other), other.bound()))
    with pytest.raises(BadCheckpoint):
        fraud_proof(honest.signed(400), Signed(forked.note(400, other), BINDING))
    stolen = replace(other.bound(), peer=KEYS.peer, origin=KEYS.origin)
    with pytest.raises(BadCheckpoint):
        fraud_proof(honest.signed(400), forked.signed(400, stolen))
    good = fraud_proof(honest.signed(400), forked.signed(400, BINDING))
    for position in range(0, len(good), 7):
        bad = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
        with pytest.raises(BadCheckpoint):
            check_fraud(bad)
    with pytest.raises(BadCheckpoint, match="one encoding"):
        check_fraud(b"\xdc\x00\x07" + good[1:])
    for length in (0, 1, len(good) - 1):
        with pytest.raises(BadCheckpoint):
            check_fraud(good[:length])


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_log_is_convicted_by_its_own_proof(honest: Tree, forked: Tree, first: int, second: int) -> None:
    """What it sends to be cosigned leads to another beginning; a perfect tree's root is not in such a proof."""
    known, shown = honest.signed(first), forked.signed(second)
    proof = consistency_proof(forked, first, second)
    document = fraud_from_consistency(known, shown, proof)
    assert (document is None) == (first in (512, second))
    if document is not None:
        assert check_fraud(document).size_first == first
        assert fraud_from_consistency(known, honest.signed(second), proof) is None
        assert fraud_from_consistency(known, shown, proof[:-1]) is None
    assert (
        fraud_from_consistency(known, honest.signed(second), consistency_proof(honest, first, second)) is None
    )


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_both_histories_name_the_event_where_they_part(
    honest: Tree, forked: Tree, first: int, second: int
) -> None:
    """Two events in one place, each under a root that was signed."""
    for one, other in ((honest, forked), (forked, honest)):
        fraud = check_fraud(fraud_from_trees(one.signed(first), other.signed(second), one, other))
        assert (fraud.peer, fraud.size_first, fraud.size_second, fraud.index) == (
            KEYS.peer,
            first,
            second,
            300,
        )
    with pytest.raises(BadCheckpoint, match="the same in both"):
        fraud_from_trees(honest.signed(200), forked.signed(second), honest, forked)


@given(st.integers(1, 600), st.integers(0, 600))
def test_the_first_difference_is_found_wherever_it_is(size: int, fork_at: int) -> None:
    """And none where there is none."""
    found = first_difference(WHOLE, Tree(600, fork_at=fork_at), size)
    assert found == (fork_at if fork_at < size else None)


WHOLE = Tree(600)


def changed_leaves(document: bytes, change: Callable[[list[object]], object]) -> bytes:
    fields = msgspec.msgpack.decode(document)
    change(fields)
    return msgspec.msgpack.encode(fields)


def test_two_events_prove_nothing_when_anything_is_changed(honest: Tree, forked: Tree) -> None:
    """One event twice, another place, another way, a larger tree first: each is refused."""
    good = fraud_from_trees(honest.signed(400), forked.signed(512), honest, forked)

    def swap(fields: list[object]) -> None:
        fields[1:5] = [*fields[3:5], *fields[1:3]]

    changes: list[Callable[[list[object]], object]] = [
        lambda f: f.__setitem__(slice(6, 8), f[8:10]),
        lambda f: f.__setitem__(5, 301),
        lambda f: f.__setitem__(5, 400),
        lambda f: f.__setitem__(5, -1),
        lambda f: f.__setitem__(7, f[7][:-1]),  # type: ignore[index]
        lambda f: f.__setitem__(9, [*f[9], bytes(32)]),  # type: ignore[misc]
        lambda f: f.__setitem__(6, bytes(32)),
        lambda f: f.__setitem__(8, bytes(31)),
        lambda f: f.__setitem__(0, "p2pnode log fraud leaves v2"),
        swap,
        lambda f: f.append(0),
    ]
    assert check_fraud(changed_leaves(good, lambda f: None)).index == 300
    for change in changes:
        with pytest.raises(BadCheckpoint):
            check_fraud(changed_leaves(good, change))
    for position in range(0, len(good), 5):
        with pytest.raises(BadCheckpoint):
            check_fraud(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])


def test_witnesses_lines_are_left_out_of_a_proof(honest: Tree, forked: Tree) -> None:
    """A hundred cosignatures would not fit, and convict nobody."""
    lines = "".join(f"\u2014 w{number} {'A' * 100}\n" for number in range(90))
    loud = Signed(honest.note(400) + lines, BINDING)
    assert check_fraud(fraud_proof(loud, forked.signed(400))).first == honest.note(400)


def test_equal_sizes_need_nothing_more(honest: Tree, forked: Tree) -> None:
    """What is not needed is not taken."""
    with pytest.raises(BadCheckpoint):
        fraud_proof(honest.signed(400), forked.signed(400), bytes(32))
    with pytest.raises(BadCheckpoint):
        fraud_proof(honest.signed(400), forked.signed(400), b"", [bytes(32)])


def test_a_proof_is_a_file_to_pass_on(honest: Tree, forked: Tree) -> None:
    """Read as written; anything else is said to be damaged."""
    document = fraud_proof(honest.signed(400), forked.signed(400))
    assert parse_fraud_file(fraud_file(document)) == document
    assert equivocation(document).origin == KEYS.origin
    for bad in ("", "x", "[]", "{}", '{"format": "p2pnode-fraud-1"}', '{"format": "p2pnode-fraud-1", "document": 1}',
                '{"format": "p2pnode-fraud-1", "document": "0"}', "[" * 70_000, "[" * 60_000):  # fmt: skip
        with pytest.raises(BadCheckpoint):
            parse_fraud_file(bad)
