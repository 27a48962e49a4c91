"""Billing for people: balances, statements and export rows, all sums of postings."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Final

from p2pnode import limits
from p2pnode.errors import RequestError
from p2pnode.events import receipt as receipts
from p2pnode.events import types as facts
from p2pnode.events.codec import Record
from p2pnode.projections import billing
from p2pnode.projections.accounts import Account
from p2pnode.projections.billing import Billing, Channel, Postings
from p2pnode.projections.fold import JsonObject
from p2pnode.units import MICRO_PER_UNIT


def view(state: Billing, now_ms: int, *, names: Mapping[str, str]) -> JsonObject:
    """{"unit_microunits", "own_account", "accounts": [{"account", "name", "available_microunits",
    "held_microunits", "granted_microunits", "topped_up_microunits", "spent_microunits",
    "earned_microunits", "requests", "opened_ms", "ended", "quota": {"limit_microunits", "period_ms",
    "used_microunits", "left_microunits", "forecast_microunits"} or None}], "holds": [{"hold_id", "payer",
    "request_id", "amount_microunits", "expires_ms", "free"}], "channels": [{"peer", "direction", "sequence",
    "agreed_sequence", "layer_tokens", "microunits", "agreed_microunits"}], "totals": {"minted_microunits",
    "available_microunits", "held_microunits", "due_microunits", "sum_microunits"}}; the sum is always 0.
    """
    return {
        "unit_microunits": MICRO_PER_UNIT,
        "own_account": state.own_account,
        "accounts": [_account_view(state, account, now_ms, names) for account in sorted(state.accounts)],
        "holds": [
            {
                "hold_id": hold_id,
                "payer": hold.payer,
                "request_id": hold.request_id,
                "amount_microunits": hold.amount,
                "expires_ms": hold.expires_ms,
                "free": hold.free,
            }
            for hold_id, hold in state.holds.items()
        ],
        "channels": [
            *(_channel_view(channel, "given") for _, channel in sorted(state.given.items())),
            *(_channel_view(channel, "received") for _, channel in sorted(state.received.items())),
        ],
        "totals": totals(state),
    }


def totals(state: Billing) -> JsonObject:
    """Trial balance: what was minted and is due from peers equals what is available and held."""
    sums = {"minted": 0, "available": 0, "held": 0, "due": 0}
    for account, balance in state.balances.items():
        if account.startswith(billing.HELD):
            sums["held"] += balance
        elif account.startswith(billing.DUE):
            sums["due"] -= balance
        elif account.startswith("mint/"):
            sums["minted"] -= balance
        else:
            sums["available"] += balance
    result = {f"{name}_microunits": value for name, value in sums.items()}
    result["sum_microunits"] = sums["available"] + sums["held"] - sums["minted"] - sums["due"]
    return result


def _account_view(state: Billing, account: str, now_ms: int, names: Mapping[str, str]) -> JsonObject:
    entry = state.accounts[account]
    left = billing.quota_left(state, account, now_ms)
    return {
        "account": account,
        "name": names.get(account, account),
        "available_microunits": billing.available(state, account),
        "held_microunits": billing.held(state, account),
        "granted_microunits": entry.granted,
        "topped_up_microunits": entry.topped_up,
        "spent_microunits": entry.spent,
        "earned_microunits": entry.earned,
        "requests": entry.requests,
        "opened_ms": entry.opened_ms,
        "ended": entry.ended,
        "quota": None if left is None or entry.quota is None else _quota_view(entry, left, now_ms),
    }


def _quota_view(entry: Account, left: int, now_ms: int) -> JsonObject:
    """With what the period will have used at the pace so far; of its first minutes no pace is told."""
    assert entry.quota is not None, "the caller looked"
    used, period_ms = entry.quota - left, entry.quota_period_ms
    elapsed_ms = max(now_ms % period_ms, period_ms // 100, 1)
    return {
        "limit_microunits": entry.quota,
        "period_ms": period_ms,
        "used_microunits": used,
        "left_microunits": left,
        "forecast_microunits": used * period_ms // elapsed_ms,
    }


def _channel_view(channel: Channel, direction: str) -> JsonObject:
    return {
        "peer": channel.peer,
        "direction": direction,
        "sequence": channel.sequence,
        "agreed_sequence": channel.agreed_sequence,
        "layer_tokens": channel.layer_tokens,
        "microunits": channel.microunits,
        "agreed_microunits": channel.agreed_microunits,
    }


# --- statements ------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class StatementRow:
    """One posting of one account, with the fact it comes from."""

    index: int
    wall_ms: int
    event_id: str
    type: str
    account: str
    request_id: str
    amount_microunits: int
    balance_microunits: int
    held_microunits: int
    note: str


_BILLING_FACTS: Final = frozenset(billing.HANDLERS)


def statement(
    records: Iterable[Record], account: str | None = None, *, rows_max: int = limits.STATEMENT_ROWS_MAX
) -> Iterator[StatementRow]:
    """Every posting of `account` (None: of all), with running balances, from the log itself.

    Needs the whole log in order; zero-amount facts of free requests are rows too. Raises RequestError
    beyond `rows_max`.
    """
    state, count = billing.initial(), 0
    for record in records:
        event = record.event
        if type(event) not in _BILLING_FACTS:
            continue
        rows = postings_of(state, record)
        billing.HANDLERS[type(event)](state, record, event)
        for name, amount in rows:
            if account is not None and name not in (account, billing.HELD + account):
                continue
            if count == rows_max:
                raise RequestError(f"a statement has at most {rows_max} rows", hint="ask for one account")
            count += 1
            yield _row(state, record, name, amount)


def postings_of(state: Billing, record: Record) -> Postings:
    """What a fact moves, given the state before it; () for facts that move nothing."""
    event = record.event
    match event:
        case facts.WelcomeGranted():
            return billing.postings_minted(billing.MINT_WELCOME, event.account, event.amount_microunits)
        case facts.CreditToppedUp():
            return billing.postings_minted(billing.MINT_TOPUP, event.account, event.amount_microunits)
        case facts.CreditHeld():
            return billing.postings_held(event)
        case facts.CreditSettled():
            return billing.postings_settled(event, _held(state, event.hold_id))
        case facts.UnitSettled():
            return billing.postings_unit(event)
        case facts.CreditVoided() | facts.CreditExpired():
            return billing.postings_released(event.payer, _held(state, event.hold_id))
        case facts.ReceiptGiven():
            return billing.postings_earned(state, event)
        case _:
            return ()


def _held(state: Billing, hold_id: str) -> int:
    hold = state.holds.get(hold_id)
    return 0 if hold is None else hold.amount


def _row(state: Billing, record: Record, name: str, amount: int) -> StatementRow:
    owner = name.removeprefix(billing.HELD)
    event = record.event
    return StatementRow(
        index=record.index,
        wall_ms=record.wall_ms,
        event_id=record.id.hex(),
        type=type(event).__name__,
        account=name,
        request_id=getattr(event, "request_id", "") or record.correlation or "",
        amount_microunits=amount,
        balance_microunits=billing.available(state, owner),
        held_microunits=billing.held(state, owner),
        note=getattr(event, "note", "") or getattr(event, "reason", ""),
    )


def earnings(records: Iterable[Record]) -> list[JsonObject]:
    """What receipts with both signatures were for, by device, direction, model and layers, from the log itself:
    [{"peer", "direction", "model", "layers", "receipts", "layer_tokens", "microunits"}]; "given" was computed here.
    """
    sums: dict[tuple[str, str, str, int, int], list[int]] = {}
    for record in records:
        event = record.event
        if not isinstance(event, facts.ReceiptReceived | facts.ReceiptGiven):
            continue
        for raw, _, countersignature in event.receipts:
            if countersignature is None:
                continue
            receipt = receipts.decode(raw)
            given = isinstance(event, facts.ReceiptGiven)
            peer, direction = (receipt.consumer, "given") if given else (receipt.provider, "received")
            key = (peer, direction, receipt.model, receipt.layer_first, receipt.layer_end)
            row = sums.setdefault(key, [0, 0, 0])
            for n, more in enumerate((1, receipt.layer_tokens, receipt.microunits)):
                row[n] += more
    return [
        {
            "peer": peer,
            "direction": direction,
            "model": model,
            "layers": [first, end],
            "receipts": count,
            "layer_tokens": layer_tokens,
            "microunits": microunits,
        }
        for (peer, direction, model, first, end), (count, layer_tokens, microunits) in sorted(sums.items())
    ]


def as_csv(rows: Iterable[StatementRow]) -> str:
    """RFC 4180, header first; text cells that a spreadsheet would run as a formula get a quote before them."""
    out = io.StringIO()
    writer = csv.writer(out)
    names = [field.name for field in fields(StatementRow)]
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in names])
    return out.getvalue()


def _cell(value: int | str) -> int | str:
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def as_json(rows: Iterable[StatementRow]) -> str:
    """An array of objects, keys as in the CSV's header."""
    return json.dumps([asdict(row) for row in rows], ensure_ascii=False)
