"""Writes specs/vectors/frauds.json and receipt_frauds.json: `python -m tests.kit.fraud_vectors`.

The tests read the files, not this.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from p2pnode.events import receipt as receipts
from p2pnode.events.fraud import check_fraud, equivocation, fraud_from_tree, fraud_from_trees
from p2pnode.events.keys import LogKeys, binding_message, encode_binding
from tests.kit.log_events import node_identity
from tests.kit.log_trees import Tree
from tests.kit.receipts import Channel, channel, keys_of

TARGET = Path("specs/vectors/frauds.json")
RECEIPTS_TARGET = Path("specs/vectors/receipt_frauds.json")
Fields = list[Any]


def made() -> list[dict[str, Any]]:
    """Each way to prove a fork, and each with what must not pass."""
    honest, forked = Tree(40), Tree(40, fork_at=10)
    good = {
        "one size": fraud_from_tree(honest.signed(20), forked.signed(20), forked),
        "two sizes": fraud_from_tree(honest.signed(20), forked.signed(37), forked),
        "two sizes of which the first is a power of two": fraud_from_tree(
            honest.signed(16), forked.signed(37), forked
        ),
        "two events in one place": fraud_from_trees(honest.signed(20), forked.signed(37), honest, forked),
        "two events in one place, one size": fraud_from_trees(
            honest.signed(20), forked.signed(20), honest, forked
        ),
    }
    cases = [_case(name, "ok", document) for name, document in good.items()]
    other = LogKeys.derive(node_identity(2))
    bad: dict[str, tuple[str, Callable[[Fields], object]]] = {
        "one checkpoint twice": ("one size", lambda f: f.__setitem__(slice(3, 5), f[1:3])),
        "the larger one first": ("two sizes", lambda f: f.__setitem__(slice(1, 5), [*f[3:5], *f[1:3]])),
        "the first one's own root": ("two sizes", lambda f: f.__setitem__(5, honest.roots[20])),
        "a hash too few": ("two sizes", lambda f: f[6].pop()),
        "a hash too many": ("two sizes", lambda f: f[6].append(bytes(32))),
        "a proof where none is needed": ("one size", lambda f: f[6].append(bytes(32))),
        "keys of another device": ("two sizes", lambda f: f.__setitem__(3, encode_binding(other.bound()))),
        "a checkpoint nobody signed": (
            "two sizes",
            lambda f: f.__setitem__(4, f[4].replace("\n37\n", "\n38\n")),
        ),
        "one event twice": ("two events in one place", lambda f: f.__setitem__(slice(8, 10), f[6:8])),
        "two places": ("two events in one place", lambda f: f.__setitem__(5, 11)),
        "a place outside": ("two events in one place", lambda f: f.__setitem__(5, 20)),
        "another event than the tree's": ("two events in one place", lambda f: f.__setitem__(6, bytes(32))),
        "an unknown kind": ("two sizes", lambda f: f.__setitem__(0, "p2pnode log fraud v2")),
        "a field too many": ("two sizes", lambda f: f.append(0)),
    }
    for name, (of, change) in bad.items():
        fields = msgspec.msgpack.decode(good[of])
        change(fields)
        cases.append(_case(name, "bad_checkpoint", msgspec.msgpack.encode(fields)))
    cases.append(_case("not the shortest form", "bad_checkpoint", b"\xdc\x00\x07" + good["two sizes"][1:]))
    cases.append(_case("cut", "bad_checkpoint", good["two sizes"][:-1]))
    return cases


def made_of_receipts() -> list[dict[str, Any]]:
    """Two receipts with one number, and what must not pass for that."""
    between = channel()
    first = between.signed()
    other = Channel(between.consumer, between.provider)
    second = other.signed(other.next(request_id="r2"))
    bound = between.provider.bound()
    good = receipts.fraud_proof(first, bound, second, bound)
    somebody = keys_of("somebody else")
    later = LogKeys.derive(between.provider.identity, 1)
    event = equivocation(good)
    output = {"peer": event.peer, "origin": event.origin, "sizes": [event.size_first, event.size_second]}
    cases = [
        {"name": "two receipts", "comment": "", "expect": "ok", "input": good.hex(), "output": output},
    ]
    rotated = receipts.Signed(second.raw, receipts.sign(second.raw, later.receipt))
    two_keys = receipts.fraud_proof(first, bound, rotated, later.bound())
    cases.append(
        {
            "name": "under keys of two generations",
            "comment": "the first with one key, the second after a rotation in the same log",
            "expect": "ok",
            "input": two_keys.hex(),
            "output": output,
        }
    )
    restored = LogKeys.derive(between.provider.identity, 1, f"{between.provider.origin}/1")
    elsewise = receipts.sign(second.raw, restored.receipt)
    bad_two: dict[str, Callable[[Fields], object]] = {
        "keys of another log: a restored backup": lambda f: f.__setitem__(
            slice(4, 7), [encode_binding(restored.bound()), second.raw, elsewise]
        ),
        "the newer keys did not sign": lambda f: f.__setitem__(6, second.signature),
        "one key twice": lambda f: f.__setitem__(slice(4, 7), [f[1], second.raw, second.signature]),
        "keys of two devices": lambda f: f.__setitem__(4, encode_binding(somebody.bound())),
        "one receipt under both keys": lambda f: f.__setitem__(
            slice(5, 7), [first.raw, receipts.sign(first.raw, later.receipt)]
        ),
        "two keys and a field too few": lambda f: f.pop(),
    }
    third = between.signed()
    elsewhere = Channel(somebody, between.provider).signed()
    claimed = replace(somebody.bound(), receipt_key=between.provider.bound().receipt_key)
    claimed = replace(claimed, signature=somebody.identity.sign(binding_message(claimed)))
    bad: dict[str, Callable[[Fields], object]] = {
        "keys that another device claims for itself": lambda f: f.__setitem__(1, encode_binding(claimed)),
        "one receipt twice": lambda f: f.__setitem__(slice(4, 6), f[2:4]),
        "two numbers": lambda f: f.__setitem__(slice(4, 6), [third.raw, third.signature]),
        "two channels": lambda f: f.__setitem__(slice(4, 6), [elsewhere.raw, elsewhere.signature]),
        "keys of another device": lambda f: f.__setitem__(1, encode_binding(somebody.bound())),
        "keys of another generation": lambda f: f.__setitem__(1, encode_binding(later.bound())),
        "keys nobody vouches for": lambda f: f.__setitem__(1, f[1][:-1] + bytes([f[1][-1] ^ 1])),
        "a countersignature in place of a signature": lambda f: f.__setitem__(3, first.countersignature),
        "a receipt nobody signed": lambda f: f.__setitem__(4, third.raw),
        "the first version, which named no identity": lambda f: f.__setitem__(0, "p2pnode receipt fraud v1"),
        "a field too many": lambda f: f.append(0),
    }
    for of, changes in ((good, bad), (two_keys, bad_two)):
        for name, change in changes.items():
            fields = msgspec.msgpack.decode(of)
            change(fields)
            cases.append(_case(name, "bad_receipt", msgspec.msgpack.encode(fields)))
    cases.append(_case("not the shortest form", "bad_receipt", b"\xdc\x00\x06" + good[1:]))
    cases.append(_case("cut", "bad_receipt", good[:-1]))
    return cases


def _case(name: str, expect: str, document: bytes) -> dict[str, Any]:
    output = None
    if expect == "ok":
        found = check_fraud(document)
        output = {
            "peer": found.peer,
            "origin": found.origin,
            "sizes": [found.size_first, found.size_second],
            "event": found.index,
        }
    return {"name": name, "comment": "", "expect": expect, "input": document.hex(), "output": output}


if __name__ == "__main__":
    TARGET.write_text(json.dumps(made(), indent=1) + "\n")
    RECEIPTS_TARGET.write_text(json.dumps(made_of_receipts(), indent=1) + "\n")
