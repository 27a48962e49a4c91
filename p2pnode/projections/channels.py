"""Channels of receipts between two devices: one receipt follows the other, and is signed in that order."""

from __future__ import annotations

import msgspec

from p2pnode.errors import CorruptRecord
from p2pnode.events import types as facts
from p2pnode.events.codec import Record
from p2pnode.events.receipt import Receipt, read
from p2pnode.projections.accounts import Channel

Read = tuple[Receipt, bytes, bytes, bytes | None]
"""A receipt, its bytes, and both signatures."""


def require(true: bool, record: Record, what: str) -> None:
    """CorruptRecord with what is wrong, unless true: a fact that cannot be was never decided here."""
    if not true:
        raise CorruptRecord(f"event {record.index} breaks the ledger: {what}", index=record.index)


def read_all(record: Record, event: facts.ReceiptGiven | facts.ReceiptReceived) -> list[Read]:
    """The receipts of one fact, in order."""
    try:
        return [(read(raw), raw, signature, other) for raw, signature, other in event.receipts]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise CorruptRecord(f"event {record.index} has no receipt in it", index=record.index) from None


def follow(channel: Channel, record: Record, new: list[Read]) -> None:
    """Receipts that follow those before, in order; they are the channel's newest now."""
    for receipt, _, _, _ in new:
        require(receipt.sequence == channel.sequence + 1, record, "its receipt is out of order")
        channel.sequence = receipt.sequence
        channel.layer_tokens += receipt.layer_tokens
        channel.microunits += receipt.microunits
        sums = (receipt.cumulative_layer_tokens, receipt.cumulative_microunits)
        require(sums == (channel.layer_tokens, channel.microunits), record, "its sums are wrong")
    channel.receipts = tuple((raw, signature) for _, raw, signature, _ in new)


def agree(channel: Channel, record: Record, receipt: Receipt) -> None:
    """The other side signed for a receipt."""
    require(receipt.sequence == channel.agreed_sequence + 1, record, "it is signed out of order")
    channel.agreed_sequence = receipt.sequence
    channel.agreed_layer_tokens = receipt.cumulative_layer_tokens
    channel.agreed_microunits = receipt.cumulative_microunits
