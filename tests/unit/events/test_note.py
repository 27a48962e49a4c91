"""Signed notes, checkpoints, proofs as files, and the keys behind them."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import BadCheckpoint, NonCanonical
from p2pnode.events.block import is_block_signed, parse_header, seal_block
from p2pnode.events.keys import (
    LogKeys,
    decode_binding,
    encode_binding,
    is_binding_valid,
    origin_of,
    verifiers_of,
)
from p2pnode.events.merkle import leaf_hash, node_hash
from p2pnode.events.note import (
    COSIGNATURE,
    Checkpoint,
    Note,
    cosign_note,
    cosigned_at,
    is_signed,
    open_checkpoint,
    parse_checkpoint,
    parse_hash,
    parse_note,
    parse_verifier,
    sign_note,
)
from p2pnode.events.proof import HEADER, TlogProof, check_proof, parse_proof
from p2pnode.events.secret import commitment_of
from tests.kit.log_events import node_identity

VECTORS = json.loads((Path(__file__).parents[3] / "specs" / "vectors" / "notes.json").read_text())
KEYS = LogKeys.derive(node_identity(1))


@pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in VECTORS if "note" in v["input"]])
def test_note_vectors(vector: dict[str, Any]) -> None:
    """Good notes by the right and the wrong key; each way of being malformed."""
    raw, vkey = vector["input"]["note"], vector["input"]["vkey"]
    if vector["expect"] == "bad_checkpoint":
        with pytest.raises(BadCheckpoint):
            is_signed(parse_note(raw), parse_verifier(vkey))
        return
    note, verifier, output = parse_note(raw.encode()), parse_verifier(vkey), vector["output"]
    assert str(note) == raw
    assert str(verifier) == vkey
    assert is_signed(note, verifier) is output["signed"]
    if verifier.algorithm == COSIGNATURE:
        assert cosigned_at(note, verifier) == output["time_s"]
    elif "size" in output:
        checkpoint, _ = open_checkpoint(raw, verifier)
        assert (checkpoint.origin, checkpoint.size, checkpoint.root.hex()) == (
            output["origin"],
            output["size"],
            output["root"],
        )


@pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in VECTORS if "text" in v["input"]])
def test_checkpoint_vectors(vector: dict[str, Any]) -> None:
    """Texts of checkpoints, without their signatures."""
    text = vector["input"]["text"]
    if vector["expect"] == "bad_checkpoint":
        with pytest.raises(BadCheckpoint):
            parse_checkpoint(text)
        return
    checkpoint = parse_checkpoint(text)
    assert checkpoint.text() == text
    assert vector["output"] == {
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "extensions": list(checkpoint.extensions),
    }


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_any_note_is_refused_or_exact(raw: Any) -> None:
    """Nothing crashes; what is read is written the same."""
    try:
        note = parse_note(raw)
    except BadCheckpoint:
        return
    assert str(note) == (raw if isinstance(raw, str) else raw.decode())


def test_a_checkpoint_must_be_of_its_signer() -> None:
    """Unsigned, or signed for another origin."""
    text = Checkpoint("somebody/else", 1, bytes(32)).text()
    note = Note(text, (sign_note(text, KEYS.origin, KEYS.log),))
    with pytest.raises(BadCheckpoint, match="is of somebody/else"):
        open_checkpoint(str(note), KEYS.log_verifier)
    assert open_checkpoint(str(note), KEYS.log_verifier, "somebody/else")[0].size == 1
    with pytest.raises(BadCheckpoint, match="not signed"):
        open_checkpoint(str(note), LogKeys.derive(node_identity(2)).log_verifier)
    assert note.with_only(KEYS.witness_verifier).signatures == ()
    with pytest.raises(BadCheckpoint):
        parse_hash(base64.b64encode(bytes(31)).decode())


def test_a_cosignature_has_its_length() -> None:
    """Eight bytes of time and sixty-four of signature."""
    text = Checkpoint(KEYS.origin, 1, bytes(32)).text()
    line = cosign_note(text, KEYS.witness_verifier.name, KEYS.witness, 1_790_000_000)
    short = replace(line, signature=line.signature[:-1])
    assert cosigned_at(Note(text, (line,)), KEYS.witness_verifier) == 1_790_000_000
    assert cosigned_at(Note(text, ()), KEYS.witness_verifier) is None
    with pytest.raises(BadCheckpoint):
        cosigned_at(Note(text, (short,)), KEYS.witness_verifier)


def proof_of(entry: bytes) -> TlogProof:
    sibling = leaf_hash(b"sibling")
    text = Checkpoint(KEYS.origin, 2, node_hash(leaf_hash(entry), sibling)).text()
    note = Note(text, (sign_note(text, KEYS.origin, KEYS.log),))
    return TlogProof(0, [sibling], str(note))


def test_a_proof_file_is_read_as_written_and_holds_for_its_entry_alone() -> None:
    """c2sp.org/tlog-proof, with and without the line of extra data."""
    proof = proof_of(b"entry")
    text = str(proof)
    assert parse_proof(text) == proof
    assert parse_proof(text.replace("\nindex", "\nextra AAAA\nindex")) == proof
    assert check_proof(proof, b"entry", KEYS.log_verifier).size == 2
    with pytest.raises(BadCheckpoint):
        check_proof(proof, b"other", KEYS.log_verifier)
    with pytest.raises(BadCheckpoint):
        check_proof(replace(proof, index=1), b"entry", KEYS.log_verifier)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.replace("@v1", "@v2"),
        lambda t: t.replace("index 0", "index 00"),
        lambda t: t.replace("index 0", "index -1"),
        lambda t: t.replace("index 0\n", ""),
        lambda t: t.replace("\n\n", "\n", 1),
        lambda t: t.replace("index 0\n", "index 0\nAAAA\n"),
        lambda t: t.replace("index 0\n", "index 0\n!\n"),
        lambda t: t.replace("index 0\n", "index 0\n" + ("A" * 43 + "=\n") * 70),
        lambda t: HEADER,
        lambda t: HEADER + "\n\n",
        lambda t: "",
    ],
)
def test_bad_proof_files_are_refused(change: Any) -> None:
    """Each part in turn."""
    with pytest.raises(BadCheckpoint):
        parse_proof(change(str(proof_of(b"entry"))))


def test_keys_of_a_node_differ_by_purpose_and_generation() -> None:
    """A signature of one kind never passes for another; the witness key outlives rotations."""
    newer = LogKeys.derive(node_identity(1), 1)
    public = [
        k.public_key().public_bytes_raw()
        for k in (KEYS.log, KEYS.receipt, KEYS.witness, newer.log, newer.receipt)
    ]
    assert len(set(public)) == 5
    assert newer.witness.public_key().public_bytes_raw() == KEYS.witness.public_key().public_bytes_raw()
    assert origin_of("p") == "p2pnode/p"
    assert origin_of("p", 2) == "p2pnode/p/2"
    assert "seed" not in repr(KEYS)
    assert KEYS.identity.peer_id in str(KEYS.log_verifier)


def test_a_binding_is_vouched_for_field_by_field() -> None:
    """Changing any field, or claiming another's peer id, breaks the identity's signature."""
    bound = KEYS.bound()
    assert is_binding_valid(bound)
    assert decode_binding(encode_binding(bound)) == bound
    log, witness = verifiers_of(bound)
    assert (log, witness) == (KEYS.log_verifier, KEYS.witness_verifier)
    other = LogKeys.derive(node_identity(2)).bound()
    changes: list[dict[str, Any]] = [
        {"peer": other.peer},
        {"peer": "nonsense"},
        {"peer": "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"},
        {"identity_key": other.identity_key},
        {"origin": other.origin},
        {"generation": 1},
        {"log_key": other.log_key},
        {"witness_key": other.witness_key},
        {"receipt_key": other.receipt_key},
        {"previous_origin": "x"},
        {"signature": other.signature},
    ]
    for change in changes:
        assert not is_binding_valid(replace(bound, **change)), change
        with pytest.raises(BadCheckpoint):
            decode_binding(encode_binding(replace(bound, **change)))
    for raw in (b"", b"\x80", encode_binding(bound) + b"\x00", encode_binding(bound)[:-1]):
        with pytest.raises(BadCheckpoint):
            decode_binding(raw)


def test_block_headers_have_one_encoding_and_a_signature() -> None:
    """Changed bytes are no header, or not a signed one."""
    block = seal_block(
        [KEYS], number=3, first=10, leaves=[bytes(32)], log_root=bytes(32), previous_hash=bytes(32), now_ms=5
    )
    key = KEYS.log.public_key().public_bytes_raw()
    assert parse_header(block.header_bytes) == block.header
    assert is_block_signed(block, key)
    assert not is_block_signed(replace(block, signature=bytes(64)), key)
    assert not is_block_signed(block, bytes(31))
    for position in range(len(block.header_bytes)):
        raw = bytearray(block.header_bytes)
        raw[position] ^= 1
        try:
            parse_header(bytes(raw))
        except NonCanonical:
            continue
        assert not is_block_signed(replace(block, header_bytes=bytes(raw)), key)
    for raw_bytes in (b"", b"\xc0", block.header_bytes + b"\x00"):
        with pytest.raises(NonCanonical):
            parse_header(raw_bytes)


def test_commitments_say_nothing_without_their_salt() -> None:
    """One text, two salts, two commitments; HMAC-SHA-256."""
    assert commitment_of(bytes(32), b"prompt") != commitment_of(bytes([1]) * 32, b"prompt")
    assert len(commitment_of(bytes(32), b"")) == 32
