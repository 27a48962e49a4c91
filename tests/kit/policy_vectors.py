"""Writes specs/vectors/policies.json: `python -m tests.kit.policy_vectors`. The tests read the file, not this."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from p2pnode.events.keys import LogKeys
from tests.kit.log_events import node_identity

TARGET = Path("specs/vectors/policies.json")
_KEYS = {number: LogKeys.derive(node_identity(number)) for number in range(1, 9)}
_LOG = f"log {_KEYS[1].log_verifier}"
_W = {number: f"witness w{number} {_KEYS[number].witness_verifier}" for number in range(2, 9)}


def made() -> list[dict[str, Any]]:
    """Good policies with subsets of witnesses; bad ones by line."""
    w2, w3, w4, w5 = _W[2], _W[3], _W[4], _W[5]
    levels = [
        _LOG, "", w2, w3, w4, "group X 2 w2 w3 w4", "", w5, _W[6], "group Y any w5 w6",
        "group both all X Y", "quorum both",
    ]  # fmt: skip
    good: dict[str, tuple[list[str], list[tuple[list[int], bool]]]] = {
        "none": ([_LOG, "quorum none"], [([], True), ([2], True)]),
        "no logs": ([w2, "quorum w2"], [([], False), ([2], True)]),
        "one witness": ([_LOG, w2, w3, "quorum w2"], [([2], True), ([3], False), ([2, 3], True)]),
        "two levels": (
            levels,
            [([2, 3], False), ([2, 3, 5], True), ([2, 5, 6], False), ([2, 3, 4, 6], True), ([5, 6], False)],
        ),
        "blanks, comments and an address": (
            [
                "# who",
                "",
                f"  {_LOG}\t https://log.example ",
                f"\t{w2} https://w.example",
                " # x",
                "quorum\tw2 ",
            ],
            [([2], True), ([], False)],
        ),
        "names of any bytes": ([w2.replace("w2", "wïtness-\u212a"), "quorum wïtness-\u212a"], [([2], True)]),
    }
    bad: dict[str, list[str]] = {
        "empty": [],
        "no quorum": [_LOG, w2],
        "two quorums": [w2, "quorum w2", "quorum none"],
        "a quorum nobody defined": [w2, "quorum w3"],
        "a quorum before its witness": ["quorum w2", w2],
        "a witness twice": [w2, w2.replace("w2", "again"), "quorum w2"],
        "a name twice": [w2, w3.replace("w3", "w2"), "quorum w2"],
        "the name none": [w2.replace("w2", "none"), "quorum none"],
        "a log twice": [_LOG, _LOG, "quorum none"],
        "a witness's key as a log": [w2.replace("witness w2", "log"), "quorum none"],
        "a log's key as a witness": [_LOG.replace("log ", "witness w "), "quorum w"],
        "a broken key": [w2[:-3] + "AAA", "quorum w2"],
        "a group of nobody": [w2, "group g any", "quorum g"],
        "a group that needs none": [w2, "group g 0 w2", "quorum g"],
        "a group that needs more than it has": [w2, "group g 2 w2", "quorum g"],
        "a group that needs some": [w2, "group g some w2", "quorum g"],
        "a number with a zero before it": [w2, w3, "group g 01 w2 w3", "quorum g"],
        "a member twice": [w2, "group g any w2 w2", "quorum g"],
        "a member of two groups": [w2, w3, "group g any w2", "group h any w2 w3", "quorum h"],
        "a group with itself": [w2, "group g any g w2", "quorum g"],
        "none as a member": [w2, "group g any none w2", "quorum g"],
        "a word too many": [w2 + " https://x y", "quorum w2"],
        "an unknown word": ["mirror x", "quorum none"],
        "a carriage return": [w2 + "\r", "quorum w2"],
    }
    cases = [_case(name, "ok", lines, output) for name, (lines, output) in good.items()]
    return cases + [_case(name, "bad_policy", lines, None) for name, lines in bad.items()]


def _case(name: str, expect: str, lines: list[str], output: Any) -> dict[str, Any]:
    policy = "".join(f"{line}\n" for line in lines).encode().hex()
    return {"name": name, "comment": "", "expect": expect, "input": {"policy": policy}, "output": output}


if __name__ == "__main__":
    TARGET.write_text(json.dumps(made(), indent=1) + "\n")
