"""The tool loop: it looks things up, hands foreign calls back, and always ends."""

from __future__ import annotations

import json

import pytest

from p2pnode.api.agent import calculate
from p2pnode.errors import RequestError, StageLost
from tests.kit.fake_node import FakeNode

ASK = {"messages": [{"role": "user", "content": "what is 6 * 7?"}]}


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


async def run(client, body: dict) -> list[dict]:
    response = await client.post("/agent/stream", json=body)
    raw = (await response.get_data()).decode()
    return [json.loads(part[6:]) for part in raw.split("\n\n") if part.startswith("data: {")]


async def test_one_look_up(client, node: FakeNode) -> None:
    """A call is answered by the node, and the model goes on with the result."""
    node.replies = {1: f"Let me see. {call('calculate', expression='6 * 7')}", 2: "It is 42."}
    events = await run(client, ASK)
    assert [event["type"] for event in events if event["type"] != "text"] == [
        "tool_call",
        "tool_result",
        "finished",
    ]
    assert next(event for event in events if event["type"] == "tool_result")["result"] == "42"
    assert "".join(event["text"] for event in events if event["type"] == "text") == "Let me see. It is 42."
    assert "42" in str(node.requests[1].prompt)
    assert events[-1]["finish_reason"] == "stop"


async def test_every_tool_answers(client, node: FakeNode) -> None:
    """Each built-in tool gives a text; a wrong call is told to the model, not to the caller."""
    names = ["mesh_status", "mesh_peers", "mesh_models", "mesh_plans", "now"]
    node.replies = {
        1: "".join(call(name) for name in names) + call("calculate", expression="__import__('os')"),
        2: "Done.",
    }
    results = [event["result"] for event in await run(client, ASK) if event["type"] == "tool_result"]
    assert len(results) == 6
    assert "kitchen" in results[1]
    assert results[5].startswith("error: ")


async def test_foreign_call_is_handed_back(client, node: FakeNode) -> None:
    """A tool of the caller's own ends the loop with the call."""
    node.reply = call("lights", on=True)
    tool = {"type": "function", "function": {"name": "lights", "parameters": {"type": "object"}}}
    events = await run(client, ASK | {"tools": [tool]})
    assert events[-1]["finish_reason"] == "tool_calls"
    assert json.loads(events[-1]["tool_calls"][0]["function"]["arguments"]) == {"on": True}


async def test_it_ends(client, node: FakeNode) -> None:
    """A model that calls for ever is stopped at the bound."""
    node.reply = call("now")
    events = await run(client, ASK | {"max_steps": 3})
    assert events[-1]["finish_reason"] == "max_steps"
    assert len(node.requests) == 3


async def test_failures(client, node: FakeNode) -> None:
    """Wrong requests are 4xx, a lost stage is an error event, nothing is left running."""
    assert (await client.post("/agent/stream", json=ASK | {"builtin": ["rm"]})).status_code == 400
    assert (await client.post("/agent/stream", json=ASK | {"max_steps": 99})).status_code == 400
    assert (await client.post("/agent/stream", json=ASK | {"model": "gpt-9"})).status_code == 404
    node.fail_after = (1, StageLost("kitchen is gone"))
    assert (await run(client, ASK))[-1]["error"]["code"] == "stage_lost"
    assert node.running == 0


def test_calculate() -> None:
    assert calculate("(2 + 3) * -4 / 8 + 7 // 2 % 2") == -1.5
    for wrong in ("2 ** 99999", "open('x')", "1 / 0", "(" * 300, "1" * 600, "a", "'x' * 9", ""):
        with pytest.raises(RequestError):
            calculate(wrong)
