"""Witnessing: a peer cosigns a checkpoint after it saw that nothing it knew was changed.

Pure: requests and answers of c2sp.org/tlog-witness as text, and the decision. The store checks and remembers
in one transaction. Source: specs/08-log.md#witnesses
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from p2pnode.errors import BadCheckpoint
from p2pnode.events.fraud import Signed, equivocation, fraud_from_consistency, fraud_proof
from p2pnode.events.keys import LogKeys, decode_binding, encode_binding, verifiers_of
from p2pnode.events.merkle import verify_consistency
from p2pnode.events.note import (
    NOTE_BYTES_MAX,
    Checkpoint,
    Note,
    Verifier,
    cosign_note,
    cosigned_at,
    is_signed,
    open_checkpoint,
    parse_checkpoint,
    parse_hash,
    parse_note,
    parse_signature_line,
    parse_size,
)
from p2pnode.events.types import CheckpointWitnessed, KeysBound, PeerEquivocated
from p2pnode.limits import WITNESS_EVENT_MS_MIN, WITNESS_PROOF_HASHES_MAX

OK: Final = 200
BAD_REQUEST: Final = 400
FORBIDDEN: Final = 403
UNKNOWN: Final = 404
CONFLICT: Final = 409
UNPROCESSABLE: Final = 422


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """A request to cosign: the size the witness is thought to know, the proof from there, the note."""

    old_size: int
    proof: Sequence[bytes]
    note: str

    def __str__(self) -> str:
        lines = "".join(f"{base64.b64encode(value).decode()}\n" for value in self.proof)
        return f"old {self.old_size}\n{lines}\n{self.note}"


@dataclass(frozen=True, slots=True)
class Witnessed:
    """The newest checkpoint of a log that this node cosigned."""

    origin: str
    size: int
    root: bytes
    note: str
    binding: bytes
    recorded_ms: int = 0
    """When an event last told of it."""

    @property
    def signed(self) -> Signed:
        return Signed(self.note, decode_binding(self.binding))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to answer; on 200 `latest` is to be remembered, and `fraud` is to be told to everybody."""

    status: int
    reason: str = ""
    known_size: int = 0
    latest: Witnessed | None = None
    fraud: bytes | None = None


@dataclass(frozen=True, slots=True)
class WitnessAnswer:
    """A verdict as it goes back: a status and a body in the words of tlog-witness."""

    status: int
    body: str
    fraud: bytes | None = None


def parse_add_checkpoint(body: str) -> AddCheckpoint:
    """Read a request; BadCheckpoint when it is not one."""
    if len(body) > NOTE_BYTES_MAX + 64 * 64:
        raise BadCheckpoint("a request to cosign is too large")
    head, separator, note = body.partition("\n\n")
    first, *lines = head.split("\n")
    if not separator or not first.startswith("old "):
        raise BadCheckpoint("a request to cosign begins with: old SIZE")
    if len(lines) > WITNESS_PROOF_HASHES_MAX:
        raise BadCheckpoint(f"a request to cosign has at most {WITNESS_PROOF_HASHES_MAX} hashes")
    return AddCheckpoint(parse_size(first.removeprefix("old ")), [parse_hash(line) for line in lines], note)


def judge(request: AddCheckpoint, binding: KeysBound, latest: Witnessed | None) -> Verdict:
    """Whether to cosign, given the newest checkpoint cosigned for that log before."""
    try:
        note = parse_note(request.note)
        checkpoint = parse_checkpoint(note.text)
        if checkpoint.origin != binding.origin:
            return Verdict(UNKNOWN, f"the keys shown are not of {checkpoint.origin}")
        if not is_signed(note, verifiers_of(binding)[0]):
            return Verdict(FORBIDDEN, f"not signed by the key of {binding.origin}")
    except BadCheckpoint as error:
        return Verdict(FORBIDDEN, error.message)
    if latest is not None and decode_binding(latest.binding).generation > binding.generation:
        return Verdict(FORBIDDEN, "these keys were replaced before")
    fraud = None if latest is None else _fraud(latest, request, checkpoint, binding)
    if fraud is not None:
        return Verdict(UNPROCESSABLE, "this log signed another history", fraud=fraud)
    if request.old_size > checkpoint.size:
        return Verdict(BAD_REQUEST, "the old size is larger than the new one")
    known_size = 0 if latest is None else latest.size
    if request.old_size != known_size:
        return Verdict(CONFLICT, known_size=known_size)
    if not _is_consistent(request, checkpoint, latest):
        return Verdict(UNPROCESSABLE, "the proof does not lead from the known root to the new one")
    kept = Witnessed(
        checkpoint.origin, checkpoint.size, checkpoint.root, request.note, encode_binding(binding)
    )
    return Verdict(OK, latest=kept)


def answer_witness(
    keys: LogKeys,
    peer: str,
    request: AddCheckpoint,
    binding: KeysBound,
    latest: Witnessed | None,
    now_ms: int,
) -> tuple[WitnessAnswer, Witnessed | None, CheckpointWitnessed | PeerEquivocated | None]:
    """The answer, what to remember before it goes out, and the fact to record, if any."""
    if binding.peer != peer:
        return WitnessAnswer(FORBIDDEN, "a node asks for its own log only\n"), None, None
    verdict = judge(request, binding, latest)
    if verdict.fraud is not None:
        answer = WitnessAnswer(verdict.status, f"{verdict.reason}\n", verdict.fraud)
        return answer, None, equivocation(verdict.fraud)
    if verdict.latest is None:
        body = verdict.reason
        if verdict.status == CONFLICT:
            body = conflict_body(verdict.known_size, latest, parse_checkpoint(parse_note(request.note).text))
        return WitnessAnswer(verdict.status, f"{body}\n"), None, None
    kept = verdict.latest
    is_news = latest is None or now_ms - latest.recorded_ms >= WITNESS_EVENT_MS_MIN
    recorded_ms = now_ms if latest is None or is_news else latest.recorded_ms
    text = parse_note(kept.note).text
    line = cosign_note(text, keys.witness_verifier.name, keys.witness, now_ms // 1000)
    told = CheckpointWitnessed(peer=peer, origin=kept.origin, size=kept.size, root=kept.root)
    return (
        WitnessAnswer(OK, f"{line}\n"),
        replace(kept, recorded_ms=recorded_ms),
        told if is_news else None,
    )


def conflict_body(known_size: int, latest: Witnessed | None, asked: Checkpoint) -> str:
    """The size known and, when that is more than the log claims to have, the note that proves it."""
    if latest is None or latest.size <= asked.size:
        return str(known_size)
    return f"{known_size}\n\n{latest.note.removesuffix(chr(10))}"


def read_conflict(body: str, own: Verifier) -> int:
    """The size a witness knows; a larger one than ours counts only with our own signature under it."""
    head, separator, note = body.partition("\n\n")
    size = parse_size(head.strip())
    if separator:
        checkpoint, _ = open_checkpoint(note if note.endswith("\n") else f"{note}\n", own)
        if checkpoint.size != size:
            raise BadCheckpoint("a witness shows a checkpoint of another size than it says")
    return size


def read_cosignature(body: str, note: str, witness: Verifier) -> str:
    """The line by which `witness` cosigned our checkpoint; BadCheckpoint if it is not there or wrong."""
    lines = [parse_signature_line(line) for line in body.removesuffix("\n").split("\n")]
    own = [line for line in lines if (line.name, line.key_hash) == (witness.name, witness.key_hash)]
    if not own or cosigned_at(Note(parse_note(note).text, tuple(own)), witness) is None:
        raise BadCheckpoint(f"the answer has no cosignature of {witness.name}")
    return str(own[0])


def _fraud(
    latest: Witnessed, request: AddCheckpoint, checkpoint: Checkpoint, binding: KeysBound
) -> bytes | None:
    """Two roots of one size; or a proof, the log's own, that leads to the new root from another beginning."""
    known, shown = latest.signed, Signed(request.note, binding)
    if checkpoint.size == latest.size:
        return None if checkpoint.root == latest.root else fraud_proof(known, shown)
    if request.old_size != latest.size or checkpoint.size < latest.size:
        return None
    return fraud_from_consistency(known, shown, request.proof)


def _is_consistent(request: AddCheckpoint, checkpoint: Checkpoint, latest: Witnessed | None) -> bool:
    if latest is None or latest.size == 0:
        return not request.proof
    return verify_consistency(latest.size, checkpoint.size, request.proof, latest.root, checkpoint.root)
