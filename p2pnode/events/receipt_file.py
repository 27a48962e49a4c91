"""A receipt as one file that proves itself offline: both signatures, and its place in both logs.

JSON, so that people can read it; binary fields are base64. For each side: the fact that bound its keys and
the fact that recorded the receipt, each with a tlog-proof (c2sp.org/tlog-proof). Nothing else is needed to
check it, and nothing in it is believed without a proof. Source: specs/09-billing.md#receipt-files
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from p2pnode.errors import BadCheckpoint, BadReceipt, NonCanonical, NotFound
from p2pnode.events import receipt as receipts
from p2pnode.events.codec import decode
from p2pnode.events.keys import is_binding_valid, verifiers_of
from p2pnode.events.proof import Provable, check_proof, parse_proof, prove
from p2pnode.events.receipt import Receipt
from p2pnode.events.types import KeysBound, ReceiptGiven, ReceiptReceived
from p2pnode.limits import RECEIPT_FILE_BYTES_MAX
from p2pnode.units import EventIndex

FORMAT: Final = "p2pnode receipt 1"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event's exact bytes and its tlog-proof."""

    entry: bytes
    proof: str


class Side(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one log says."""

    keys: Entry
    record: Entry


class ReceiptFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    format: Literal["p2pnode receipt 1"]
    receipt: bytes
    signature: bytes
    countersignature: bytes
    provider: Side | None = None
    consumer: Side | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a file proves; `proved_by` has `provider` and `consumer` when both logs hold the receipt."""

    receipt: Receipt
    proved_by: tuple[str, ...]
    log_sizes: dict[str, int]
    keys: dict[str, str]
    """Receipt keys in hexadecimal, vouched for by each side's identity key."""

    def view(self) -> dict[str, Any]:
        """{"ok", "receipt": {...}, "proved_by", "log_sizes", "keys"}; hashes in hexadecimal."""
        fields = msgspec.structs.asdict(self.receipt)
        return {
            "ok": True,
            "receipt": {k: v.hex() if isinstance(v, bytes) else v for k, v in fields.items()},
            "proved_by": list(self.proved_by),
            "log_sizes": self.log_sizes,
            "keys": self.keys,
        }


class Readable(Provable):
    """What exporting needs of a log."""

    def entries(self, first: int, end: int) -> list[bytes]: ...


def export_side(log: Readable, index: int) -> Side:
    """One log's half: the receipt's fact at `index` and the newest key binding before it.

    Raises NotFound while the fact is not sealed, or when it is no receipt.
    """
    event = decode(_entry_at(log, index), EventIndex(index)).event
    if not isinstance(event, ReceiptGiven | ReceiptReceived):
        raise NotFound(f"event {index} is not a receipt")
    binding = index
    while not isinstance(decode(_entry_at(log, binding), EventIndex(binding)).event, KeysBound):
        binding -= 1
        if binding < 0:
            raise NotFound("the log does not begin with its keys")
    return Side(keys=_proved(log, binding), record=_proved(log, index))


def export_file(provider: Side | None, consumer: Side | None) -> bytes:
    """The file, from one or both halves; BadReceipt when they are not halves of one receipt."""
    signed = [_signed(side) for side in (provider, consumer) if side is not None]
    if not signed:
        raise BadReceipt("a receipt file needs at least one log's half")
    if any(other != signed[0] for other in signed):
        raise BadReceipt("the two halves are not of one receipt")
    raw, signature, countersignature = signed[0]
    made = ReceiptFile(FORMAT, raw, signature, countersignature, provider, consumer)
    return msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n"


def verify_file(raw: bytes) -> Verdict:
    """Check every signature and proof of a file. Raises: BadReceipt naming the first thing that is wrong."""
    file = _read(raw)
    receipt = receipts.decode(file.receipt)
    proved_by: list[str] = []
    log_sizes: dict[str, int] = {}
    keys: dict[str, str] = {}
    for name, side, peer in (
        ("provider", file.provider, receipt.provider),
        ("consumer", file.consumer, receipt.consumer),
    ):
        if side is not None:
            bound, log_sizes[name] = _check_side(name, side, peer, file)
            keys[name] = bound.receipt_key.hex()
            proved_by.append(name)
            _check_signature(name, file, bound.receipt_key)
    if not proved_by:
        raise BadReceipt("the file has no half of any log, so nothing says whose the signatures are")
    return Verdict(receipt, tuple(proved_by), log_sizes, keys)


def _read(raw: bytes) -> ReceiptFile:
    if len(raw) > RECEIPT_FILE_BYTES_MAX:
        raise BadReceipt(
            f"a receipt file has at most {RECEIPT_FILE_BYTES_MAX} bytes; this one has {len(raw)}"
        )
    try:
        return msgspec.json.decode(raw, type=ReceiptFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadReceipt(f"not a receipt file: {error}") from error


def _check_side(name: str, side: Side, peer: str, file: ReceiptFile) -> tuple[KeysBound, int]:
    """The keys a side's log was signed with, and the log's size; BadReceipt when the half is no proof."""
    try:
        bound = decode(side.keys.entry).event
        event = decode(side.record.entry).event
        if not isinstance(bound, KeysBound) or bound.peer != peer or not is_binding_valid(bound):
            raise BadReceipt(f"the {name}'s keys are not vouched for by {peer}")
        log = verifiers_of(bound)[0]
        check_proof(parse_proof(side.keys.proof), side.keys.entry, log)
        checkpoint = check_proof(parse_proof(side.record.proof), side.record.entry, log)
    except (BadCheckpoint, NonCanonical) as error:
        raise BadReceipt(f"the {name}'s half does not hold: {error.message}") from error
    if _signed(side) != (file.receipt, file.signature, file.countersignature):
        raise BadReceipt(f"the {name}'s log holds another receipt than the file")
    if isinstance(event, ReceiptGiven) != (name == "provider"):
        raise BadReceipt(f"the {name}'s half is of the other side")
    return bound, checkpoint.size


def _check_signature(name: str, file: ReceiptFile, key: bytes) -> None:
    if name == "provider":
        holds = receipts.is_signed(file.receipt, file.signature, key)
    else:
        holds = receipts.is_countersigned(file.receipt, file.countersignature, key)
    if not holds:
        raise BadReceipt(f"the {name}'s signature is wrong")


def _signed(side: Side) -> tuple[bytes, bytes, bytes]:
    """The receipt and both signatures as a side's log has them."""
    event = decode(side.record.entry).event
    if not isinstance(event, ReceiptGiven | ReceiptReceived) or event.countersignature is None:
        raise BadReceipt("a half does not hold a receipt that both signed")
    return event.receipt, event.signature, event.countersignature


def _entry_at(log: Readable, index: int) -> bytes:
    found = log.entries(index, index + 1)
    if not found:
        raise NotFound(f"there is no event {index}")
    return found[0]


def _proved(log: Readable, index: int) -> Entry:
    return Entry(_entry_at(log, index), str(prove(log, index)))


def merge_files(first: bytes, second: bytes) -> bytes:
    """One file from the two sides' own exports."""
    one, two = _read(first), _read(second)
    return export_file(one.provider or two.provider, one.consumer or two.consumer)
