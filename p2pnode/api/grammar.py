"""Grammars of a request: GBNF as given, or made from what response_format asks for."""

from __future__ import annotations

from p2pnode.api.schemas import SamplingFields
from p2pnode.errors import RequestError

JSON_GRAMMAR = r"""root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt/] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,3})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


def grammar_of(request: SamplingFields) -> str | None:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return request.grammar
    if request.grammar is not None:
        raise RequestError("give either grammar or response_format", param="grammar")
    if wanted.type == "json_object" and wanted.schema is None:
        return JSON_GRAMMAR
    raise RequestError("json_schema is not supported yet", param="response_format")
