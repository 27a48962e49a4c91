"""Events as bytes: a deterministic subset of MessagePack, one encoding for each value.

A record is the array [v, id, type, schema_ver, actor, wall_ms, lamport, corr, cause, idem, data], `data`
a map from field names. Hashes and signatures are over the bytes as stored. Reading decodes, encodes again
and compares, because every MessagePack decoder accepts longer forms, unsorted keys and duplicates; floats
survive that round trip, so types are walked too. Source: specs/08-log.md#encoding
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from p2pnode.errors import NonCanonical
from p2pnode.events.fields import Count, Label
from p2pnode.events.types import EVENT_TYPES, Event, UnknownEvent
from p2pnode.events.upcasters import UPCASTERS, Upcaster, lift, schema_version
from p2pnode.limits import EVENT_BYTES_MAX
from p2pnode.units import EventIndex, UnixMs

ENVELOPE_VERSION: Final = 1
EVENT_ID_BYTES: Final = 16
FIRST: Final = EventIndex(0)
DEPTH_MAX: Final = 8
"""Maps and arrays inside one another; our own facts need three."""

_encode: Final = msgspec.msgpack.Encoder(order="sorted").encode
_decode_any: Final = msgspec.msgpack.Decoder().decode


class Record(msgspec.Struct, frozen=True, gc=False):
    """One event with its envelope, as it stands in a log."""

    index: EventIndex
    id: bytes
    """UUIDv7."""
    actor: str
    """Who caused it: a peer id, `local`, or an API key id."""
    wall_ms: UnixMs
    lamport: int
    correlation: str | None
    """The request it belongs to."""
    causation: bytes | None
    """The id of the event it follows from."""
    idempotency_key: str | None
    event: Event


_Id = Annotated[bytes, msgspec.Meta(min_length=EVENT_ID_BYTES, max_length=EVENT_ID_BYTES)]


class _Envelope(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """The wire form; its types are its limits."""

    v: Literal[1]
    id: _Id
    type: Label
    schema_ver: Annotated[int, msgspec.Meta(ge=1, le=65_535)]
    actor: Label
    wall_ms: Annotated[UnixMs, msgspec.Meta(ge=0, le=2**63 - 1)]
    lamport: Count
    corr: Label | None
    cause: _Id | None
    idem: Label | None
    data: msgspec.Raw


_decode_envelope: Final = msgspec.msgpack.Decoder(_Envelope).decode
_decode_data: Final[Mapping[str, Callable[[bytes | msgspec.Raw], Event]]] = {
    name: msgspec.msgpack.Decoder(cls).decode for name, cls in EVENT_TYPES.items()
}
_version_of: Final = {name: schema_version(name) for name in EVENT_TYPES}


def encode(record: Record) -> bytes:
    """The one encoding of a record (its index is not part of it); NonCanonical if a field is too big."""
    event = record.event
    try:
        if isinstance(event, UnknownEvent):
            name, version, data = event.type_name, event.schema_version, event.data
        else:
            name, data = type(event).__name__, _encode(event)
            version = _version_of[name]
            _decode_data[name](data)
        raw = _encode(
            _Envelope(
                ENVELOPE_VERSION,
                record.id,
                name,
                version,
                record.actor,
                record.wall_ms,
                record.lamport,
                record.correlation,
                record.causation,
                record.idempotency_key,
                msgspec.Raw(data),
            )
        )
        _decode_envelope(raw)
    except (msgspec.MsgspecError, OverflowError, TypeError, UnicodeError) as error:
        raise NonCanonical(f"{type(event).__name__} does not fit its fields: {error}") from error
    if len(raw) > EVENT_BYTES_MAX:
        raise NonCanonical(f"{name} takes {len(raw)} bytes; an entry has at most {EVENT_BYTES_MAX}")
    return raw


def decode(
    raw: bytes,
    index: EventIndex = FIRST,
    *,
    upcasters: Mapping[tuple[str, int], Upcaster] = UPCASTERS,
) -> Record:
    """Read bytes from anywhere; NonCanonical unless they are exactly what `encode` would have written."""
    if len(raw) > EVENT_BYTES_MAX:
        raise NonCanonical(f"an entry of {len(raw)} bytes; at most {EVENT_BYTES_MAX} are allowed")
    if not is_canonical(raw):
        raise NonCanonical("the bytes are not the one encoding of what they say")
    record = decode_trusted(raw, index, upcasters=upcasters)
    envelope, event = _decode_envelope(raw), record.event
    current = envelope.schema_ver == _current_version(envelope.type, upcasters)
    if current and not isinstance(event, UnknownEvent) and _encode(event) != bytes(envelope.data):
        raise NonCanonical(f"{envelope.type} has a field too many or too few")
    return record


def decode_trusted(
    raw: bytes,
    index: EventIndex = FIRST,
    *,
    upcasters: Mapping[tuple[str, int], Upcaster] = UPCASTERS,
) -> Record:
    """Read bytes this node wrote itself and whose hash is checked elsewhere: no second encoding."""
    try:
        envelope = _decode_envelope(raw)
        if upcasters is UPCASTERS and _version_of.get(envelope.type) == envelope.schema_ver:
            event = _decode_data[envelope.type](envelope.data)  # what nearly every record is
        else:
            event = _decode_event(envelope, upcasters)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise NonCanonical(f"not a record: {error}") from error
    return Record(
        index,
        envelope.id,
        envelope.actor,
        envelope.wall_ms,
        envelope.lamport,
        envelope.corr,
        envelope.cause,
        envelope.idem,
        event,
    )


def fingerprint(event: Event) -> bytes:
    """Kind and fields of an event, to tell a repeated command from another one."""
    return _encode((type(event).__name__, event))


def is_canonical(raw: bytes) -> bool:
    """Whether these bytes are the subset's one encoding of some value; never raises."""
    try:
        value = _decode_any(raw)
        return _only_plain(value, 0) and bool(_encode(value) == raw)
    except (msgspec.MsgspecError, OverflowError, TypeError, RecursionError, ValueError):
        return False


def _current_version(name: str, upcasters: Mapping[tuple[str, int], Upcaster]) -> int:
    return _version_of.get(name, 0) if upcasters is UPCASTERS else schema_version(name, upcasters)


def _decode_event(envelope: _Envelope, upcasters: Mapping[tuple[str, int], Upcaster]) -> Event:
    name, version = envelope.type, envelope.schema_ver
    cls = EVENT_TYPES.get(name)
    current = _current_version(name, upcasters)
    if cls is None or version > current:
        return UnknownEvent(type_name=name, schema_version=version, data=bytes(envelope.data))
    if version == current:
        return _decode_data[name](envelope.data)
    lifted = lift(name, version, _decode_any(envelope.data), upcasters)
    return msgspec.convert(lifted, cls)


def _only_plain(value: Any, depth: int) -> bool:
    if value is None or type(value) in (bool, int, str, bytes):
        return True
    if depth == DEPTH_MAX:
        return False
    if type(value) is list:
        return all(_only_plain(item, depth + 1) for item in value)
    if type(value) is dict:
        return all(type(key) is str and _only_plain(item, depth + 1) for key, item in value.items())
    return False
