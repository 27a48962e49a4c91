"""Reserve, settle, void, expire: what a request costs, and that each hold ends once."""

from __future__ import annotations

import pytest

from p2pnode import limits
from p2pnode.commands import (
    CreateApiKey,
    DrainDevice,
    ExpireHolds,
    FailRequest,
    ReportFraud,
    RevokeApiKey,
    SetQuota,
    TopUp,
)
from p2pnode.errors import (
    Busy,
    CreditEnded,
    HoldResolved,
    IdempotencyConflict,
    InsufficientCredit,
    NotFound,
    QuotaExceeded,
    RequestError,
    Unauthorized,
)
from p2pnode.events import types as facts
from p2pnode.projections import billing
from tests.kit.story import SELF, STRANGER, Story, finish, serve

UNIT = 1_000_000


def balance(story: Story, account: str) -> int:
    return billing.available(story.state.billing, account)


def types_of(events: list[facts.Event]) -> list[str]:
    return [type(event).__name__ for event in events]


# --- free ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("caller", "path"), [("local", "wan"), (STRANGER, "lan"), (STRANGER, "loopback"), ("local", "loopback")]
)
def test_the_lan_and_the_owner_are_free_and_recorded(caller: str, path: str) -> None:
    story = Story()
    answer = story.do(serve(caller=caller, path=path))
    assert answer == {"request_id": "r1", "held_microunits": 0, "free": True}
    held = story.records[-1].event
    assert isinstance(held, facts.CreditHeld)
    assert (held.free, held.amount_microunits, held.quoted_microunits) == (True, 0, UNIT)
    assert story.do(finish()) == {"cost_microunits": 0, "shares": [], "free": True}
    settled = story.records[-1].event
    assert isinstance(settled, facts.CreditSettled)
    assert (settled.amount_microunits, settled.quoted_microunits, settled.shares) == (0, UNIT, ())
    assert story.state.billing.balances == {}


@pytest.mark.parametrize("path", ["wan", "relay"])
def test_everybody_else_pays_also_through_a_relay(path: str) -> None:
    story = Story()
    assert story.do(serve(path=path))["held_microunits"] == UNIT


# --- welcome ---------------------------------------------------------------------------------------
def test_a_stranger_is_welcomed_once_with_five_units() -> None:
    story = Story()
    assert types_of(story.events_of(serve())) == ["WelcomeGranted", "RequestAccepted", "CreditHeld"]
    for number in range(5):
        story.do(serve(f"r{number}"))
        story.do(finish(f"r{number}"))
    assert balance(story, STRANGER) == 0
    with pytest.raises(InsufficientCredit) as refusal:
        story.do(serve("r6"))
    assert refusal.value.details == {"needed": UNIT, "available": 0}
    assert refusal.value.http_status == 429


def test_a_wish_beyond_the_welcome_is_refused_before_anything_is_granted() -> None:
    story = Story()
    with pytest.raises(InsufficientCredit):
        story.do(serve(max_tokens=5001))
    assert story.state.size == 1
    assert story.do(serve(max_tokens=5000))["held_microunits"] == 5 * UNIT


def test_one_network_gets_three_welcomes_a_day() -> None:
    story = Story()
    for number in range(limits.WELCOMES_PER_NETWORK_PER_DAY_MAX):
        story.do(serve(f"r{number}", caller=f"sybil{number}"))
    with pytest.raises(InsufficientCredit, match="no welcome"):
        story.do(serve("r9", caller="sybil9"))
    story.do(serve("r10", caller="honest", network="elsewhere"))
    story.now_ms += billing.DAY_MS
    story.do(serve("r11", caller="sybil9"))


def test_an_hour_has_twenty_welcomes_whatever_the_network() -> None:
    story = Story()
    for number in range(limits.WELCOMES_PER_HOUR_MAX):
        story.do(serve(f"r{number}", caller=f"peer{number}", network=f"net{number}"))
    with pytest.raises(InsufficientCredit):
        story.do(serve("late", caller="late", network="fresh"))
    story.now_ms += billing.HOUR_MS
    story.do(serve("late", caller="late", network="fresh"))


def test_callers_without_a_network_tag_share_only_the_hourly_cap() -> None:
    story = Story()
    for number in range(limits.WELCOMES_PER_NETWORK_PER_DAY_MAX + 1):
        story.do(serve(f"r{number}", caller=f"key{number}", network=""))
    assert story.state.billing.welcomes_by_network == {}


def test_who_was_topped_up_before_needs_no_welcome_when_caps_are_reached() -> None:
    story = Story()
    for number in range(3):
        story.do(serve(f"r{number}", caller=f"sybil{number}"))
    story.do(TopUp(account="paying", amount_microunits=UNIT, idempotency_key="k"), key="k")
    story.do(serve("r9", caller="paying"))
    assert balance(story, "paying") == 0


# --- settle ----------------------------------------------------------------------------------------
def test_what_was_held_too_much_goes_back_and_the_work_is_paid() -> None:
    story = Story()
    story.do(serve(max_tokens=3000))
    assert (balance(story, STRANGER), billing.held(story.state.billing, STRANGER)) == (2 * UNIT, 3 * UNIT)
    answer = story.do(finish(completion_tokens=1001, work=((SELF, 1), ("12D3KooOther", 2))))
    assert answer["cost_microunits"] == 2 * UNIT
    assert balance(story, STRANGER) == 3 * UNIT
    assert balance(story, SELF) == 666_667
    assert balance(story, "12D3KooOther") == 1_333_333
    assert billing.held(story.state.billing, STRANGER) == 0
    assert sum(billing.balances(story.state.billing).values()) == 0


def test_more_tokens_than_asked_for_never_cost_more_than_was_held() -> None:
    story = Story()
    story.do(serve(max_tokens=1000))
    assert story.do(finish(completion_tokens=5000))["cost_microunits"] == UNIT


def test_work_nobody_claims_is_this_nodes() -> None:
    story = Story()
    story.do(serve())
    assert story.do(finish(work=()))["shares"] == [[SELF, UNIT]]


def test_an_earner_can_spend_what_it_earned() -> None:
    story = Story()
    story.do(serve())
    story.do(finish(work=(("12D3KooOther", 1),)))
    story.do(serve("r2", caller="12D3KooOther"))
    assert balance(story, "12D3KooOther") == UNIT + limits.WELCOME_MICROUNITS - UNIT


@pytest.mark.parametrize(
    ("reason", "tokens", "cost"),
    [("cancelled", 0, 0), ("error", 0, 0), ("cancelled", 1, UNIT), ("stop", 0, UNIT)],
)
def test_who_cancels_pays_for_what_came(reason: str, tokens: int, cost: int) -> None:
    story = Story()
    story.do(serve())
    assert story.do(finish(reason=reason, completion_tokens=tokens))["cost_microunits"] == cost
    assert balance(story, STRANGER) == limits.WELCOME_MICROUNITS - cost


# --- void and expire -------------------------------------------------------------------------------
def test_a_failure_costs_nothing() -> None:
    story = Story()
    story.do(serve())
    story.do(FailRequest(request_id="r1", code="stage_lost", message="a\nb", completion_tokens=9))
    assert balance(story, STRANGER) == limits.WELCOME_MICROUNITS
    assert story.events_of(FailRequest(request_id="r1", code="x", message="again")) == []
    with pytest.raises(HoldResolved):
        story.do(finish())


def test_a_hold_that_expired_stays_expired_and_the_answer_is_free() -> None:
    story = Story()
    story.do(serve(hold_ms=1000))
    assert story.do(ExpireHolds()) == {"expired": 0, "left": 0}
    story.now_ms += 1000
    assert story.do(ExpireHolds()) == {"expired": 1, "left": 0}
    assert balance(story, STRANGER) == limits.WELCOME_MICROUNITS
    assert story.do(finish()) == {"cost_microunits": 0, "shares": [], "free": True}
    assert story.do(finish()) == {"cost_microunits": 0, "shares": [], "free": True}
    assert types_of([story.records[-1].event]) == ["RequestFinished"]


def test_a_failure_after_expiry_gives_nothing_back_twice() -> None:
    story = Story()
    story.do(serve(hold_ms=1))
    story.now_ms += 1
    story.do(ExpireHolds())
    story.do(FailRequest(request_id="r1", code="x", message=""))
    assert balance(story, STRANGER) == limits.WELCOME_MICROUNITS


def test_holds_expire_in_portions_the_longest_overdue_first() -> None:
    story = Story()
    count = limits.HOLDS_EXPIRED_PER_DECISION_MAX + 3
    for number in range(count):
        story.do(serve(f"r{number:03}", caller="local", hold_ms=count - number))
    story.now_ms += count
    assert story.do(ExpireHolds()) == {"expired": limits.HOLDS_EXPIRED_PER_DECISION_MAX, "left": 3}
    assert list(story.state.billing.holds) == ["r000", "r001", "r002"]


# --- retries ---------------------------------------------------------------------------------------
def test_a_repeated_command_is_answered_again_and_records_nothing() -> None:
    story = Story()
    first = story.do(serve())
    size = story.state.size
    assert story.do(serve()) == first
    assert story.state.size == size
    settled = story.do(finish())
    size = story.state.size
    assert story.do(finish()) == settled
    assert story.state.size == size


def test_one_id_for_two_requests_is_a_conflict() -> None:
    story = Story()
    story.do(serve())
    with pytest.raises(IdempotencyConflict):
        story.do(serve(caller="another"))
    story.do(finish())
    with pytest.raises(IdempotencyConflict):
        story.do(serve())
    with pytest.raises(HoldResolved):
        story.do(finish(completion_tokens=999))
    with pytest.raises(HoldResolved):
        story.do(FailRequest(request_id="r1", code="x", message=""))


def test_a_request_the_sessions_forgot_is_still_known_by_its_hold() -> None:
    story = Story()
    story.do(serve("old"))
    story.do(serve("failing"))
    story.do(serve("settled"))
    story.do(finish("settled"))
    for number in range(limits.REQUESTS_KEPT_MAX):
        story.do(serve(f"r{number}", caller="local"))
        story.do(finish(f"r{number}"))
    assert "old" not in story.state.sessions.requests
    for request_id in ("old", "settled"):
        with pytest.raises(IdempotencyConflict):
            story.do(serve(request_id))
    assert story.do(finish("old"))["cost_microunits"] == UNIT
    story.do(FailRequest(request_id="failing", code="x", message=""))
    with pytest.raises(NotFound):
        story.do(finish("old"))
    with pytest.raises(NotFound):
        story.do(FailRequest(request_id="old", code="x", message=""))


# --- refusals --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "changes",
    [
        {"request_id": ""},
        {"request_id": "a" * 129},
        {"caller": "mint/topup"},
        {"caller": "a\nb"},
        {"max_tokens": 0},
        {"max_tokens": 2**31},
        {"hold_ms": 0},
        {"hold_ms": limits.HOLD_MS_MAX + 1},
    ],
)
def test_fields_out_of_bounds_are_refused(changes: dict[str, object]) -> None:
    fields = {"request_id": "r1", "caller": STRANGER, **changes}
    with pytest.raises(RequestError):
        Story().do(serve(**fields))  # type: ignore[arg-type]  # the fields are wrong on purpose


def test_a_drained_device_serves_its_owner_only() -> None:
    story = Story()
    story.do(DrainDevice())
    story.do(serve("mine", caller="local"))
    with pytest.raises(Busy, match="drained"):
        story.do(serve("theirs"))


def test_a_revoked_key_asks_in_vain() -> None:
    story = Story()
    story.do(CreateApiKey(key_id="k1", label="", scopes=("use",)))
    story.do(serve("r1", caller="k1", path="lan"))
    story.do(RevokeApiKey(key_id="k1"))
    for number, caller in enumerate(("k1", "key:k1")):
        with pytest.raises(Unauthorized):
            story.do(serve(f"r2{number}", caller=caller, path="lan"))


def test_equivocation_ends_credit_and_earning() -> None:
    story = Story()
    story.do(serve("r1", max_tokens=1))
    story.do(serve("r2", caller="other"))
    fraud = facts.PeerEquivocated(peer=STRANGER, origin="o", size_first=1, size_second=1, proof=b"")
    story.do(ReportFraud(fraud=fraud))
    with pytest.raises(CreditEnded):
        story.do(serve("r3"))
    assert story.do(finish("r2", work=((STRANGER, 5), (SELF, 1))))["shares"] == [[SELF, UNIT]]
    assert story.do(finish("r1"))["cost_microunits"] == UNIT, "what was held before is still paid"


def test_one_caller_can_not_open_requests_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HOLDS_OPEN_PER_ACCOUNT_MAX", 2)
    monkeypatch.setattr(limits, "HOLDS_OPEN_MAX", 3)
    story = Story()
    for number in range(2):
        story.do(serve(f"r{number}", path="lan"))
    with pytest.raises(Busy, match="2 requests open"):
        story.do(serve("r9", path="lan"))
    story.do(serve("r10", caller="other", path="lan"))
    with pytest.raises(Busy, match="3 requests are open"):
        story.do(serve("r11", caller="third", path="lan"))


# --- quotas ----------------------------------------------------------------------------------------
def test_a_quota_counts_free_work_too_and_gives_back_what_was_not_used() -> None:
    story = Story()
    story.do(SetQuota(account="key", limit_microunits=3 * UNIT, period_ms=billing.DAY_MS))
    story.do(serve("r1", caller="key", path="lan", max_tokens=3000))
    with pytest.raises(QuotaExceeded) as refusal:
        story.do(serve("r2", caller="key", path="lan"))
    assert refusal.value.details == {"needed": UNIT, "left": 0}
    story.do(finish("r1", completion_tokens=10))
    assert billing.quota_left(story.state.billing, "key", story.now_ms) == 2 * UNIT
    story.do(serve("r2", caller="key", path="lan"))
    story.do(FailRequest(request_id="r2", code="x", message=""))
    assert billing.quota_left(story.state.billing, "key", story.now_ms) == 2 * UNIT


def test_a_new_period_brings_a_new_quota_and_no_gift_from_the_old() -> None:
    story = Story()
    story.do(SetQuota(account="key", limit_microunits=2 * UNIT, period_ms=billing.DAY_MS))
    story.do(serve("r1", caller="key", path="lan", max_tokens=2000))
    story.now_ms += billing.DAY_MS
    assert billing.quota_left(story.state.billing, "key", story.now_ms) == 2 * UNIT
    story.do(serve("r2", caller="key", path="lan"))
    story.do(finish("r1", completion_tokens=1))
    assert billing.quota_left(story.state.billing, "key", story.now_ms) == UNIT


def test_a_quota_lifted_or_changed_meanwhile_does_not_confuse_open_holds() -> None:
    story = Story()
    story.do(SetQuota(account="key", limit_microunits=2 * UNIT, period_ms=billing.DAY_MS))
    story.do(serve("r1", caller="key", path="lan", max_tokens=2000))
    story.do(serve("x", caller="other", path="lan"))
    story.do(SetQuota(account="key", limit_microunits=2 * UNIT, period_ms=billing.HOUR_MS))
    story.do(finish("r1", completion_tokens=1))
    assert billing.quota_left(story.state.billing, "key", story.now_ms) == 2 * UNIT
    story.do(SetQuota(account="key", limit_microunits=UNIT, period_ms=billing.HOUR_MS))
    story.do(serve("r2", caller="key", path="lan"))
    story.do(SetQuota(account="key", limit_microunits=0, period_ms=0, unlimited=True))
    story.do(finish("r2"))
    assert billing.quota_left(story.state.billing, "key", story.now_ms) is None
    story.do(serve("r3", caller="key", path="lan", max_tokens=9000))
