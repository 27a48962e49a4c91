"""The vectors of specs/09-billing.md: prices, divisions, paths, ledgers and receipts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pnode.decide import divide, price_microunits
from p2pnode.errors import BadReceipt, P2PNodeError
from p2pnode.events import receipt as receipts
from p2pnode.events.types import EVENT_TYPES, Event
from p2pnode.network import network_bucket, path_of
from p2pnode.projections import billing
from tests.kit.story import Story

VECTORS = Path(__file__).parents[3] / "specs/vectors"
BILLING = json.loads((VECTORS / "billing.json").read_text(encoding="utf-8"))
RECEIPTS = json.loads((VECTORS / "receipts.json").read_text(encoding="utf-8"))


def answer(given: Mapping[str, Any]) -> Any:
    ((kind, question),) = given.items()
    match kind:
        case "price":
            return price_microunits(question["output_tokens"])
        case "divide":
            work = [(name, done) for name, done in question["work"]]
            return [list(part) for part in divide(question["amount"], work)]
        case "path":
            return path_of(question["address"])
        case "network":
            return network_bucket(question["address"])
        case _:
            return balances(question)


def balances(events: list[tuple[str, dict[str, Any]]]) -> dict[str, int]:
    story = Story(bound=False)
    for name, data in events:
        event: Event = msgspec.convert(data, EVENT_TYPES[name])
        story.tell(event)
    return dict(billing.balances(story.state.billing))


@pytest.mark.parametrize("vector", BILLING, ids=lambda v: v["name"])
def test_billing(vector: dict[str, Any]) -> None:
    if vector["expect"] == "ok":
        assert answer(vector["input"]) == vector["output"]
        return
    with pytest.raises(P2PNodeError) as refused:
        answer(vector["input"])
    assert refused.value.code == vector["expect"]
    assert refused.value.details == vector["output"]


def checked(given: dict[str, str]) -> receipts.Receipt:
    """A receipt that is signed, and the next of its channel."""
    data = {name: bytes.fromhex(text) for name, text in given.items()}
    receipt = receipts.decode(data["receipt"])
    problems = (
        (receipts.is_signed(data["receipt"], data["signature"], data["provider_key"]), "signature"),
        (
            "countersignature" not in data
            or receipts.is_countersigned(data["receipt"], data["countersignature"], data["consumer_key"]),
            "countersignature",
        ),
        (receipts.follows(receipt, data.get("before")), "order"),
    )
    for holds, what in problems:
        if not holds:
            raise BadReceipt(what)
    return receipt


@pytest.mark.parametrize("vector", RECEIPTS, ids=lambda v: v["name"])
def test_receipts(vector: dict[str, Any]) -> None:
    if vector["expect"] == "ok":
        receipt = checked(vector["input"])
        assert receipts.encode(receipt).hex() == vector["input"]["receipt"]
        fields = msgspec.structs.asdict(receipt)
        assert {k: v.hex() if isinstance(v, bytes) else v for k, v in fields.items()} == vector["output"]
        return
    with pytest.raises(P2PNodeError) as refused:
        checked(vector["input"])
    assert refused.value.code == vector["expect"]


def test_most_receipts_and_ledgers_are_bad() -> None:
    """More ways to be wrong are pinned than ways to be right."""
    assert sum(v["expect"] != "ok" for v in RECEIPTS) > len(RECEIPTS) / 2
    ledgers = [v for v in BILLING if "ledger" in v["input"]]
    assert sum(v["expect"] != "ok" for v in ledgers) > len(ledgers) / 2
