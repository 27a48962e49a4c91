"""JSON Schema as GBNF: what it allows is matched, what it cannot promise is refused."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.api.grammar import tool_grammar
from p2pnode.api.json_grammar import literal, schema_to_gbnf
from p2pnode.api.schemas import FunctionSpec, Tool
from p2pnode.errors import RequestError


def as_regex(grammar: str, depth: int = 6) -> str:
    """The grammar as a regular expression, recursion cut at a depth: enough to try texts on it."""
    rules = dict(line.split(" ::= ", 1) for line in grammar.strip().splitlines())

    def expand(body: str, left: int) -> str:
        out = []
        for token in re.findall(
            r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|[a-z][a-z0-9]*|[(){}|?*+]|\{[0-9,]+\}|\d+,?\d*|\s', body
        ):
            if token.startswith('"'):
                out.append(re.escape(json.loads(token.replace("\\r", "\\r"))))
            elif token.startswith("["):
                out.append(token)
            elif token in rules:
                out.append("(?!)" if left == 0 else f"(?:{expand(rules[token], left - 1)})")
            elif not token.isspace():
                out.append(token)
        return "".join(out)

    return expand(rules["root"], depth)


def matches(schema: object, value: object) -> bool:
    text = (
        value
        if isinstance(value, str) and value.startswith("RAW:")
        else json.dumps(value, ensure_ascii=False)
    )
    return re.fullmatch(as_regex(schema_to_gbnf(schema)), text.removeprefix("RAW:")) is not None  # type: ignore[arg-type]


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "mail": {"type": ["string", "null"]},
    },
    "required": ["name", "age"],
    "title": "Person",
}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            PERSON,
            [{"name": "A", "age": 1}, {"name": "", "age": -3, "mail": None}],
            [{}, {"name": "A"}, {"name": 1, "age": 1}, {"age": 1, "name": "A", "x": 1}],
        ),
        (
            {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "boolean"}}},
            [{}, {"a": 1.5}, {"b": True}, {"a": 1, "b": False}],
            [{"c": 1}, {"a": True}],
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "null"}},
                "additionalProperties": {"type": "integer"},
            },
            [{}, {"a": None}, {"a": None, "z": 4}, {"z": 4}],
            [{"z": "x"}],
        ),
        ({"type": "object", "properties": {}, "additionalProperties": False}, [{}], [{"a": 1}]),
        (
            {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
            [[1], [1, 2]],
            [[], [1, 2, 3], ["x"]],
        ),
        ({"type": "array", "maxItems": 0}, [[]], [[1]]),
        (
            {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]},
            [[1, "a"]],
            [[1], ["a", 1]],
        ),
        ({"enum": ["red", 'a"b', 5, None]}, ["red", 'a"b', 5, None], ["blue", 6]),
        ({"const": {"k": 1}}, [{"k": 1}], [{"k": 2}]),
        ({"anyOf": [{"type": "integer"}, {"type": "boolean"}]}, [1, True], ["x", 1.5]),
        ({"oneOf": [{"const": "x"}, {"const": "y"}]}, ["x", "y"], ["z"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "abc"], ["a", "abcd"]),
        ({"type": "string", "format": "date"}, ["2026-11-20"], ["yesterday"]),
        ({"type": "string", "format": "uuid"}, ["0" * 8 + "-0000-0000-0000-" + "0" * 12], ["x"]),
        (
            {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}}, {"required": ["a"]}]},
            [{"a": 1}],
            [{}],
        ),
        (
            {
                "$ref": "#/$defs/n",
                "$defs": {
                    "n": {"type": "object", "properties": {"v": {"type": "integer"}}, "required": ["v"]}
                },
            },
            [{"v": 1}],
            [{}],
        ),
        (True, [1, "x", None], ["RAW:nope"]),
    ],
)
def test_what_is_allowed(schema: object, good: list, bad: list) -> None:
    """A grammar takes what its schema takes and nothing else."""
    for value in good:
        assert matches(schema, value), value
    for value in bad:
        assert not matches(schema, value), value


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^a$"},
        {"type": "integer", "minimum": 3},
        {"type": "array", "uniqueItems": True},
        {"type": "object", "patternProperties": {}},
        {"not": {}},
        {"type": "colour"},
        {"type": "string", "format": "colour"},
        {"type": "string", "minLength": -1},
        {"type": "string", "maxLength": 10**9},
        {"$ref": "http://example.org/schema"},
        {"$ref": "#/$defs/none"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"enum": []},
        {"type": "object", "properties": [], "required": {}},
        {"type": "object", "properties": {"a": {}}, "required": ["b"]},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}], "$defs": {"a": {}}},
        {"type": "object", "properties": {f"p{n}": {"type": "string", "minLength": 1} for n in range(1500)}},
        5,
    ],
)
def test_what_is_refused(schema: object) -> None:
    """A keyword that cannot be kept is an error that names it."""
    with pytest.raises(RequestError, match="schema"):
        schema_to_gbnf(schema)  # type: ignore[arg-type]


def test_too_deep() -> None:
    schema: dict = {"type": "integer"}
    for _ in range(200):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="too deep"):
        schema_to_gbnf(schema)


def test_recursion() -> None:
    """A tree refers to itself and still makes a finite grammar."""
    node = {
        "type": "object",
        "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
        "required": ["kids"],
    }
    grammar = schema_to_gbnf({"$ref": "#/$defs/node", "$defs": {"node": node}})
    assert len(grammar.splitlines()) < 40
    text = json.dumps({"kids": [{"kids": []}]})
    assert re.fullmatch(as_regex(grammar, depth=14), text)


def test_tools() -> None:
    """A call names one of the tools and has its arguments; a loose tool falls back to any object."""
    tools = [
        Tool(FunctionSpec("weather", parameters=PERSON)),
        Tool(FunctionSpec("loose", parameters={"type": "object", "properties": {"x": {"pattern": "x"}}})),
    ]
    regex = as_regex(tool_grammar(tools), depth=10)
    assert re.fullmatch(regex, json.dumps({"name": "weather", "arguments": {"name": "A", "age": 1}}))
    assert re.fullmatch(regex, json.dumps({"name": "loose", "arguments": {"x": 1}}))
    assert not re.fullmatch(regex, json.dumps({"name": "other", "arguments": {}}))
    with pytest.raises(RequestError, match="pattern"):
        tool_grammar(
            [Tool(FunctionSpec("strict", parameters={"type": "string", "pattern": "x"}, strict=True))]
        )


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_literals_hold_any_text(text: str) -> None:
    """An escaped literal is one token of GBNF, whatever it holds."""
    made = literal(text)
    assert re.fullmatch(r'"(?:[^"\\\n\r\t]|\\.)*"', made)
