"""Two nodes with keys, and receipts between them."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from p2pnode.commands import AcceptReceipts, GiveReceipts, OfferedReceipt
from p2pnode.events import receipt as receipts
from p2pnode.events.keys import LogKeys
from p2pnode.events.receipt import Receipt, Signed
from p2pnode.identity import Identity

HASH = bytes(range(32))


def keys_of(name: str) -> LogKeys:
    """The same name, the same node."""
    return LogKeys.derive(Identity.from_seed(sha256(name.encode()).digest()))


def public(keys: LogKeys) -> bytes:
    return keys.receipt.public_key().public_bytes_raw()


@dataclass
class Channel:
    """A provider's receipts to one consumer, in order."""

    consumer: LogKeys
    provider: LogKeys
    last: Receipt | None = None
    last_raw: bytes | None = None

    def next(self, **changes: Any) -> Receipt:
        """The next receipt: four layers, ten positions, half of a unit's work."""
        last = self.last
        fields: dict[str, Any] = {
            "v": 1,
            "consumer": self.consumer.peer,
            "provider": self.provider.peer,
            "sequence": 1 if last is None else last.sequence + 1,
            "previous": receipts.GENESIS if self.last_raw is None else sha256(self.last_raw).digest(),
            "request_id": "r1",
            "model": "bafkmodel",
            "layer_first": 4,
            "layer_end": 8,
            "position_first": 0,
            "position_end": 10,
            "input_commitment": HASH,
            "output_commitment": HASH,
            "layer_tokens": 40,
            "microunits": 500_000,
            "request_layer_tokens": 80,
            "request_microunits": 1_000_000,
            "checkpoint": "",
            "issued_ms": 1_800_000_000_000,
        }
        fields.update(changes)
        before = (0, 0) if last is None else (last.cumulative_layer_tokens, last.cumulative_microunits)
        fields.setdefault("cumulative_layer_tokens", before[0] + fields["layer_tokens"])
        fields.setdefault("cumulative_microunits", before[1] + fields["microunits"])
        return Receipt(**fields)

    def signed(self, receipt: Receipt | None = None) -> Signed:
        """Both signatures over a receipt, and the channel moved on."""
        made = self.next() if receipt is None else receipt
        raw = receipts.encode(made)
        self.last, self.last_raw = made, raw
        return Signed(
            raw, receipts.sign(raw, self.provider.receipt), receipts.countersign(raw, self.consumer.receipt)
        )

    def give(self, *signed: Signed, agreed: bool = True) -> GiveReceipts:
        return GiveReceipts(
            receipts=tuple(one if agreed else Signed(one.raw, one.signature) for one in signed),
            provider_key=public(self.provider),
            consumer_key=public(self.consumer) if agreed else None,
        )

    def offer(self, signed: Signed, **changes: Any) -> OfferedReceipt:
        fields: dict[str, Any] = {
            "signed": signed,
            "provider_keys": self.provider.bound(),
            "layer_tokens_max": 10**9,
            "microunits_max": 10**9,
        }
        return OfferedReceipt(**{**fields, **changes})

    def accept(self, *signed: Signed, **changes: Any) -> AcceptReceipts:
        return AcceptReceipts(
            offers=tuple(self.offer(one, **changes) for one in signed), consumer_key=public(self.consumer)
        )


def channel() -> Channel:
    return Channel(keys_of("consumer"), keys_of("provider"))
