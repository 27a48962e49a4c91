"""Embeddings of a model that is spread over devices: stages make the rows, the head pools; the whole model's vector."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from p2pnode import limits
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.endpoint import NodeError
from tests.kit.mesh import MeshOfProcesses, NodeProcess, children_of, kill_now, mesh_of
from tests.kit.toy_models import Toy, write_model

SIZES: dict[str, Any] = {"text": True, "vocabulary": 300}
MODELS = {
    "llama-mean": Toy("llama", seed=1, **SIZES),
    "qwen3-last": Toy("qwen3", seed=2, parameters={"pooling_type": 3}, **SIZES),
    "llama-cls": Toy("llama", seed=3, parameters={"pooling_type": 2}, **SIZES),
    "llama-both-ways": Toy("llama", seed=4, parameters={"attention.causal": False}, **SIZES),
}
LONGEST = limits.EMBEDDING_TOKENS_MAX
TEXTS = [
    [1, 70, 80, 90, 100],
    [1, 70],
    [1, *(60 + n * 7 % 200 for n in range(299))],
    [1, *(60 + n * 11 % 200 for n in range(LONGEST - 1))],
    [1, 200, 201],
    [1, 70, 80, 90, 100],
]
CUTS = {
    "head-first": [["alpha", 0, 2], ["beta", 2, 5]],
    "head-last": [["beta", 0, 3], ["alpha", 3, 5]],
    "three": [["alpha", 0, 1], ["gamma", 1, 4], ["beta", 4, 5]],
    "none-here": [["gamma", 0, 2], ["beta", 2, 5]],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / f"{name}.gguf", toy) for name, toy in MODELS.items()}


@pytest.fixture(scope="module")
def wholes(files: dict[str, Path]) -> dict[str, NDArray[np.float64]]:
    """What each whole model makes of the texts, in one batch each."""

    async def embedded() -> dict[str, NDArray[np.float64]]:
        engine, found = await EngineClient.start(), {}
        for name, path in files.items():
            spec = UnitSpec(
                model_path=str(path), output="embedding", context_tokens=LONGEST, batch_rows=LONGEST,
                sessions_max=1, threads=1, pooling="mean" if "pooling_type" not in MODELS[name].parameters else "model",
            )  # fmt: skip
            unit = (await engine.load(spec)).unit_id
            found[name] = np.array([await engine.embed(unit, text) for text in TEXTS])
            await engine.unload(unit)
        await engine.close()
        return found

    return asyncio.run(embedded())


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]) -> Iterator[MeshOfProcesses]:
    arguments = [word for path in files.values() for word in ("--model", str(path))]
    root = tmp_path_factory.mktemp("embedding")
    with mesh_of(root, "alpha", "beta", "gamma", first_arguments=tuple(arguments)) as made:
        yield made


def spread(node: NodeProcess, model: str, cut: str) -> dict[str, Any]:
    plan: dict[str, Any] = node.api.post("/plan", {"model": model, "blocks": CUTS[cut], "apply": True})
    return plan


def release(node: NodeProcess, plan: dict[str, Any]) -> None:
    node.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})


def embed(node: NodeProcess, model: str, inputs: Sequence[Any]) -> NDArray[np.float64]:
    answer = node.api.post("/v1/embeddings", {"model": model, "input": list(inputs)})
    return np.array([entry["embedding"] for entry in answer["data"]])


def no_engines_but(node: NodeProcess, engines: Sequence[int]) -> None:
    """No other stays: one that times layers meanwhile goes by itself."""
    node.until("no other engine", "/health", lambda _: set(children_of(node.process.pid)) <= set(engines))


BATCHED = {"llama-mean": 0.999999, "llama-cls": 0.999999, "qwen3-last": 0.9999}
"""How alike they are when texts shared batches: kernels round by the rows of a batch; nothing evens out one row."""


ALONE = 0.99999
"""A text of more than one chunk is rounded otherwise than one that the whole model takes at once."""


def like(ours: NDArray[np.float64], theirs: NDArray[np.float64], least: float = 0.999999) -> bool:
    """Unit vectors, row by row."""
    lengths = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(axis=1) / lengths[0] / lengths[1]
    print(f"least cosine {cosines.min():.9f}")
    return bool(np.allclose(lengths, 1.0, atol=1e-5) and (cosines >= least).all())


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("model", ["llama-mean", "qwen3-last", "llama-cls"])
def test_the_vectors_of_the_whole_model(
    mesh: MeshOfProcesses, wholes: dict[str, NDArray[np.float64]], model: str, cut: str
) -> None:
    """Several texts at once, up to the longest; no device loads the whole model for it."""
    alpha = mesh.nodes[0]
    plan = spread(alpha, model, cut)
    engines = children_of(alpha.process.pid)
    alone = np.concatenate([embed(alpha, model, [text]) for text in TEXTS])
    assert like(alone, wholes[model], ALONE)
    for place in (0, 1, 4):  # in one chunk: in the batches of the whole model
        assert np.array_equal(alone[place], wholes[model][place])
    assert like(embed(alpha, model, TEXTS), wholes[model], BATCHED[model])
    no_engines_but(alpha, engines)
    with pytest.raises(NodeError, match=f"at most {LONGEST}"):
        embed(alpha, model, [[1] * (LONGEST + 1)])
    release(alpha, plan)


def test_texts_of_several_callers_beside_an_answer(
    mesh: MeshOfProcesses, wholes: dict[str, NDArray[np.float64]]
) -> None:
    """What is generated on the same stages meanwhile stays what it is."""
    alpha, model = mesh.nodes[0], "llama-mean"
    plan = spread(alpha, model, "three")
    alone = alpha.infer(model, "a tree", raw=True)["text"]
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(embed, alpha, model, TEXTS) for _ in range(4)]
        beside = pool.submit(alpha.infer, model, "a tree", raw=True)
        assert all(like(one.result(), wholes[model]) for one in asked)
        assert beside.result()["text"] == alone
    release(alpha, plan)


def test_tensor_groups_pool_too(mesh: MeshOfProcesses, wholes: dict[str, NDArray[np.float64]]) -> None:
    """Partial sums of two devices round differently from whole ones."""
    alpha, model = mesh.nodes[0], "llama-mean"
    wish = {"model": model, "mode": "tensor", "devices": ["alpha", "beta"], "apply": True}
    plan = alpha.api.post("/plan", wish)
    assert plan["mode"] == "tensor"
    engines = children_of(alpha.process.pid)
    assert like(embed(alpha, model, TEXTS), wholes[model], 0.9999)
    no_engines_but(alpha, engines)
    release(alpha, plan)


def test_a_pipeline_of_groups_pools_too(
    mesh: MeshOfProcesses, wholes: dict[str, NDArray[np.float64]]
) -> None:
    """Hybrid: partial sums in one stage, whole layers in the other; no device loads the whole model for it."""
    alpha, model = mesh.nodes[0], "llama-mean"
    alpha.until(
        "groups",
        "/peers",
        lambda v: all(p["self"] or p["capability"].get("decode_bytes_per_s") for p in v["peers"]),
    )
    wish = {"model": model, "mode": "hybrid", "devices": ["alpha", "beta", "gamma"], "stages": 2}
    plan = alpha.api.post("/plan", {**wish, "apply": True})
    assert plan["mode"] == "hybrid"
    engines = children_of(alpha.process.pid)
    assert like(embed(alpha, model, TEXTS), wholes[model], 0.9999)
    no_engines_but(alpha, engines)
    release(alpha, plan)


def test_rerank_by_likeness_along_a_plan(mesh: MeshOfProcesses) -> None:
    alpha, model = mesh.nodes[0], "qwen3-last"
    plan = spread(alpha, model, "none-here")
    engines = children_of(alpha.process.pid)
    for pid in engines:
        kill_now(pid)  # since the last request: the next one waits for what is started in their place
    documents = ["a tree", "how tall is it?", "how tall"]
    answer = alpha.api.post("/v1/rerank", {"model": model, "query": "how tall", "documents": documents})
    assert answer["p2pnode"] == {"method": "embedding"}
    alpha.until("as many", "/health", lambda _: len(children_of(alpha.process.pid)) <= len(engines))
    query, *vectors = embed(alpha, model, ["how tall", *documents])
    scores = {found["index"]: found["relevance_score"] for found in answer["results"]}
    assert [scores[index] for index in range(3)] == pytest.approx(
        [float(query @ vector) for vector in vectors], abs=1e-3
    )
    assert answer["results"][0]["index"] == 2
    release(alpha, plan)


def test_a_model_that_sees_both_ways_is_embedded_whole(
    mesh: MeshOfProcesses, wholes: dict[str, NDArray[np.float64]]
) -> None:
    """Chunks that pass stages one after the other do not see what comes after them."""
    alpha, model = mesh.nodes[0], "llama-both-ways"
    plan = spread(alpha, model, "none-here")
    assert like(embed(alpha, model, TEXTS), wholes[model])
    release(alpha, plan)


def kill_engine(head: NodeProcess, stage: NodeProcess) -> None:
    del head
    kill_now(stage.api.get("/status")["hosted_stages"][0]["engine_pid"])


def kill_own_engines(head: NodeProcess, stage: NodeProcess) -> None:
    del stage
    for pid in children_of(head.process.pid):
        kill_now(pid)


def kill_node(head: NodeProcess, stage: NodeProcess) -> None:
    del head
    stage.kill()


@pytest.mark.parametrize("trouble", [kill_engine, kill_own_engines, kill_node], ids=lambda f: f.__name__)
def test_a_lost_stage_is_replaced(
    tmp_path: Path, files: dict[str, Path], wholes: dict[str, NDArray[np.float64]], trouble: Any
) -> None:
    """While texts are under way: what is not there yet is computed by what is left."""
    model = "llama-mean"
    with mesh_of(tmp_path, "alpha", "beta", "gamma", first_arguments=("--model", str(files[model]))) as mesh:
        alpha, _, gamma = mesh.nodes
        spread(alpha, model, "three")
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(embed, alpha, model, TEXTS * 8)
            trouble(alpha, gamma)
            found = asked.result()
        assert like(found, np.tile(wholes[model], (8, 1)))
        ids = alpha.api.post("/tokenize", {"model": model, "content": "a tree", "add_special": True})[
            "tokens"
        ]
        assert np.array_equal(embed(alpha, model, ["a tree"]), embed(alpha, model, [ids]))
        assert like(embed(alpha, model, TEXTS), wholes[model])


def test_a_device_without_the_model_embeds(
    mesh: MeshOfProcesses, wholes: dict[str, NDArray[np.float64]]
) -> None:
    beta, model = mesh.nodes[1], "llama-cls"
    beta.until("the mesh's models", "/models", lambda v: any(m["name"] == model for m in v["models"]))
    assert like(embed(beta, model, TEXTS), wholes[model])


def can_be_spread(node: NodeProcess, model: str) -> bool:
    """Whether the node knows enough of the others by now to plan with them."""
    try:
        plan = node.api.post("/plan", {"model": model})
    except NodeError:
        return False
    return len({device for stage in plan["stages"] for device in stage["devices"]}) > 1


def test_a_model_without_room_on_one_device_is_embedded_over_two(tmp_path: Path) -> None:
    """Nobody applied a plan; the device that has the whole file still embeds with another's help."""
    demo = "p2pnode-demo"
    made = MeshOfProcesses(tmp_path)
    try:
        roomy = made.first("gamma")
        small = made.join("alpha", "--memory-max", "56M")
        beta = made.join("beta", "--memory-max", "56M")
        for node in made.nodes:
            node.online(3)
        small.api.post("/command/pull", {"model": demo})
        small.until("the model", "/models", lambda v: any(m["here"] == "complete" for m in v["models"]))
        expected = embed(roomy, demo, ["a tree", "how tall is it?"])
        roomy.stop()
        small.until(
            "only small ones", "/peers", lambda v: sum(p["state"] == "online" for p in v["peers"]) == 2
        )
        small.until("a plan with beta", "/models", lambda _: can_be_spread(small, demo))
        assert like(embed(small, demo, ["a tree", "how tall is it?"]), expected, 0.9999)
        assert beta.api.get("/status")["hosted_stages"]
    finally:
        for node in reversed(made.nodes):
            node.stop()
