"""POST /v1/rerank: the shape that Jina's, Cohere's and llama-server's clients expect."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnode.api.app import create_app
from tests.kit.fake_node import FakeNode
from tests.unit.api.conftest import LoopbackClient


async def post(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    app = create_app(FakeNode())
    app.test_client_class = LoopbackClient
    response = await app.test_client().post("/v1/rerank", json=body)
    return response.status_code, await response.get_json()


async def test_the_best_comes_first() -> None:
    status, answer = await post({"query": "q", "documents": ["aa", {"text": "dddd"}, "b", "cc"]})
    assert status == 200
    assert [(r["index"], r["relevance_score"]) for r in answer["results"]] == [(1, 4), (0, 2), (3, 2), (2, 1)]
    assert "document" not in answer["results"][0]
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert answer["p2pnode"] == {"method": "rank"}
    status, answer = await post(
        {"query": "q", "documents": ["a", "bb"], "top_n": 1, "return_documents": True}
    )
    assert answer["results"] == [{"index": 1, "relevance_score": 2, "document": {"text": "bb"}}]


@pytest.mark.parametrize(
    "body",
    [
        {"query": "", "documents": ["a"]},
        {"query": "q", "documents": []},
        {"query": "q", "documents": ["a", ""]},
        {"query": "q", "documents": [7]},
        {"query": "q", "documents": ["a"], "top_n": 0},
        {"query": "q", "documents": ["a"], "rank_fields": ["x"]},
        {"documents": ["a"]},
    ],
)
async def test_what_is_no_question_is_refused(body: dict[str, Any]) -> None:
    status, answer = await post(body)
    assert (status, answer["error"]["code"]) == (400, "invalid_request")
