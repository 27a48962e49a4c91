"""Receipts taken out of a log with everything needed to check them elsewhere, without either node.

The file holds, for each side, the events that bind its keys and the events that carry the receipts, each as
exact bytes with a tlog-proof. Source: specs/08-log.md#receipt-files
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from p2pnode.errors import BadCheckpoint, BadReceipt, NonCanonical, NotFound
from p2pnode.events import receipt as receipts
from p2pnode.events.codec import decode
from p2pnode.events.keys import is_binding_valid, verifiers_of
from p2pnode.events.note import Verifier, is_signed, parse_note
from p2pnode.events.proof import check_proof, parse_proof, prove
from p2pnode.events.reader import LogReader
from p2pnode.events.receipt import Signed
from p2pnode.events.types import KeysBound, ReceiptGiven, ReceiptReceived
from p2pnode.limits import RECEIPT_FILE_BYTES_MAX

FORMAT: Final = "p2pnode-receipts-1"
_SIDES_MAX: Final = 64
_EVENTS_MAX: Final = 1000
JsonObject = dict[str, Any]
_Logged = dict[tuple[str, int], list[tuple[str, Signed]]]
"""By channel and number: who logged it, and what."""


def export_receipts(reader: LogReader, what: str) -> JsonObject:
    """This log's evidence for a receipt (by event index or id) or all receipts of a request."""
    records = reader.find(what)
    found = [r for r in records if isinstance(r.event, ReceiptGiven | ReceiptReceived)]
    if not found:
        raise NotFound(f"{what!r} is not a receipt and has none")
    bindings = [index for index in reader.bindings() if index <= max(r.index for r in found)]
    peer = _bound(reader.entries(bindings[0], bindings[0] + 1)[0]).peer
    evidence = {
        "peer": peer,
        "bindings": [_piece(reader, index) for index in bindings],
        "events": [_piece(reader, record.index) for record in found],
    }
    return {"format": FORMAT, "evidence": [evidence]}


def merge(first: JsonObject, second: JsonObject) -> JsonObject:
    """One file with what both sides have."""
    if second.get("format") != FORMAT:
        raise BadReceipt(f"the other file is not of the form {FORMAT}")
    return {"format": FORMAT, "evidence": [*first["evidence"], *second["evidence"]]}


def verify_receipts(text: str) -> JsonObject:
    """Check a file; `problems` says what is wrong, `receipts` what was agreed.

    Facts hold the receipts of all who worked for a request. One whose other side has no part in the file is not
    `proved` by it, which is nothing wrong as long as another one is.
    """
    problems: list[str] = []
    keys: dict[str, list[bytes]] = {}
    logged: _Logged = {}
    try:
        for evidence in _evidence(text):
            _take_in(evidence, keys, logged)
    except (
        BadCheckpoint,
        BadReceipt,
        NonCanonical,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        problems.append(getattr(error, "message", f"the file is damaged: {error!r}"))
    agreed: list[JsonObject] = []
    missing: list[str] = []
    for (channel, sequence), copies in sorted(logged.items()):
        problem, view = _agreement(channel, sequence, copies, keys)
        without = [peer for peer in (view["provider"], view["consumer"]) if peer not in keys]
        if problem:
            (missing if without else problems).append(problem)
        agreed.append(view)
    if not any(view["proved"] for view in agreed) and not problems:
        problems = missing or ["the file has no receipts"]
    return {"ok": not problems, "problems": problems, "receipts": agreed}


def _evidence(text: str) -> list[Mapping[str, Any]]:
    if len(text) > RECEIPT_FILE_BYTES_MAX:
        raise BadReceipt(f"a receipt file has at most {RECEIPT_FILE_BYTES_MAX} bytes")
    try:
        document = json.loads(text)
    except json.JSONDecodeError:
        raise BadReceipt(f"the file is not of the form {FORMAT}: it is not JSON") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BadReceipt(f"the file is not of the form {FORMAT}")
    evidence = document["evidence"]
    if not isinstance(evidence, list) or len(evidence) > _SIDES_MAX:
        raise BadReceipt("the file has no evidence, or too much")
    return evidence


def _take_in(
    evidence: Mapping[str, Any],
    keys: dict[str, list[bytes]],
    logged: _Logged,
) -> None:
    """One side: its keys first, then what they sign."""
    if len(evidence["events"]) + len(evidence["bindings"]) > _EVENTS_MAX:
        raise BadReceipt("the file has too many events")
    bound = [_bound(bytes.fromhex(piece["entry"])) for piece in evidence["bindings"]]
    peers = {event.peer for event in bound}
    if peers != {evidence["peer"]} or not all(is_binding_valid(event) for event in bound):
        raise BadReceipt(f"the keys of {evidence['peer']} are not vouched for by its identity key")
    verifiers = [verifiers_of(event)[0] for event in bound]
    for piece in (*evidence["bindings"], *evidence["events"]):
        _check_piece(piece, verifiers)
    keys.setdefault(evidence["peer"], []).extend(event.receipt_key for event in bound)
    for piece in evidence["events"]:
        event = decode(bytes.fromhex(piece["entry"])).event
        if not isinstance(event, ReceiptGiven | ReceiptReceived):
            raise BadReceipt("an event of the file is not a receipt")
        for kept in event.receipts:
            receipt = receipts.decode(kept[0])
            number = (receipts.channel_of(receipt.consumer, receipt.provider), receipt.sequence)
            logged.setdefault(number, []).append((evidence["peer"], Signed(*kept)))


def _agreement(
    channel: str, sequence: int, copies: list[tuple[str, Signed]], keys: Mapping[str, list[bytes]]
) -> tuple[str | None, JsonObject]:
    """Whether both sides logged the same bytes and both signed them."""
    first = copies[0][1]
    receipt = receipts.decode(first.raw)
    logged_by = sorted({peer for peer, _ in copies})
    view: JsonObject = {
        "channel": channel,
        "sequence": sequence,
        "logged_by": logged_by,
        "provider": receipt.provider,
        "consumer": receipt.consumer,
        "request_id": receipt.request_id,
        "model": receipt.model,
        "layers": [receipt.layer_first, receipt.layer_end],
        "layer_tokens": receipt.layer_tokens,
        "microunits": receipt.microunits,
        "cumulative_microunits": receipt.cumulative_microunits,
    }
    is_signed_by_provider = any(
        receipts.is_signed(first.raw, first.signature, key) for key in keys.get(receipt.provider, [])
    )
    is_signed_by_consumer = any(
        receipts.is_countersigned(first.raw, copy.countersignature, key)
        for key in keys.get(receipt.consumer, [])
        for _, copy in copies
        if copy.countersignature is not None
    )
    checks = (
        (all(copy.raw == first.raw for _, copy in copies), "the two logs tell different things"),
        (receipt.provider in logged_by, f"the evidence of {receipt.provider} is missing"),
        (receipt.consumer in logged_by, f"the evidence of {receipt.consumer} is missing"),
        (is_signed_by_provider, "the provider's signature is wrong"),
        (is_signed_by_consumer, "the consumer's signature is wrong or missing"),
    )
    wrong = next((what for holds, what in checks if not holds), None)
    problem = None if wrong is None else f"receipt {sequence} of {channel}: {wrong}"
    return problem, view | {"proved": problem is None}


def _piece(reader: LogReader, index: int) -> JsonObject:
    return {"entry": reader.entries(index, index + 1)[0].hex(), "proof": str(prove(reader, index))}


def _check_piece(piece: Mapping[str, Any], verifiers: list[Verifier]) -> None:
    """The entry is in a log that one of these keys signed."""
    proof = parse_proof(piece["proof"])
    note = parse_note(proof.checkpoint)
    signer = next((verifier for verifier in verifiers if is_signed(note, verifier)), None)
    if signer is None:
        raise BadCheckpoint("a proof's checkpoint is not signed by a key in the file")
    check_proof(proof, bytes.fromhex(piece["entry"]), signer)


def _bound(entry: bytes) -> KeysBound:
    event = decode(entry).event
    if not isinstance(event, KeysBound):
        raise BadReceipt("an event of the file does not bind keys")
    return event
