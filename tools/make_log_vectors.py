"""Vectors of the record: frozen records of every fact, canonical encoding, notes and blocks.

`python tools/make_log_vectors.py` adds what is missing and never changes what is there: a frozen record is
how an old version is kept readable. `--check` fails when something is missing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from p2pnode.events.codec import encode
from p2pnode.events.types import EVENT_TYPES
from p2pnode.events.upcasters import schema_version
from p2pnode.events.view import event_view
from tests.kit.log_events import record_of, sample_of, started

VECTORS = Path(__file__).parents[1] / "specs" / "vectors"


def frozen_records() -> list[dict[str, Any]]:
    """One record of every fact in its current version."""
    made = []
    for name, cls in EVENT_TYPES.items():
        event = sample_of(cls)
        made.append(
            {
                "name": f"{name}/{schema_version(name)}",
                "comment": "a record as this version was first written",
                "expect": "ok",
                "input": encode(record_of(event)).hex(),
                "output": event_view(event),
            }
        )
    return made


def encodings() -> list[dict[str, Any]]:
    """The one encoding, and each way of missing it."""
    good = encode(record_of(started()))
    pack = msgspec.msgpack.encode
    envelope = msgspec.msgpack.decode(good)
    fields = envelope[10]

    def rebuilt(position: int, value: bytes) -> bytes:
        parts = [pack(part) if index != position else value for index, part in enumerate(envelope)]
        return b"\x9b" + b"".join(parts)

    def with_data(raw: bytes) -> bytes:
        return rebuilt(10, raw)

    unsorted = b"\x83" + b"".join(pack(k) + pack(fields[k]) for k in sorted(fields, reverse=True))
    doubled = b"\x84" + b"".join(pack(k) + pack(fields[k]) for k in ["device_name", *sorted(fields)])
    key, value = pack("device_name"), pack(fields["device_name"])
    others = pack(fields)[1 + len(key) + len(value) :]
    cases = [
        ("trailing", "a byte after the end", good + b"\x00"),
        ("truncated", "the last byte is missing", good[:-1]),
        ("empty", "nothing", b""),
        ("long-int", "lamport 1 in nine bytes", rebuilt(6, b"\xcf" + (1).to_bytes(8, "big"))),
        ("signed-int", "lamport 1 as a signed integer", rebuilt(6, b"\xd0\x01")),
        ("long-string", "the actor with an 8-bit length though 5 bits do", rebuilt(4, b"\xd9\x05local")),
        ("long-bin", "the id with a 16-bit length", rebuilt(1, b"\xc5\x00\x10" + bytes(16))),
        ("long-map", "the fields with a 16-bit count", with_data(b"\xde\x00\x03" + pack(fields)[1:])),
        ("long-array", "the envelope with a 16-bit count", b"\xdc\x00\x0b" + good[1:]),
        ("unsorted", "keys in falling order", with_data(unsorted)),
        ("duplicate", "a key twice", with_data(doubled)),
        ("float", "lamport 1.0", rebuilt(6, b"\xcb\x3f\xf0" + bytes(6))),
        (
            "float-field",
            "a field that is a float",
            with_data(b"\x83" + key + b"\xca\x3f\x80\x00\x00" + others),
        ),
        (
            "ext",
            "a field of an extension type",
            with_data(b"\x83" + key + b"\xd4\x05\x00" + others),
        ),
        (
            "timestamp",
            "a field that is a timestamp",
            with_data(b"\x83" + key + b"\xd6\xff\x00\x00\x00\x00" + others),
        ),
        ("key-not-string", "a field named by a number", with_data(b"\x84\x01\x01" + pack(fields)[1:])),
        ("field-missing", "a field too few", with_data(b"\x82" + others)),
        ("field-unknown", "a field too many", with_data(b"\x84\xa1a\x01" + pack(fields)[1:])),
        (
            "field-type",
            "a number where text belongs",
            with_data(b"\x83" + key + b"\x01" + others),
        ),
        ("version-0", "an envelope of version 0", rebuilt(0, b"\x00")),
        ("version-2", "an envelope of version 2", rebuilt(0, b"\x02")),
        ("schema-0", "fact version 0", rebuilt(3, b"\x00")),
        ("short-id", "an id of 15 bytes", rebuilt(1, b"\xc4\x0f" + bytes(15))),
        ("negative-time", "a time before 1970", rebuilt(5, b"\xff")),
        ("bad-utf8", "an actor that is not UTF-8", rebuilt(4, b"\xa2\xff\xff")),
        ("long-actor", "an actor of 129 characters", rebuilt(4, pack("a" * 129))),
        ("array-short", "an element is missing", b"\x9a" + good[1:]),
        ("map-envelope", "a map instead of an array", pack({"v": 1})),
        (
            "deep",
            "arrays in arrays",
            rebuilt(2, pack("Later"))[: -len(pack(fields))] + b"\x91" * 40 + b"\xc0",
        ),
        ("too-large", "more than 65,535 bytes", with_data(pack({"a": b"\x00" * 65_536}))),
    ]
    unknown = rebuilt(2, pack("FromTheFuture"))
    newer = rebuilt(3, b"\x07")
    kept = [
        ("good", "the one encoding", good, "NodeStarted"),
        ("unknown", "a fact of a newer version is kept", unknown, "UnknownEvent"),
        ("newer", "a newer version of a known fact is kept", newer, "UnknownEvent"),
    ]
    return [
        *(_vector(name, comment, "ok", raw, output) for name, comment, raw, output in kept),
        *(_vector(name, comment, "non_canonical", raw, None) for name, comment, raw in cases),
    ]


def _vector(name: str, comment: str, expect: str, raw: bytes, output: str | None) -> dict[str, Any]:
    return {"name": name, "comment": comment, "expect": expect, "input": raw.hex(), "output": output}


def extend(path: Path, made: list[dict[str, Any]], *, check: bool) -> bool:
    """Add what is missing by name; answers whether anything was."""
    kept = json.loads(path.read_text()) if path.exists() else []
    names = {vector["name"] for vector in kept}
    missing = [vector for vector in made if vector["name"] not in names]
    if missing and not check:
        lines = ",\n".join(" " + json.dumps(vector) for vector in [*kept, *missing])
        path.write_text(f"[\n{lines}\n]\n")
    for vector in missing:
        print(f"{path.name}: {'missing' if check else 'added'} {vector['name']}")
    return bool(missing)


def main() -> int:
    check = "--check" in sys.argv[1:]
    changed = [
        extend(VECTORS / "events.json", frozen_records(), check=check),
        extend(VECTORS / "encoding.json", encodings(), check=check),
    ]
    return int(check and any(changed))


if __name__ == "__main__":
    sys.exit(main())
