"""Rerank over a real node: by a reranker's own scores, and by likeness where a model has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.errors import ContextFull
from p2pnode.node.faces import Faces
from tests.kit.engine_units import SMALL
from tests.kit.node_here import node_here
from tests.kit.toy_models import Toy, write_model

RANKER = Toy(
    "qwen3",
    text=True,
    vocabulary=300,
    features=frozenset({"ranks"}),
    parameters={"pooling_type": 4, "classifier.output_labels": ["yes", "no"]},
)
QUERY, DOCUMENTS = "how tall", ["a tree", "how tall is it?", "x"]


async def test_a_reranker_gives_its_own_scores(tmp_path: Path) -> None:
    """Query and document together, between the marks that such models are taught with."""
    path = write_model(tmp_path / "ranker.gguf", RANKER)
    engine = await EngineClient.start()
    spec = UnitSpec(model_path=str(path), output="embedding", pooling="rank", **SMALL)
    info = await engine.load(spec)

    async def ids(text: str) -> list[int]:
        return await engine.tokenize(info.unit_id, text, add_special=False, parse_special=False)

    asked, expected = await ids(QUERY), []
    for document in DOCUMENTS:
        pair = [1, *asked, 2, *(await ids(document)), 2]
        expected.append((await engine.embed(info.unit_id, pair))[0])
    await engine.close()
    assert len(set(expected)) == 3
    assert all(0 < score < 1 for score in expected), "a probability"
    async with node_here(tmp_path / "n", models=(path,)) as node:
        ranking = await Faces(node).rerank("ranker", QUERY, DOCUMENTS)
        assert ranking.method == "rank"
        assert ranking.scores == pytest.approx(expected, abs=2e-3), "batches round"
        with pytest.raises(ContextFull):
            await Faces(node).rerank("ranker", QUERY, ["long " * 600])


async def test_other_models_are_asked_for_likeness(tmp_path: Path) -> None:
    """The cosine of what the model makes of each text by itself; the same text is as like as can be."""
    path = write_model(tmp_path / "plain.gguf", Toy("llama", text=True, vocabulary=300))
    async with node_here(tmp_path / "n", models=(path,)) as node:
        ranking = await Faces(node).rerank("plain", QUERY, [*DOCUMENTS, QUERY])
        assert ranking.method == "embedding"
        assert ranking.scores[3] == pytest.approx(1.0, abs=1e-3)
        assert max(ranking.scores[:3]) < ranking.scores[3]
        tokens = [
            await Faces(node).tokenize("plain", t, add_special=True, parse_special=False)
            for t in (QUERY, "x")
        ]
        one, other = await Faces(node).embed("plain", tokens)
        (again,) = (await Faces(node).rerank("plain", QUERY, ["x"])).scores
        assert again == pytest.approx(sum(a * b for a, b in zip(one, other, strict=True)), abs=1e-4)
