"""The ledger refuses what cannot be, and a statement shows every posting."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

import msgspec
import pytest

from p2pnode import limits
from p2pnode.commands import ExpireHolds, FailRequest, SetQuota, TopUp
from p2pnode.errors import CorruptRecord, RequestError
from p2pnode.events import types as facts
from p2pnode.events.types import Event
from p2pnode.projections import billing, billing_view, views
from tests.kit.chronicle import chronicle
from tests.kit.receipts import Channel, channel, keys_of
from tests.kit.story import SELF, STRANGER, Story, finish, folded, serve

UNIT = 1_000_000


def held(hold_id: str = "h", payer: str = "a", amount: int = 0) -> facts.CreditHeld:
    return facts.CreditHeld(
        hold_id=hold_id, payer=payer, request_id="r", amount_microunits=amount, expires_ms=1
    )


def settled(
    amount: int = 0, shares: tuple[tuple[str, int], ...] = (), payer: str = "a"
) -> facts.CreditSettled:
    return facts.CreditSettled(
        hold_id="h", payer=payer, request_id="r", amount_microunits=amount, shares=shares
    )


def topped(amount: int = 10, account: str = "a") -> facts.CreditToppedUp:
    return facts.CreditToppedUp(account=account, amount_microunits=amount)


BETWEEN = Channel(keys_of("a consumer"), keys_of("a provider"))


def receipt(sequence: int = 1, **changes: object) -> bytes:
    """As its provider signed it; nothing is checked."""
    fields = {"sequence": sequence, "cumulative_layer_tokens": 40 * sequence, **changes}
    return msgspec.msgpack.encode(
        BETWEEN.next(cumulative_microunits=500_000 * sequence, **fields), order="sorted"
    )


def given(*raws: bytes, agreed: bool = False, peer: str = BETWEEN.consumer.peer) -> facts.ReceiptGiven:
    return facts.ReceiptGiven(peer=peer, request_id="r", receipts=_signed(raws, agreed=agreed))


def received(*raws: bytes, keys: tuple[tuple[str, bytes], ...] = ()) -> facts.ReceiptReceived:
    return facts.ReceiptReceived(request_id="r", receipts=_signed(raws, agreed=True), keys=keys)


def _signed(raws: Sequence[bytes], *, agreed: bool) -> tuple[tuple[bytes, bytes, bytes | None], ...]:
    return tuple((raw, bytes(64), bytes(64) if agreed else None) for raw in raws)


@pytest.mark.parametrize(
    "events",
    [
        [held(amount=1)],
        [topped(), held(amount=11)],
        [held(), held()],
        [held(), settled(), held()],
        [settled()],
        [held(), settled(), settled()],
        [held(), settled(payer="b")],
        [topped(), held(amount=5), settled(6, (("b", 6),))],
        [topped(), held(amount=5), settled(5, (("b", 4),))],
        [topped(), held(amount=5), settled(4, (("b", 5),))],
        [held(), settled(0, (("b", 0),))],
        [topped(), held(amount=5), settled(5, (("mint/topup", 5),))],
        [facts.CreditVoided(hold_id="h", payer="a", reason="")],
        [facts.CreditExpired(hold_id="h", payer="a")],
        [held(), facts.CreditVoided(hold_id="h", payer="b", reason="")],
        [topped(account="held/a")],
        [held(payer="due/a")],
        [facts.WelcomeGranted(account="a", amount_microunits=1)] * 2,
        [facts.QuotaSet(account="a", limit_microunits=1, period_ms=0)],
        [given(receipt(2))],
        [given(receipt()), given(receipt(request_id="other"))],
        [given(receipt()), given(receipt(2))],
        [given(receipt(), agreed=True), given(receipt(2, cumulative_layer_tokens=41))],
        [given(receipt(), agreed=True), given(receipt(2, microunits=499_999))],
        [given(receipt(), agreed=True), given(receipt(), agreed=True)],
        [given(receipt(), receipt(2)), given(receipt(2), agreed=True)],
        [given(receipt(), receipt(3))],
        [given(receipt(), peer="another")],
        [given(b"no receipt")],
        [received(receipt(2))],
        [received(receipt()), received(receipt())],
        [received(receipt(), keys=(("another", b"keys"),))],
    ],
)
def test_a_record_that_breaks_the_ledger_is_named(events: list[Event]) -> None:
    story = Story()
    story.tell(*events[:-1])
    with pytest.raises(CorruptRecord) as found:
        story.tell(events[-1])
    assert found.value.details == {"index": len(events)}


def test_a_top_up_without_a_key_is_credit_all_the_same() -> None:
    story = Story().tell(topped())
    assert billing.available(story.state.billing, "a") == 10
    assert story.state.billing.topups == {}


def test_resolved_holds_and_top_ups_are_forgotten_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HOLDS_RESOLVED_KEPT_MAX", 2)
    monkeypatch.setattr(limits, "TOPUPS_KEPT_MAX", 2)
    story = Story()
    for number in range(4):
        story.do(TopUp(account="a", amount_microunits=1, idempotency_key=f"k{number}"), key=f"k{number}")
        story.do(serve(f"r{number}", caller="local"))
        story.do(FailRequest(request_id=f"r{number}", code="x", message=""))
    assert list(story.state.billing.resolved) == ["r2", "r3"]
    assert list(story.state.billing.topups) == ["k2", "k3"]


def test_the_view_shows_accounts_holds_channels_and_a_trial_balance() -> None:
    between = channel()
    story = Story(between.provider.peer)
    story.do(TopUp(account="key1", amount_microunits=7 * UNIT, idempotency_key="k"), key="k")
    story.do(serve("r1", caller="key1", max_tokens=2000))
    story.do(serve("r2"))
    story.do(finish("r2"))
    story.do(between.give(between.signed()))
    view = views.view(story.state, "billing", story.now_ms)
    assert view["totals"] == {
        "minted_microunits": 17 * UNIT,
        "available_microunits": 15 * UNIT + 500_000,
        "held_microunits": 2 * UNIT,
        "due_microunits": 500_000,
        "sum_microunits": 0,
    }
    assert [hold["hold_id"] for hold in view["holds"]] == ["r1"]
    assert view["channels"][0]["direction"] == "given"
    accounts = {entry["account"]: entry for entry in view["accounts"]}
    assert accounts["key1"]["held_microunits"] == 2 * UNIT
    assert accounts[STRANGER]["spent_microunits"] == UNIT
    assert accounts[STRANGER]["quota"] is None


# --- statements ------------------------------------------------------------------------------------
def test_a_statement_has_every_posting_with_running_balances() -> None:
    story = Story()
    story.do(serve("r1", max_tokens=2000))
    story.do(finish("r1"))
    story.do(serve("r2", hold_ms=1))
    story.now_ms += 1
    story.do(ExpireHolds())
    rows = list(billing_view.statement(story.records, STRANGER))
    own = [
        (row.type, row.amount_microunits, row.balance_microunits) for row in rows if row.account == STRANGER
    ]
    assert own == [
        ("WelcomeGranted", 5 * UNIT, 5 * UNIT),
        ("CreditHeld", -2 * UNIT, 3 * UNIT),
        ("CreditSettled", UNIT, 4 * UNIT),
        ("CreditHeld", -UNIT, 3 * UNIT),
        ("CreditExpired", UNIT, 4 * UNIT),
    ]
    assert {row.request_id for row in rows} == {"", "r1", "r2"}
    assert [row.held_microunits for row in rows if row.account.startswith("held/")] == [2 * UNIT, 0, UNIT, 0]


def test_free_requests_are_rows_of_zero() -> None:
    story = Story()
    story.do(serve("r1", caller="local"))
    story.do(finish("r1"))
    rows = list(billing_view.statement(story.records, "local"))
    assert [(row.type, row.amount_microunits) for row in rows if row.account == "local"] == [
        ("CreditHeld", 0),
        ("CreditSettled", 0),
    ]


def test_statements_of_whole_lives_sum_to_their_balances() -> None:
    for seed in range(3):
        life = chronicle(seed)
        sums: dict[str, int] = {}
        for row in billing_view.statement(life.records):
            sums[row.account] = sums.get(row.account, 0) + row.amount_microunits
        assert {k: v for k, v in sums.items() if v} == dict(billing.balances(folded(life.records).billing))


def test_a_statement_is_bounded() -> None:
    story = Story()
    story.do(serve("r1"))
    with pytest.raises(RequestError, match="at most 3 rows"):
        list(billing_view.statement(story.records, rows_max=3))


def test_exports_hold_the_rows_and_no_formula() -> None:
    story = Story()
    story.do(TopUp(account="key1", amount_microunits=5, idempotency_key="k", note="=HYPERLINK()"), key="k")
    story.do(serve("r1", caller="local"))
    story.do(FailRequest(request_id="r1", code='gone, "really"', message=""))
    rows = list(billing_view.statement(story.records))
    table = list(csv.DictReader(io.StringIO(billing_view.as_csv(rows))))
    assert [row["account"] for row in table[:2]] == ["mint/topup", "key1"]
    assert table[0]["note"] == "'=HYPERLINK()"
    assert table[0]["amount_microunits"] == "-5"
    assert table[-1]["note"] == 'gone, "really"'
    parsed = json.loads(billing_view.as_json(rows))
    assert [row["index"] for row in parsed] == [row.index for row in rows]
    assert parsed[0]["note"] == "=HYPERLINK()"
    assert SELF not in {row["account"] for row in parsed}


def test_earnings_are_the_sums_of_what_both_signed_by_layers() -> None:
    between = channel()
    provider, consumer = Story(between.provider.peer), Story(between.consumer.peer)
    for layers in ((0, 4), (4, 8), (4, 8)):
        signed = between.signed(between.next(layer_first=layers[0], layer_end=layers[1]))
        provider.do(between.give(signed, agreed=False))
        consumer.do(between.accept(signed))
        provider.do(between.give(signed))
    provider.do(between.give(between.signed(), agreed=False))
    mine, theirs = billing_view.earnings(provider.records), billing_view.earnings(consumer.records)
    assert [(row["layers"], row["receipts"], row["layer_tokens"], row["microunits"]) for row in mine] == [
        ([0, 4], 1, 40, 500_000),
        ([4, 8], 2, 80, 1_000_000),
    ]
    assert [{**row, "peer": "", "direction": ""} for row in mine] == [
        {**row, "peer": "", "direction": ""} for row in theirs
    ]
    assert {row["direction"] for row in mine} | {row["direction"] for row in theirs} == {"given", "received"}
    agreed = provider.state.billing.given[between.consumer.peer].agreed_microunits
    assert sum(row["microunits"] for row in mine) == agreed


def test_a_quota_is_shown_with_what_the_pace_so_far_comes_to() -> None:
    """A quarter of the period has passed and half of the limit is used; in its first minutes nothing explodes."""
    story, day_ms = Story(), 86_400_000
    story.now_ms = 20_000 * day_ms
    story.do(SetQuota(account=STRANGER, limit_microunits=8 * UNIT, period_ms=day_ms))
    story.do(serve("r1", max_tokens=4000))

    def shown(now_ms: int) -> dict[str, int]:
        accounts = billing_view.view(story.state.billing, now_ms, names={})["accounts"]
        quota: dict[str, int] = next(entry["quota"] for entry in accounts if entry["account"] == STRANGER)
        return quota

    quarter = shown(story.now_ms + day_ms // 4)
    assert (quarter["used_microunits"], quarter["left_microunits"]) == (4 * UNIT, 4 * UNIT)
    assert quarter["forecast_microunits"] == 16 * UNIT
    assert shown(story.now_ms)["forecast_microunits"] == 400 * UNIT
    assert shown(story.now_ms + day_ms)["forecast_microunits"] == 0
