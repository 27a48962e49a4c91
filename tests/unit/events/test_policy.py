"""Trust policies of c2sp.org/tlog-policy: what they accept, and each line that cannot be."""

from __future__ import annotations

import base64
import itertools
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import BadCheckpoint, BadPolicy
from p2pnode.events.folder import LOG_DIR, POLICY, read_policy
from p2pnode.events.keys import LogKeys
from p2pnode.events.note import Checkpoint, Note, SignatureLine, cosign_note, parse_note, sign_note
from p2pnode.events.policy import check_policy, parse_policy, policy_text
from p2pnode.limits import POLICY_BYTES_MAX, POLICY_LINES_MAX
from tests.kit.log_events import node_identity

VECTORS = json.loads((Path(__file__).parents[3] / "specs" / "vectors" / "policies.json").read_text())
KEYS = [LogKeys.derive(node_identity(number)) for number in range(1, 9)]


def note_by(log: LogKeys, *witnesses: LogKeys) -> Note:
    text = Checkpoint(log.origin, 3, bytes(32)).text()
    lines = [cosign_note(text, w.witness_verifier.name, w.witness, 1_790_000_000) for w in witnesses]
    return Note(text, (sign_note(text, log.origin, log.log), *lines))


@pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in VECTORS])
def test_policy_vectors(vector: dict[str, Any]) -> None:
    """Which witnesses are enough for a policy, or why it is none; witness `wN` has the keys of seed N."""
    raw = bytes.fromhex(vector["input"]["policy"])
    if vector["expect"] == "bad_policy":
        with pytest.raises(BadPolicy):
            parse_policy(raw)
        return
    policy = parse_policy(raw)
    for seeds, accepted in vector["output"]:
        note = note_by(KEYS[0], *(KEYS[seed - 1] for seed in seeds))
        assert check_policy(policy, note).ok is accepted, seeds


@given(
    st.binary(max_size=200)
    | st.text("log witness group quorum none all any 123 \n\t#", max_size=200).map(str.encode)
)
def test_anything_else_is_refused(raw: bytes) -> None:
    """By a condition, never by an accident."""
    try:
        parse_policy(raw)
    except BadPolicy:
        return
    assert b"quorum" in raw


def test_a_policy_made_is_a_policy_read() -> None:
    """So many of so many, and none."""
    verifiers = [keys.witness_verifier for keys in KEYS[1:4]]
    for needed in range(4):
        policy = parse_policy(policy_text(KEYS[0].log_verifier, verifiers, needed).encode())
        for count in range(4):
            for chosen in itertools.combinations(KEYS[1:4], count):
                assert check_policy(policy, note_by(KEYS[0], *chosen)).ok is (count >= needed)
    verdict = check_policy(policy, note_by(KEYS[0], KEYS[2]))
    assert (verdict.cosigned, verdict.missing) == (("w2",), ("w1", "w3"))
    with pytest.raises(BadPolicy):
        policy_text(KEYS[0].log_verifier, verifiers, 4)


def test_another_log_or_a_forged_line_is_not_accepted() -> None:
    policy = parse_policy(policy_text(KEYS[0].log_verifier, [KEYS[1].witness_verifier], 1).encode())
    assert not check_policy(policy, note_by(KEYS[4], KEYS[1])).ok
    good = note_by(KEYS[0], KEYS[1])
    moved = Note(good.text.replace("\n3\n", "\n4\n"), good.signatures)
    with pytest.raises(BadCheckpoint):
        check_policy(policy, moved)


def test_the_owners_policy_is_a_file(tmp_path: Path) -> None:
    """None is none; one that cannot be read says where."""
    assert read_policy(tmp_path) is None
    path = tmp_path / LOG_DIR / POLICY
    path.parent.mkdir()
    path.write_text("quorum none\n")
    assert read_policy(tmp_path) is not None
    for bad in (b"quorum x\n", b"\x00", b"x" * (POLICY_BYTES_MAX + 1), b"\n" * POLICY_LINES_MAX):
        path.write_bytes(bad)
        with pytest.raises(BadPolicy, match="policy"):
            read_policy(tmp_path)


def test_a_cosignature_of_the_other_kind_is_passed_over_and_not_asked_for() -> None:
    """ML-DSA-44, type 0x06 of tlog-cosignature: no fault under a note, no witness of a policy (decision 0024)."""
    key = MLDSA44PrivateKey.from_seed_bytes(bytes(32))
    name, public = "witness.example/pq", key.public_key().public_bytes_raw()
    key_hash = sha256(name.encode() + b"\n\x06" + public).digest()[:4]
    note = note_by(KEYS[0], KEYS[1])
    line = SignatureLine(name, key_hash, bytes(8) + key.sign(b"subtree/v1"))
    both = parse_note(str(note.with_signatures(line)))
    vkeys = [str(KEYS[0].log_verifier), str(KEYS[1].witness_verifier)]
    policy = parse_policy(f"log {vkeys[0]}\nwitness w {vkeys[1]}\nquorum w\n".encode())
    assert check_policy(policy, both).ok
    vkey = f"{name}+{key_hash.hex()}+{base64.b64encode(bytes([6]) + public).decode()}"
    with pytest.raises(BadPolicy, match="not an Ed25519 key"):
        parse_policy(f"log {vkeys[0]}\nwitness w {vkey}\nquorum w\n".encode())
