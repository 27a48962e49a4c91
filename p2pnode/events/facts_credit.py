"""Facts about who did what for whom, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.events.fields import Count, KeysShown, Label, Reason, Shares, SignedReceipts


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptGiven:
    """This node computed layers for a peer and signed for all stages at once; once more when that peer agreed."""

    peer: Label
    request_id: Label
    receipts: SignedReceipts


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptReceived:
    """Peers computed layers of a request for this node, and this node signed the same bytes as they did."""

    request_id: Label
    receipts: SignedReceipts
    keys: KeysShown = ()
    """Of providers whose keys were not recorded before: a second receipt with one number is proved with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WelcomeGranted:
    """A new account got its welcome credit."""

    account: Label
    amount_microunits: Count
    network: Label = ""
    """Salted tag of the network it came from, by which welcomes are capped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditToppedUp:
    """An administrator gave credit to an account."""

    account: Label
    amount_microunits: Count
    note: Reason = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditHeld:
    """Credit was set aside for a request before it began; amount 0 when it is free."""

    hold_id: Label
    payer: Label
    request_id: Label
    amount_microunits: Count
    expires_ms: Count
    free: bool = False
    quoted_microunits: Count = 0
    """What it may cost by the price list, also when it is free: quotas count this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditSettled:
    """A hold was paid out to those who did the work; what the shares do not use went back to the payer."""

    hold_id: Label
    payer: Label
    request_id: Label
    amount_microunits: Count
    shares: Shares
    quoted_microunits: Count = 0
    """What it cost by the price list, also when it was free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSettled:
    """One unit of a long request was delivered and paid out of its hold while the request goes on."""

    hold_id: Label
    payer: Label
    request_id: Label
    unit: Count
    """From 1, without gaps."""
    amount_microunits: Count
    shares: Shares


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditVoided:
    """What a hold still held was given back."""

    hold_id: Label
    payer: Label
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditExpired:
    """A hold outlived its time; what it still held was given back."""

    hold_id: Label
    payer: Label


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaSet:
    """An account may use at most so much in each period; `unlimited` lifts it."""

    account: Label
    limit_microunits: Count
    period_ms: Count
    unlimited: bool = False
