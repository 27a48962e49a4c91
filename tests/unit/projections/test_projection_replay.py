"""A state is a function of its log: rebuilt, split, travelled back in, and hashed."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from random import Random

import msgspec
import pytest

from p2pnode import projections
from p2pnode.errors import CorruptRecord
from p2pnode.events.types import EVENT_TYPES
from p2pnode.projections import VERSIONS, MeshFold, billing, billing_view, views
from tests.kit.chronicle import chronicle
from tests.kit.story import Story, folded, serve

FOLDED_ELSEWHERE = {"MeshFederated", "MeshFederationEnded"}
"""In test_projection_tables.py: in a life they would give every part other hashes than those written down."""
FIXTURE = Path(__file__).parent / "state_hashes.json"


@pytest.fixture(scope="module")
def lives() -> list[Story]:
    return [chronicle(seed) for seed in range(6)]


def test_a_life_holds_nearly_every_kind_of_fact(lives: list[Story]) -> None:
    told = {type(record.event).__name__ for life in lives for record in life.records}
    # The last ones fold into nothing but a count, and would move the dice of every life after them.
    assert set(EVENT_TYPES) - told <= {*FOLDED_ELSEWHERE, "MeshJoined", "IdentityDuplicated", "ToolCalled"}


def test_rebuilding_gives_the_state_that_grew(lives: list[Story]) -> None:
    for life in lives:
        again = folded(life.records)
        assert again == life.state
        assert projections.state_hash(again) == projections.state_hash(life.state)


def test_a_snapshot_and_the_rest_give_the_whole_at_any_split(lives: list[Story]) -> None:
    rng = Random(7)
    for life in lives:
        whole = projections.snapshot(life.state)
        for _ in range(12):
            split = rng.randrange(len(life.records) + 1)
            state = projections.restore(projections.snapshot(folded(life.records[:split])))
            for record in life.records[split:]:
                projections.apply(state, record)
            assert projections.snapshot(state) == whole


def test_time_travel_shows_what_was_known_then() -> None:
    life = Story()
    past = [projections.snapshot(life.state)]
    sizes = [life.state.size]
    for seed in range(40):
        life.do(serve(f"r{seed}", caller="local"))
        past.append(projections.snapshot(life.state))
        sizes.append(life.state.size)
    for size, snapshot in zip(sizes, past, strict=True):
        assert projections.snapshot(folded(life.records[:size])) == snapshot


def test_the_ledger_balances_in_every_life(lives: list[Story]) -> None:
    for life in lives:
        state = projections.initial()
        for record in life.records:
            projections.apply(state, record)
            assert sum(billing.balances(state.billing).values()) == 0
        assert billing_view.totals(state.billing)["sum_microunits"] == 0


def test_every_view_is_json_in_every_life(lives: list[Story]) -> None:
    for life in lives:
        for name in views.VIEWS:
            assert json.loads(json.dumps(views.view(life.state, name, life.now_ms)))


def test_the_state_hash_of_a_fixed_life_has_not_changed(lives: list[Story]) -> None:
    """When this fails the fold of a part has changed: raise its number in VERSIONS and write the new hashes beside the
    old ones. Until fold 4 the parts had one number together."""
    known = json.loads(FIXTURE.read_text(encoding="utf-8"))
    for part, number in VERSIONS.items():
        told = [msgspec.msgpack.encode(getattr(life.state, part), order="sorted") for life in lives[:3]]
        hashes = [sha256(raw).hexdigest() for raw in told]
        assert known[f"{part} {number}"] == hashes, f"{part} {number} now gives {hashes}"


def test_facts_out_of_order_are_refused() -> None:
    story = Story()
    with pytest.raises(CorruptRecord, match="event 0 came when 1 was next"):
        projections.apply(story.state, story.records[0])


def test_a_snapshot_that_is_not_what_was_stored_is_refused() -> None:
    story = Story()
    raw = projections.snapshot(story.state)
    assert projections.restore(raw, projections.state_hash(story.state)) == story.state
    with pytest.raises(CorruptRecord, match="hash"):
        projections.restore(raw, bytes(32))
    for wrong in (b"", raw[:-1], b"\xc0", b"\x81\xa4size\xa1x"):
        with pytest.raises(CorruptRecord):
            projections.restore(wrong)


def test_the_fold_port_folds_the_same() -> None:
    story, fold = Story(), MeshFold()
    state = fold.apply(fold.initial(), story.records[0])
    assert fold.load(fold.dump(state)) == story.state
    assert fold.stale(fold.version) == frozenset()
    assert "billing" in projections.all_projections()
