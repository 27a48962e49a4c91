"""A record of anybody's making is folded or refused by its index; it never breaks a projection or a view."""

from __future__ import annotations

import json
from dataclasses import fields
from random import Random
from typing import Any, get_type_hints

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import projections
from p2pnode.errors import CorruptRecord
from p2pnode.events import fields as kinds
from p2pnode.events.codec import Record
from p2pnode.events.types import EVENT_TYPES, Event
from p2pnode.projections import billing, views
from p2pnode.units import EventIndex, UnixMs
from tests.kit.receipts import channel
from tests.kit.story import NOW_MS

LABELS = ("a", "b", "local", "mint/topup", "held/a", "due/b", "", "a\nb", "x" * 128)
COUNTS = (0, 1, 2, 5, 10**6, 2**63 - 1)
PEERS = ("a", "b")
RECEIPTS = (
    b"",
    *(
        msgspec.msgpack.encode(
            channel().next(
                consumer=consumer,
                provider=provider,
                sequence=sequence,
                cumulative_microunits=amount,
                microunits=amount // sequence,
                cumulative_layer_tokens=40 * sequence,
            )
        )
        for consumer, provider in (PEERS, PEERS[::-1])
        for sequence in (1, 2)
        for amount in (0, 10**6)
    ),
)
BLOBS = (bytes(32), b"\x01" * 32)


def value(rng: Random, annotation: Any) -> Any:
    """Something that fits a field; few values, so that facts are about the same things."""
    simple: dict[Any, Any] = {
        kinds.Label: lambda: rng.choice(LABELS),
        kinds.Count: lambda: rng.choice(COUNTS),
        kinds.Reason: lambda: rng.choice(("", "because")),
        kinds.Hash: lambda: rng.choice(BLOBS),
        kinds.Signature: lambda: bytes(64),
        kinds.Document: lambda: rng.choice((b"", b"document")),
        kinds.Labels: lambda: ("a",) * rng.randrange(3),
        kinds.Shares: lambda: tuple(
            (rng.choice(LABELS), rng.choice(COUNTS)) for _ in range(rng.randrange(3))
        ),
        kinds.LayerRanges: lambda: tuple(
            (rng.choice(LABELS), rng.choice(COUNTS), rng.choice(COUNTS)) for _ in range(rng.randrange(3))
        ),
        kinds.SignedReceipts: lambda: tuple(
            (rng.choice(RECEIPTS), bytes(64), rng.choice((None, bytes(64)))) for _ in range(rng.randint(1, 3))
        ),
        kinds.KeysShown: lambda: ((rng.choice(PEERS), b"keys"),) * rng.randrange(2),
        bool: lambda: rng.random() < 0.5,
        int: lambda: rng.choice((-1, 0, 1)),
    }
    if annotation in simple:
        return simple[annotation]()
    inner = [kind for kind in simple if kind in getattr(annotation, "__args__", ())]
    if inner:
        return rng.choice((None, simple[inner[0]]()))
    return (bytes(32),) * rng.randrange(3)  # commitments of a forgotten subject


def any_event(rng: Random) -> Event:
    kind = rng.choice(list(EVENT_TYPES.values()))
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{field.name: value(rng, hints[field.name]) for field in fields(kind)})


@given(seed=st.integers(0, 2**32))
def test_any_facts_in_any_order(seed: int) -> None:
    rng = Random(seed)
    state, now_ms = projections.initial(), NOW_MS
    for _ in range(120):
        now_ms = max(now_ms + rng.choice((-(10**6), 0, 1, 10**9)), 0) if rng.random() < 0.99 else 2**62
        record = Record(
            EventIndex(state.size),
            bytes(16),
            "x",
            UnixMs(now_ms),
            1,
            None,
            None,
            rng.choice((None, "k")),
            any_event(rng),
        )
        before = projections.snapshot(state)
        try:
            projections.apply(state, record)
        except CorruptRecord:
            state = projections.restore(before)  # a fold that refused is thrown away
        assert sum(billing.balances(state.billing).values()) == 0
    for name in views.VIEWS:
        json.dumps(views.view(state, name, now_ms))
    assert projections.restore(projections.snapshot(state)) == state
