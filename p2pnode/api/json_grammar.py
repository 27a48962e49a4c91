"""JSON Schema → GBNF, so that a model can only write what the schema allows.

Keywords that a grammar cannot hold (pattern, number ranges, uniqueItems ...) are refused by name: an answer
that breaks a promised schema is worse than an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from p2pnode.errors import RequestError
from p2pnode.limits import API_GRAMMAR_BYTES_MAX

_RULES_MAX = 2000
_DEPTH_MAX = 64
_REPEAT_MAX = 1000
_ANNOTATIONS = frozenset(
    {
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "strict",
    }
    | {"$schema", "$id", "$comment", "$defs", "definitions", "$anchor", "discriminator", "nullable"}
)
_BY_TYPE = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "format"}),
    "number": frozenset[str](),
    "integer": frozenset[str](),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
_CHAR = r'([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt/] | "u" [0-9a-fA-F]{4}))'
_DATE = '[0-9]{4} "-" [0-9]{2} "-" [0-9]{2}'
_TIME = '[0-9]{2} ":" [0-9]{2} ":" [0-9]{2} ("." [0-9]{1,6})? ("Z" | [+-] [0-9]{2} ":" [0-9]{2})'
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "uuid": '[0-9a-f]{8} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{12}',
}
_LOOSE_FORMATS = frozenset({"email", "uri", "url", "hostname", "ipv4", "ipv6", "duration", "uri-reference"})
_COMMON = {
    "ws": r'| " " | "\n" [ \t]{0,20}',
    "char": _CHAR,
    "string": r'"\"" char* "\""',
    "integer": '"-"? ([0-9] | [1-9] [0-9]{0,15})',
    "number": 'integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,3})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "member": 'string ws ":" ws value',
    "object": '"{" ws (member ws ("," ws member ws)*)? "}"',
    "array": '"[" ws (value ws ("," ws value ws)*)? "]"',
    "value": "object | array | string | number | boolean | null",
}


def literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def schema_to_gbnf(schema: Mapping[str, Any] | bool) -> str:
    """A grammar of the JSON texts the schema allows; RequestError names what it cannot hold."""
    writer = _Writer(schema)
    root = writer.rule_of(schema, 0)
    rules = [f"root ::= ws {root} ws" if root != "root" else ""]
    rules += [f"{name} ::= {body}" for name, body in writer.rules.items()]
    rules += [f"{name} ::= {body}" for name, body in _COMMON.items()]
    text = "\n".join(rules) + "\n"
    if len(text) > API_GRAMMAR_BYTES_MAX:
        raise RequestError("the schema makes too large a grammar", param="response_format")
    return text


class _Writer:
    def __init__(self, root: Mapping[str, Any] | bool) -> None:
        self._root = root
        self._refs: dict[str, str] = {}
        self.rules: dict[str, str] = {}

    def _add(self, body: str, name: str | None = None) -> str:
        name = name or f"r{len(self.rules)}"
        self.rules[name] = body
        if len(self.rules) > _RULES_MAX:
            raise RequestError("the schema is too large", param="response_format")
        return name

    def rule_of(self, schema: Any, depth: int) -> str:
        """Name of the rule for a schema."""
        if depth > _DEPTH_MAX:
            raise RequestError("the schema is nested too deep", param="response_format")
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            raise _bad("a schema is an object")
        if "$ref" in schema:
            return self._reference(schema["$ref"], depth)
        if "allOf" in schema:
            return self.rule_of(self._merged(schema), depth + 1)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                self._only(schema, {keyword, "type"})
                options = _list(schema[keyword], keyword)
                return self._add(" | ".join(self.rule_of(option, depth + 1) for option in options))
        if "const" in schema:
            return self._add(_json_literal(schema["const"]))
        if "enum" in schema:
            return self._add(" | ".join(_json_literal(value) for value in _list(schema["enum"], "enum")))
        return self._typed(schema, depth)

    def _typed(self, schema: Mapping[str, Any], depth: int) -> str:
        kind = schema.get("type")
        if kind is None:
            kind = "object" if "properties" in schema else "array" if "items" in schema else None
        if kind is None:
            self._only(schema, set())
            return "value"
        if isinstance(kind, list):
            kept = {k: v for k, v in schema.items() if k != "type"}
            allowed = {name for name in kind if isinstance(name, str)}
            options = [
                {
                    "type": name,
                    **{k: v for k, v in kept.items() if k in _BY_TYPE.get(name, ()) or k in _ANNOTATIONS},
                }
                for name in kind
            ]
            known = frozenset().union(*(_BY_TYPE.get(name, frozenset()) for name in allowed))
            self._only(schema, known | {"type"})
            return self._add(" | ".join(self.rule_of(option, depth + 1) for option in options))
        if not isinstance(kind, str) or kind not in _BY_TYPE:
            raise _bad(f"{kind!r} is not a type of JSON")
        self._only(schema, _BY_TYPE[kind] | {"type"})
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        return self._string(schema) if kind == "string" else kind

    def _only(self, schema: Mapping[str, Any], known: frozenset[str] | set[str]) -> None:
        for keyword in schema:
            if keyword not in known and keyword not in _ANNOTATIONS:
                raise RequestError(
                    f"the schema's keyword {keyword!r} cannot be guaranteed here",
                    param="response_format",
                    hint="remove it and check the value after the answer",
                )

    def _reference(self, reference: Any, depth: int) -> str:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise _bad("only references inside the schema are followed")
        if reference in self._refs:
            return self._refs[reference]
        target: Any = self._root
        for part in reference.lstrip("#/").split("/") if reference != "#" else []:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or part not in target:
                raise _bad(f"the reference {reference!r} leads nowhere")
            target = target[part]
        name = f"ref{len(self._refs)}"
        self._refs[reference] = name
        inner = self.rule_of(target, depth + 1)
        if inner == name:
            raise _bad(f"the reference {reference!r} means only itself")
        self._add(inner, name)
        return name

    def _merged(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        merged = {k: v for k, v in schema.items() if k != "allOf"}
        for part in _list(schema["allOf"], "allOf"):
            if (
                isinstance(part, Mapping)
                and set(part) == {"$ref"}
                and len(schema["allOf"]) == 1
                and not merged.keys() - _ANNOTATIONS
            ):
                return dict(part)
            if not isinstance(part, Mapping) or "$ref" in part:
                raise _bad("allOf with references is not supported")
            for key, value in part.items():
                if key == "properties":
                    merged["properties"] = {**merged.get("properties", {}), **value}
                elif key == "required":
                    merged["required"] = [*merged.get("required", []), *value]
                elif merged.setdefault(key, value) != value:
                    raise _bad(f"allOf gives {key!r} twice")
        return merged

    def _object(self, schema: Mapping[str, Any], depth: int) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        extra = schema.get("additionalProperties", not properties)
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise _bad("properties is an object and required a list")
        missing = [name for name in required if name not in properties]
        if missing:
            raise _bad(f"required names {missing[0]!r}, which is no property")
        members = {
            name: self._add(f'{_json_literal(name)} ws ":" ws {self.rule_of(value, depth + 1)}')
            for name, value in properties.items()
        }
        if extra is not False:
            kind = "value" if extra is True else self.rule_of(extra, depth + 1)
            more = self._add(f'("," ws string ws ":" ws {kind} ws)*')
            first_more = f'string ws ":" ws {kind} ws {more}'
        else:
            more, first_more = "", ""
        optional = [name for name in members if name not in required]
        tail = more
        tails = []
        for name in reversed(optional):
            tails.append((name, tail))
            tail = self._add(f'("," ws {members[name]} ws)? {tail}'.rstrip())
        must = [members[name] for name in members if name in required]
        if must:
            body = ' "," ws '.join(f"{rule} ws" for rule in must) + f" {tail}"
            return self._add(f'"{{" ws {body} "}}"')
        starts = [f"{members[name]} ws {rest}".rstrip() for name, rest in reversed(tails)]
        starts += [first_more] if first_more else []
        inner = f"({' | '.join(starts)})? " if starts else ""
        return self._add(f'"{{" ws {inner}"}}"')

    def _array(self, schema: Mapping[str, Any], depth: int) -> str:
        fixed = _list(schema["prefixItems"], "prefixItems") if "prefixItems" in schema else []
        if fixed:
            items = [f"{self.rule_of(item, depth + 1)} ws" for item in fixed]
            body = ' "," ws '.join(items)
            return self._add(f'"[" ws {body} "]"')
        item = self.rule_of(schema.get("items", True), depth + 1)
        least, most = _count(schema, "minItems", 0), _count(schema, "maxItems", None)
        if most == 0:
            return self._add('"[" ws "]"')
        more = f'("," ws {item} ws){_times(max(0, (least or 0) - 1), None if most is None else most - 1)}'
        body = f"{item} ws {more}"
        return self._add(f'"[" ws {body} "]"' if least else f'"[" ws ({body})? "]"')

    def _string(self, schema: Mapping[str, Any]) -> str:
        form = schema.get("format")
        if form in _FORMATS:
            return self._add(f'"\\"" {_FORMATS[form]} "\\""')
        if form is not None and form not in _LOOSE_FORMATS:
            raise _bad(f"the string format {form!r} is not known")
        least, most = _count(schema, "minLength", 0), _count(schema, "maxLength", None)
        if not least and most is None:
            return "string"
        return self._add(f'"\\"" char{_times(least or 0, most)} "\\""')


def _times(least: int, most: int | None) -> str:
    return f"{{{least},}}" if most is None else f"{{{least},{most}}}"


def _count(schema: Mapping[str, Any], name: str, otherwise: int | None) -> int | None:
    value = schema.get(name, otherwise)
    if value is not None and (
        not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _REPEAT_MAX
    ):
        raise _bad(f"{name} must be a whole number up to {_REPEAT_MAX}")
    return value


def _list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise _bad(f"{name} must be a list that is not empty")
    return value


def _json_literal(value: Any) -> str:
    return literal(json.dumps(value, ensure_ascii=False))


def _bad(why: str) -> RequestError:
    return RequestError(f"the schema cannot be used: {why}", param="response_format")
