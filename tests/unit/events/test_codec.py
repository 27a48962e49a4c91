"""Records as bytes: one encoding, frozen forever, and no other accepted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import NonCanonical
from p2pnode.events.codec import Record, decode, decode_trusted, encode, fingerprint, is_canonical
from p2pnode.events.ids import COUNTER_MAX, IdState, next_id, state_after
from p2pnode.events.types import EVENT_TYPES, CreditSettled, NodeStarted, UnknownEvent
from p2pnode.events.upcasters import schema_version
from p2pnode.events.view import event_view, record_view
from p2pnode.limits import EVENT_BYTES_MAX
from tests.kit.log_events import all_samples, held, record_of, sample_of, seeded_bytes, started

SPECS = Path(__file__).parents[3] / "specs" / "vectors"
FROZEN = json.loads((SPECS / "events.json").read_text())
ENCODINGS = json.loads((SPECS / "encoding.json").read_text())


@pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in FROZEN])
def test_frozen_records_stay_readable(vector: dict[str, Any]) -> None:
    """Bytes written by any version are read by this one; those of the current version are written the same."""
    raw = bytes.fromhex(vector["input"])
    record = decode(raw)
    name, version = vector["name"].split("/")
    assert type(record.event).__name__ == name
    if int(version) == schema_version(name):
        assert event_view(record.event) == vector["output"]
        assert encode(record) == raw


def test_every_fact_has_a_frozen_record() -> None:
    """A new fact or version needs one: python tools/make_log_vectors.py."""
    names = {vector["name"] for vector in FROZEN}
    assert {f"{name}/{schema_version(name)}" for name in EVENT_TYPES} <= names


@pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in ENCODINGS])
def test_one_encoding(vector: dict[str, Any]) -> None:
    """Everything a lenient decoder would take is refused."""
    raw = bytes.fromhex(vector["input"])
    if vector["expect"] == "ok":
        record = decode(raw)
        assert type(record.event).__name__ == vector["output"]
        assert encode(record) == raw
    else:
        with pytest.raises(NonCanonical) as caught:
            decode(raw)
        assert caught.value.code == vector["expect"]


@given(st.integers(0, 2**32), st.integers(0, len(EVENT_TYPES) - 1), st.integers(0, 2**50), st.data())
def test_records_keep_everything(seed: int, number: int, time_ms: int, data: st.DataObject) -> None:
    """What is encoded is what is decoded, for every fact and envelope."""
    event = sample_of(list(EVENT_TYPES.values())[number], seed)
    text = st.none() | st.text(max_size=40)
    record = msgspec.structs.replace(
        record_of(event, seed),
        wall_ms=time_ms,
        actor=data.draw(st.text(max_size=60)),
        correlation=data.draw(text),
        idempotency_key=data.draw(text),
        causation=data.draw(st.none() | st.binary(min_size=16, max_size=16)),
    )
    raw = encode(record)
    assert decode(raw, record.index) == record == decode_trusted(raw, record.index)
    assert is_canonical(raw)
    json.dumps(record_view(record))


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_or_exact(raw: bytes) -> None:
    """No input crashes the decoder, and what it takes encodes to itself."""
    try:
        record = decode(raw)
    except NonCanonical:
        return
    assert encode(record) == raw


@given(st.data())
def test_changed_bytes_are_another_record_or_none(data: st.DataObject) -> None:
    """Flipping a bit never gives the same record."""
    raw = encode(record_of(data.draw(st.sampled_from(all_samples()))))
    position = data.draw(st.integers(0, len(raw) - 1))
    bad = raw[:position] + bytes([raw[position] ^ (1 << data.draw(st.integers(0, 7)))]) + raw[position + 1 :]
    try:
        record = decode(bad)
    except NonCanonical:
        return
    assert record != decode(raw)
    assert encode(record) == bad


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_two_encoders_agree_on_the_subset(value: Any) -> None:
    """msgpack, keys sorted by hand, writes the bytes that we do."""
    import msgpack

    def ordered(item: Any) -> Any:
        if isinstance(item, dict):
            return {k: ordered(item[k]) for k in sorted(item, key=str.encode)}
        return [ordered(part) for part in item] if isinstance(item, list) else item

    raw = msgpack.packb(ordered(value), use_bin_type=True)
    assert raw == msgspec.msgpack.encode(value, order="sorted")


def test_upcasters_lift_old_records_step_by_step() -> None:
    """Version 1 read by code of version 3; the bytes in the log stay."""
    raw = encode(record_of(started()))
    upcasters = {
        ("NodeStarted", 1): lambda data: {**data, "device_name": data["device_name"] + "+"},
        ("NodeStarted", 2): lambda data: {**data, "platform": "lifted"},
    }
    event = decode(raw, upcasters=upcasters).event
    assert event == NodeStarted(version="0.1.0", platform="lifted", device_name="desk+")
    assert decode(encode(record_of(held(1))), upcasters=upcasters).event == held(1)
    assert schema_version("NodeStarted", upcasters) == 3
    assert schema_version("NodeStarted") == 1


def test_an_upcaster_that_makes_nonsense_is_noticed() -> None:
    """Not a crash but a record that can not be read."""
    raw = encode(record_of(started()))
    with pytest.raises(NonCanonical):
        decode(raw, upcasters={("NodeStarted", 1): lambda data: {}})


def test_limits_hold_when_writing() -> None:
    """Too long, too many, negative, too large: nothing of it is written."""
    settled = CreditSettled(hold_id="h", payer="p", request_id="r", amount_microunits=1, shares=(("a", 1),))
    bad = [
        NodeStarted(version="v" * 129, platform="", device_name=""),
        NodeStarted(version="\ud800", platform="", device_name=""),
        replace(settled, amount_microunits=-1),
        replace(settled, amount_microunits=2**63),
        replace(settled, amount_microunits=2**70),
        replace(settled, amount_microunits=1.5),  # type: ignore[arg-type]  # what a careless caller might do
        replace(settled, shares=(("a", 1),) * 257),
        UnknownEvent(type_name="X" * 200, schema_version=1, data=b"\x80"),
        UnknownEvent(type_name="X", schema_version=1, data=b"\x80" * (EVENT_BYTES_MAX + 1)),
        UnknownEvent(
            type_name="X", schema_version=1, data=msgspec.msgpack.encode({"a": bytes(EVENT_BYTES_MAX)})
        ),
    ]
    for event in bad:
        with pytest.raises(NonCanonical):
            encode(record_of(event))


def test_fingerprints_tell_events_apart() -> None:
    """By kind and by every field."""
    samples = all_samples()
    assert len({fingerprint(event) for event in samples}) == len(samples)
    assert fingerprint(started("a")) != fingerprint(started("b"))


def test_an_unknown_record_can_be_shown() -> None:
    """Its bytes in hexadecimal, under the name it came with."""
    event = UnknownEvent(type_name="FromTheFuture", schema_version=3, data=b"\x80")
    view = record_view(record_of(event))
    assert (view["type"], view["data"]["data"]) == ("FromTheFuture", "80")


@given(st.lists(st.integers(0, 2**44), min_size=1, max_size=50))
def test_ids_grow_whatever_the_clock_does(times: list[int]) -> None:
    """Each greater than the one before, version 7, variant 2; and they go on from the last one."""
    state, last, rng = IdState(), b"", seeded_bytes(1)
    for now_ms in times:
        event_id, state = next_id(state, now_ms, rng)
        assert event_id > last
        assert (event_id[6] >> 4, event_id[8] >> 6) == (7, 2)
        assert state_after(event_id) == state
        last = event_id


def test_a_thousand_ids_in_one_millisecond() -> None:
    """When the counter is used up the id borrows from the next millisecond."""
    state, rng = IdState(5, COUNTER_MAX - 1), seeded_bytes(1)
    ids = []
    for _ in range(4):
        event_id, state = next_id(state, 5, rng)
        ids.append(event_id)
    assert ids == sorted(set(ids))
    assert state == IdState(6, 2)


def test_records_are_values() -> None:
    """Two equal ones are one."""
    assert record_of(started()) == record_of(started())
    assert isinstance(record_of(started()), Record)
