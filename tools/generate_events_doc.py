"""Write specs/07-events.md from the docstrings of the facts; `--check` fails when the file differs."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

sys.path.insert(0, str(Path(__file__).parents[1]))

from p2pnode.events import facts_credit, facts_mesh, facts_node, facts_work, fields
from p2pnode.events.types import EVENT_TYPES, UnknownEvent
from p2pnode.events.upcasters import schema_version

TARGET = Path(__file__).parents[1] / "specs" / "07-events.md"
MODULES: tuple[ModuleType, ...] = (facts_node, facts_mesh, facts_work, facts_credit)

HEAD = """\
# 07 Events

*Status*: Draft · *Version*: 1 · *Implements*: `events/types.py`, `events/codec.py` ·
*Vectors*: `vectors/events.json`, `vectors/encoding.json`

This page is generated from the docstrings of the facts by `tools/generate_events_doc.py`; do not edit it.

A node records *decisions and facts that someone may later ask about*. Tokens, activations, heartbeats and progress are
never events. Prompts, answers, network addresses and typed commands appear only as salted commitments
(HMAC-SHA-256 under a random 32-byte salt that can be deleted) and as counts. There are no fractions: amounts are whole
micro-units, times whole milliseconds. How an event becomes bytes is in [08-log](08-log.md#encoding).

## Changing the catalogue

Bytes never change. A fact is never renamed or removed, a field never changes its meaning. Other fields are another
version of the fact: `upcasters.py` says what a record of the version before would say in this one, and
`vectors/events.json` keeps a record of every version that was ever written. A fact that this version does not know, or
knows only in an older version, is kept, proved and counted as `UnknownEvent`; its bytes stay untouched.

## Field types

"""


def field_types() -> str:
    """The bounded types by name."""
    lines = ["| type | is | bound |", "|---|---|---|"]
    for name, hint in vars(fields).items():
        if hasattr(hint, "__metadata__"):
            lines.append(f"| {name} | {_base(hint)} | {_bound(hint)} |")
    return "\n".join(lines)


def catalogue() -> str:
    """One section a module, one table row a field."""
    parts = []
    for module in MODULES:
        parts.append(f"## {(module.__doc__ or '').strip().rstrip('.')}\n")
        for cls in _facts_of(module):
            version = schema_version(cls.__name__)
            parts.append(f"### {cls.__name__}\n")
            parts.append(f"{inspect.cleandoc(cls.__doc__ or '')} *(version {version})*\n")
            parts.append(_fields_of(cls))
    parts.append(f"## UnknownEvent\n\n{inspect.cleandoc(UnknownEvent.__doc__ or '')}\n")
    return "\n".join(parts)


def document() -> str:
    return f"{HEAD}{field_types()}\n\n{catalogue()}"


def main() -> int:
    text = document()
    if "--check" in sys.argv[1:]:
        if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
            print(f"{TARGET.name} is not what the code says; run: python tools/generate_events_doc.py")
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


def _facts_of(module: ModuleType) -> list[type[Any]]:
    return [cls for cls in EVENT_TYPES.values() if cls.__module__ == module.__name__]


def _fields_of(cls: type[Any]) -> str:
    hints = get_type_hints(cls, include_extras=True)
    notes = _field_notes(cls)
    lines = ["| field | type | |", "|---|---|---|"]
    for field in dataclasses.fields(cls):
        default = "" if field.default is dataclasses.MISSING else f"default `{field.default!r}`"
        note = " ".join(part for part in (notes.get(field.name, ""), default) if part)
        lines.append(f"| `{field.name}` | {_type(hints[field.name])} | {note} |")
    return "\n".join(lines) + "\n"


def _field_notes(cls: type[Any]) -> dict[str, str]:
    """The string under a field, if there is one."""
    notes, last = {}, ""
    for line in inspect.getsource(cls).splitlines()[3:]:
        text = line.strip()
        if text.startswith('"""'):
            notes[last] = text.strip('"')
        elif ":" in text:
            last = text.split(":")[0]
    return notes


def _type(hint: Any) -> str:
    if type(None) in get_args(hint):
        return _type(next(arg for arg in get_args(hint) if arg is not type(None))) + " or nil"
    known = {id(value): name for name, value in vars(fields).items() if hasattr(value, "__metadata__")}
    for name, value in vars(fields).items():
        if hasattr(value, "__metadata__") and value == hint:
            return name
    return known.get(id(hint), _base(hint))


def _base(hint: Any) -> str:
    base = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    if get_origin(base) is not tuple:
        return {int: "integer", str: "text", bytes: "bytes", bool: "boolean"}[base]
    inner = get_args(base)
    if inner[-1] is Ellipsis:
        return f"array of {_type(inner[0])}"
    return "(" + ", ".join(_type(item) for item in inner) + ")"


def _bound(hint: Any) -> str:
    meta = hint.__metadata__[0]
    if meta.ge is not None:
        return "0 to 2^63 - 1"
    unit = {"text": "characters", "bytes": "bytes"}.get(_base(hint), "items")
    exact = meta.min_length == meta.max_length
    return f"{'exactly' if exact else 'at most'} {meta.max_length:,} {unit}"


if __name__ == "__main__":
    sys.exit(main())
