"""Tool calls in a stream: the same pieces however the text is cut, and text that is none stays text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.api.schemas import FunctionSpec, NamedFunction, NamedTool, Tool
from p2pnode.api.tools import Call, ToolPlan, ToolReader, plan_tools, with_instructions
from p2pnode.errors import RequestError

TOOLS = [Tool(FunctionSpec("weather")), Tool(FunctionSpec("time", description="What time it is"))]
PLAN = plan_tools(TOOLS, "auto", None)


def read(parts: list[str], plan: ToolPlan = PLAN) -> tuple[str, list[tuple[str, str]]]:
    reader = ToolReader(plan)
    pieces = [piece for part in parts for piece in reader.feed(part)] + reader.finish()
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    return text, [(piece.name, piece.arguments) for piece in pieces if isinstance(piece, Call)]


CASES = {
    '<tool_call>{"name": "weather", "arguments": {"a": 1}}</tool_call>': ("", [("weather", '{"a": 1}')]),
    'I look.\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>': ("I look.\n", [("time", "{}")]),
    '<tool_call>{"name": "time"}</tool_call><tool_call>{"name": "weather"}</tool_call>': (
        "",
        [("time", "{}"), ("weather", "{}")],
    ),
    '<tool_call>{"name": "time", "arguments": "{}"}': ("", [("time", "{}")]),
    '[TOOL_CALLS] [{"name": "time", "arguments": {}}, {"name": "weather", "arguments": {}}]': (
        "",
        [("time", "{}"), ("weather", "{}")],
    ),
    '<|python_tag|>{"name": "time", "parameters": {"z": "u"}}': ("", [("time", '{"z": "u"}')]),
    '{"name": "time", "parameters": {}}': ("", [("time", "{}")]),
    '{"type": "function", "function": {"name": "time", "arguments": {}}}': ("", [("time", "{}")]),
    '<function=weather>{"a": 2}</function>': ("", [("weather", '{"a": 2}')]),
    '{"answer": 42}': ('{"answer": 42}', []),
    '<tool_call>{"name": "rm"}</tool_call> ok': ('<tool_call>{"name": "rm"}</tool_call> ok', []),
    "<tool_call>not json</tool_call>": ("<tool_call>not json</tool_call>", []),
    "2 < 3 and <tool is no call": ("2 < 3 and <tool is no call", []),
    "plain words": ("plain words", []),
    "": ("", []),
}


@pytest.mark.parametrize("text", CASES)
def test_whole(text: str) -> None:
    assert read([text]) == CASES[text]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(CASES)), st.lists(st.integers(0, 90), max_size=8))
def test_cut_anywhere(text: str, cuts: list[int]) -> None:
    """Where the stream is cut changes nothing."""
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[first:end] for first, end in pairwise(edges)]
    assert read(parts) == CASES[text]


def test_text_is_not_held_back() -> None:
    """Words that cannot become a call are passed on at once."""
    reader = ToolReader(PLAN)
    assert reader.feed("Hello ") == ["Hello "]
    assert reader.feed("<too") == []
    assert reader.feed("thbrush") == ["<toothbrush"]


def test_without_tools_everything_is_text() -> None:
    text = '<tool_call>{"name": "time"}</tool_call>'
    assert read([text], ToolPlan()) == (text, [])


def test_one_call_when_not_parallel() -> None:
    text = '<tool_call>{"name": "time"}</tool_call><tool_call>{"name": "weather"}</tool_call>'
    plan = plan_tools(TOOLS, None, False)
    assert [name for name, _ in read([text], plan)[1]] == ["time"]


def test_choices() -> None:
    """none offers nothing, required and a name force by grammar, unknown names are refused."""
    assert plan_tools(TOOLS, "none", None).tools == ()
    assert plan_tools(TOOLS, "required", None).grammar is not None
    named = plan_tools(TOOLS, NamedTool(NamedFunction("time")), None)
    assert named.names == {"time"}
    with pytest.raises(RequestError, match="no tool"):
        plan_tools(TOOLS, NamedTool(NamedFunction("rm")), None)
    with pytest.raises(RequestError, match="no tools"):
        plan_tools(None, "required", None)


def test_instructions() -> None:
    """A template without a place for tools gets them in words, results of calls too."""
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "time", "arguments": {}}}]},
        {"role": "tool", "content": "noon"},
    ]
    told = with_instructions({}, messages, PLAN)
    assert told[0]["content"].startswith("Be kind.\n\nYou may call functions.")
    assert "<tool_call>" in told[1]["content"]
    assert told[2] == {"role": "user", "content": "<tool_response>noon</tool_response>"}
    assert with_instructions({}, messages[1:], PLAN)[0]["role"] == "system"
    assert with_instructions({"chat_template": "{{ tools }}"}, messages, PLAN) is messages
